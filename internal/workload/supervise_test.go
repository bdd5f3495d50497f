package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTheEndOfTime: the program is asked to stop, and has its grace to do so; how it then ended is told.
func TestTheEndOfTime(t *testing.T) {
	for _, tc := range []struct {
		name  string
		args  []string
		grace time.Duration
		want  Outcome
		says  string
	}{
		{"a program that tidies up", []string{"tidy", "0"}, time.Minute, Outcome{Deadline: true}, "ready\nstopped\n"},
		{"a program that tidies up and fails", []string{"tidy", "3"}, time.Minute, Outcome{Deadline: true, Exit: 3}, "ready\nstopped\n"},
		{"a program that knows no SIGTERM", []string{"wait"}, time.Minute, Outcome{Deadline: true, Signal: "SIGTERM"}, "ready\n"},
		{"a program that will not stop", []string{"tidy", "never"}, 200 * time.Millisecond, Outcome{Deadline: true, Signal: "SIGKILL"}, "ready\nstopped\n"},
		{"no grace", []string{"tidy", "0"}, 0, Outcome{Deadline: true, Signal: "SIGKILL"}, "ready\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, _ := sandbox(t, tc.args...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var said bytes.Buffer
			s.Stdout = &tee{&said, &lineCounter{n: 1, do: cancel}}
			s.Grace = tc.grace
			start := time.Now()
			out, err := run(t, ctx, s)
			if err != nil || out != tc.want {
				t.Errorf("outcome %+v, %v; want %+v", out, err, tc.want)
			}
			if said.String() != tc.says {
				t.Errorf("the program said %q, want %q", said.String(), tc.says)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v: the grace was waited for in vain", took)
			}
		})
	}
}

type tee struct {
	a, b interface{ Write([]byte) (int, error) }
}

func (t *tee) Write(p []byte) (int, error) {
	t.a.Write(p)
	return t.b.Write(p)
}

// TestOrphansAreCollected: a program need not wait for its grandchildren; what is left of them would count as processes.
func TestOrphansAreCollected(t *testing.T) {
	s, stdout, _ := sandbox(t, "orphan")
	mustRun(t, s, Outcome{})
	if n, err := strconv.Atoi(strings.TrimSpace(stdout.String())); err != nil || n < 2 {
		t.Errorf("the grandchild is %q", stdout)
	}
}

// TestTheStubHasNothingToGive: while the program runs, the first process of the sandbox has one capability, and the
// program's user namespace knows its user alone.
func TestTheStubHasNothingToGive(t *testing.T) {
	s, _, _ := sandbox(t, "tidy", "0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stub, program map[string]string
	var uids, gids, groups string
	s.Grace = time.Minute
	s.Stdout = &lineCounter{n: 1, do: func() {
		for _, dir := range childrenOf(t, os.Getpid()) {
			if cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline")); !bytes.HasPrefix(cmdline, []byte(stubName)) {
				continue
			}
			stub = statusOf(t, dir)
			pid, _ := strconv.Atoi(filepath.Base(dir))
			for _, p := range childrenOf(t, pid) {
				program = statusOf(t, p)
				read := func(name string) string {
					b, _ := os.ReadFile(filepath.Join(p, name))
					return strings.Join(strings.Fields(string(b)), " ")
				}
				uids, gids, groups = read("uid_map"), read("gid_map"), read("setgroups")
			}
		}
		cancel()
	}}
	if out, err := run(t, ctx, s); err != nil || out != (Outcome{Deadline: true}) {
		t.Errorf("outcome %+v, %v", out, err)
	}
	const kill = "0000000000000020"
	if stub["CapPrm"] != kill || stub["CapEff"] != kill || stub["CapInh"] != "0000000000000000" || stub["NoNewPrivs"] != "1" {
		t.Errorf("the stub: %v", stub)
	}
	one := strings.Repeat(strconv.Itoa(testUser)+" ", 2) + "1"
	if uids != one || gids != one || groups != "deny" {
		t.Errorf("users %q, groups %q, setgroups %q; want %q twice and deny", uids, gids, groups, one)
	}
	if program["Uid"] == "" {
		t.Error("the stub has no child")
	}
}

