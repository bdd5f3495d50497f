package bench

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestBootProgram runs it here: its clocks go forward, and with an argument it also times its loops.
func TestBootProgram(t *testing.T) {
	program := BootProgram()
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil || f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || len(f.Progs) != 1 || f.Progs[0].Filesz != uint64(len(program)) {
		t.Fatalf("ELF header: %v %+v", err, f)
	}
	path := filepath.Join(t.TempDir(), "first")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"loops"}} {
		out, err := exec.Command(path, args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseStamps(out)
		if err != nil {
			t.Fatal(err)
		}
		l := s.Loops
		if looped := l.Arithmetic > 0 && l.Calls > 0 && l.Pages > 0; s.First <= 0 || s.CPU <= 0 || looped != (args != nil) {
			t.Errorf("%v: %+v", args, s)
		}
	}
	if _, err := ParseStamps(make([]byte, 33)); err == nil {
		t.Error("33 bytes are taken for stamps")
	}
}

// TestBootProgramIsItsSource, where there is an assembler.
func TestBootProgramIsItsSource(t *testing.T) {
	if _, err := exec.LookPath("as"); err != nil {
		t.Skip("no assembler on this machine: apt install binutils")
	}
	dir := t.TempDir()
	object, code := filepath.Join(dir, "first.o"), filepath.Join(dir, "first.bin")
	for _, args := range [][]string{{"as", "-o", object, "testdata/first.s"}, {"objcopy", "-O", "binary", "-j", ".text", object, code}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	if b, err := os.ReadFile(code); err != nil || !bytes.Equal(b, bootCode) {
		t.Errorf("testdata/first.bin is not what the source gives: %v", err)
	}
}

// TestFollowConsole: lines are stamped as they come, also those that come in pieces, and the last before the end.
func TestFollowConsole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	ctx, cancel := context.WithCancel(t.Context())
	type answer struct {
		log *KernelLog
		err error
	}
	done := make(chan answer)
	go func() {
		l, err := FollowConsole(ctx, path)
		done <- answer{l, err}
	}()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, piece := range []string{
		"SeaBIOS\r\n[    0.000000] Linux version 6.12\r\n[    0.5", "00000] initcall acpi_init+0x0/0x530 returned 0 after 184000 usecs\r\n",
		"[    0.600000] initcall inet_init+0x0/0x2e0 returned -19 after 1 usecs\r\n[    1.250000] Run /init as init process\r\nampoule 1/13 mount ok 3 ms\r\n",
	} {
		if _, err := f.WriteString(piece); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	a := <-done
	if a.err != nil {
		t.Fatal(a.err)
	}
	if at, ok := a.log.At("Run /init"); !ok || at != 1250*time.Millisecond {
		t.Errorf("/init is run at %v, %t", at, ok)
	}
	if _, ok := a.log.At("ampoule"); ok {
		t.Error("a line of PID 1 is taken for one of the kernel")
	}
	if took, ok := a.log.Between("Run /init", "mount ok"); !ok || took < 0 || took > time.Minute {
		t.Errorf("PID 1 came %v after it was run, %t", took, ok)
	}
	if _, ok := a.log.Between("Run /init", "inet_init"); ok {
		t.Error("a line of the kernel is taken for one of PID 1")
	}
	want := []Initcall{{"acpi_init", 184 * time.Millisecond}, {"inet_init", time.Microsecond}}
	if d := cmp.Diff(want, a.log.Initcalls()); d != "" {
		t.Error(d)
	}
	if since := time.Since(a.log.Zero); since < 1250*time.Millisecond || since > time.Minute {
		t.Errorf("the kernel's clock began %v ago", since)
	}
}

// TestSlowest takes the least of each initcall over the boots.
func TestSlowest(t *testing.T) {
	logs := []*KernelLog{{}, {}}
	for i, lines := range [][]string{
		{"initcall a+0x0/0x1 returned 0 after 50 usecs", "initcall b+0x0/0x1 returned 0 after 20 usecs", "initcall c+0x0/0x1 returned 0 after 1 usecs"},
		{"initcall a+0x0/0x1 returned 0 after 10 usecs", "initcall b+0x0/0x1 returned 0 after 30 usecs", "calling  c+0x0/0x1 @ 1"},
	} {
		for _, l := range lines {
			logs[i].add(time.Now(), "[    1.000000] "+l)
		}
	}
	got, sum := Slowest(logs, 2)
	if d := cmp.Diff([]Initcall{{"b", 20 * time.Microsecond}, {"a", 10 * time.Microsecond}}, got); d != "" || sum != 31*time.Microsecond {
		t.Errorf("%s sum %v", d, sum)
	}
}

// TestFormats: every program here gives back what it was given, and smaller.
func TestFormats(t *testing.T) {
	content := []byte(strings.Repeat("all the same, more or less\n", 10_000))
	all, err := Formats(t.Context(), content, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all[1:] {
		if f.Bytes <= 0 || f.Bytes >= all[0].Bytes {
			t.Errorf("%s: %d bytes of %d", f.Name, f.Bytes, all[0].Bytes)
		}
	}
}

func TestKernelProgramRefuses(t *testing.T) {
	good := make([]byte, 0x1000)
	copy(good[0x202:], "HdrS")
	for name, b := range map[string][]byte{
		"nothing": nil, "no header": make([]byte, 0x1000), "an empty payload": good,
		"a payload beyond the end": append(append([]byte{}, good[:0x24c]...), 0xff, 0xff, 0, 0),
	} {
		if _, err := KernelProgram(b); err == nil {
			t.Errorf("%s is taken for a kernel", name)
		}
	}
}

func TestBisect(t *testing.T) {
	for _, c := range []struct{ needs, good, bad int }{{100, 100, 96}, {97, 100, 96}, {1, 32, 0}, {512, 512, 508}, {33, 36, 32}} {
		tried := 0
		good, bad, err := Bisect(32, 512, 4, func(n int) (bool, error) { tried++; return n >= c.needs, nil })
		if err != nil || good != c.good || bad != c.bad || tried > 9 {
			t.Errorf("needs %d: %d, %d, %v after %d", c.needs, good, bad, err, tried)
		}
	}
	if _, _, err := Bisect(32, 512, 4, func(int) (bool, error) { return false, nil }); err == nil {
		t.Error("nothing works, and that is no error")
	}
	stop := errors.New("stopped")
	if _, _, err := Bisect(32, 512, 4, func(n int) (bool, error) { return true, map[bool]error{true: stop}[n < 512] }); !errors.Is(err, stop) {
		t.Errorf("%v, want %v", err, stop)
	}
}

// TestBootReport: the estimate follows the stub where it was measured, and else the loop that loses least; the report goes between its
// marks and leaves those of the other.
func TestBootReport(t *testing.T) {
	c := CPUTimes{
		Start: 100 * time.Millisecond, Steps: 500 * time.Millisecond, Sum: 600 * time.Millisecond, Limit: CPULimit,
		Guest: Loops{30, 80, 500}, Host: Loops{10, 10, 10},
	}
	if got := c.Estimate(); got != 200*time.Millisecond {
		t.Errorf("by the loops %v", got)
	}
	c.GuestStub, c.NativeStub = 100, 10
	if got := c.Estimate(); got != 60*time.Millisecond {
		t.Errorf("by the stub %v", got)
	}
	boot := func(n time.Duration) BootTime {
		return BootTime{Firmware: n, Whole: 3 * n, Steps: []StepTime{{"mount", 2 * n, n}, {"execute", 4 * n, n}}}
	}
	runs := []BootTime{boot(3 * time.Millisecond), boot(time.Millisecond), boot(2 * time.Millisecond)}
	median := MedianBoot(runs)
	if d := cmp.Diff(boot(2*time.Millisecond), median); d != "" {
		t.Error(d)
	}
	r := &BootReport{CPU: c, Boots: []BootSeries{{"SeaBIOS", runs, median}}, Memory: []LeastMemory{{"SeaBIOS", "small", 96, 92}}}
	path := filepath.Join(t.TempDir(), "doc.md")
	before := fmt.Sprintf("a\n%sold\n%sb\n%spull\n%s", bootBeginMark, bootEndMark, beginMark, endMark)
	if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Update(path); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"within the limit of 150", "| step mount", "4.0, CPU 2.0", "92 |", endMark, beginMark + "pull\n"} {
		if !strings.Contains(string(after), want) {
			t.Errorf("the document has no %q:\n%s", want, after)
		}
	}
	if strings.Contains(string(after), "old") {
		t.Error("the old report is still there")
	}
}