// TestTheStubCannotBeKilled: not by name, and not among all processes that there are.
func TestTheStubCannotBeKilled(t *testing.T) {
	s, stdout, _ := sandbox(t, "killer")
	mustRun(t, s, Outcome{Exit: 7})
	if said, _, _ := strings.Cut(stdout.String(), "\n"); said != unix.EPERM.Error() {
		t.Errorf("SIGKILL to the stub: %s", stdout)
	}
}

// TestSetuidProgramsAreTheUsers: what an image marks as root's to be is nobody's.
func TestSetuidProgramsAreTheUsers(t *testing.T) {
	s, stdout, _ := sandbox(t, "facts")
	b, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.Root, "probe")
	if err := errors.Join(os.Remove(path), os.WriteFile(path, b, 0o755), os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	mustRun(t, s, Outcome{})
	var f facts
	if err := json.Unmarshal(stdout.Bytes(), &f); err != nil {
		t.Fatal(err)
	}
	if ids := fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", testUser); f.Status["Uid"] != ids || f.Status["Gid"] != ids {
		t.Errorf("users %s, groups %s", f.Status["Uid"], f.Status["Gid"])
	}
}

func statusOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Error(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.Join(strings.Fields(v), " ")
	}
	return status
}

// childrenOf are the /proc folders of a process's children.
func childrenOf(t *testing.T, pid int) (dirs []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		if b, err := os.ReadFile(filepath.Join(dir, "status")); err == nil && bytes.Contains(b, []byte("\nPPid:\t"+strconv.Itoa(pid)+"\n")) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func TestJudge(t *testing.T) {
	if a := judge(ready, nil); a.err != nil || a.ending != nil {
		t.Errorf("ready: %+v", a)
	}
	if a := judge("", io.ErrClosedPipe); !errors.Is(a.err, io.ErrClosedPipe) || !strings.Contains(a.err.Error(), "without a word") {
		t.Errorf("silence: %v", a.err)
	}
	if a := judge(programFault+"x", nil); !errors.Is(a.err, ErrProgram) {
		t.Errorf("a failed exec: %v", a.err)
	}
	for _, want := range []ending{{false, 7 << 8}, {true, 0}, {true, unix.WaitStatus(unix.SIGTERM)}, {false, unix.WaitStatus(unix.SIGSEGV) | 0x80}} {
		if a := judge(ready+string(want.bytes()), nil); a.err != nil || a.ending == nil || *a.ending != want {
			t.Errorf("%+v: %+v", want, a)
		}
	}
	for _, said := range []string{"\x00\x00\x00\x00", "\x00\x00\x00\x00\x00\x00", "\x02\x00\x00\x00\x00", "\x00\x00\x00\x13\x7f", "x"} {
		if a := judge(ready+said, nil); a.err == nil || a.ending != nil {
			t.Errorf("%q: %+v, want an error", said, a)
		}
	}
}

func TestNothingSurvivesTheProgram(t *testing.T) {
	token := fmt.Sprintf("left-%d", os.Getpid())
	s, _, _ := sandbox(t, "leave", token)
	start := time.Now()
	mustRun(t, s, Outcome{Exit: 3})
	if n := processes(t, token); n != 0 {
		t.Errorf("%d processes survived", n)
	}
	if d := time.Since(start); d > drainGrace {
		t.Errorf("the end took %v", d)
	}
}

func TestADeadlineThatIsOverBeforeTheStart(t *testing.T) {
	s, _, _ := sandbox(t, "hang")
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	out, err := run(t, ctx, s)
	if err != nil || !out.Deadline {
		t.Errorf("outcome %+v, error %v, want a deadline", out, err)
	}
}

func TestDeathBySignal(t *testing.T) {
	for _, tc := range []struct{ arg, want string }{{"segv", "SIGSEGV"}, {"x32", "SIGSYS"}} {
		t.Run(tc.arg, func(t *testing.T) {
			if tc.arg == "x32" && x32Bit == 0 {
				t.Skip("this architecture has one ABI")
			}
			s, _, _ := sandbox(t, tc.arg)
			mustRun(t, s, Outcome{Signal: tc.want})
		})
	}
}

// userNamespace makes one, for a process that ends at once.
var userNamespace = sync.OnceValue(func() error {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{{Size: 1}}}
	return cmd.Run()
})
