package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

const patience = 20 * time.Second

// testConfig is a run of a QEMU that behaves as told.
func testConfig(t *testing.T, behaviour string) Config {
	t.Helper()
	t.Setenv(behave, behaviour)
	dir := t.TempDir()
	return Config{
		QEMU:    os.Args[0],
		Shape:   Shape{VCPUs: 1, MemoryMiB: 128, Accel: TCG},
		Kernel:  filepath.Join(dir, "kernel"),
		Initrd:  filepath.Join(dir, "initrd"),
		Dir:     filepath.Join(dir, "out"),
		Timeout: patience,
	}
}

// tmp gives the run a TMPDIR of its own and checks that nothing is left in it.
func tmp(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "t") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in TMPDIR: %v, %v", left, err)
		}
		os.RemoveAll(dir)
		deadline := time.Now().Add(patience)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > before {
			t.Errorf("%d goroutines of %d are left", n, before)
		}
	})
}

func TestRunReportsHowItEnded(t *testing.T) {
	for behaviour, c := range map[string]struct {
		end     End
		console string
		err     string
	}{
		"exits":            {PoweredOff, "Power down", ""},
		"fails":            {Failed, "", "could not load kernel"},
		"panics":           {Panicked, "more text", ""},
		"panics and exits": {Panicked, "reboots", ""},
		"kvm":              {KVMFailed, "", ""},
		"breaks vsock":     {Broken, "", "vhost-user"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			tmp(t)
			rep, err := Run(t.Context(), testConfig(t, behaviour))
			if rep == nil {
				t.Fatal(err)
			}
			if rep.End != c.end || rep.Outcome != nil || rep.ResultPath != "" || rep.Exited.Before(rep.QEMUStart) {
				t.Errorf("report %+v, want end %q", rep, c.end)
			}
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			console, err := os.ReadFile(rep.ConsolePath)
			if err != nil || !strings.Contains(string(console), c.console) {
				t.Errorf("console %q, %v", console, err)
			}
			if !strings.Contains(rep.Command, rep.ConsolePath) {
				t.Errorf("command %s does not write %s", rep.Command, rep.ConsolePath)
			}
		})
	}
}

func TestTimeoutEndsTheVM(t *testing.T) {
	tmp(t)
	cfg := testConfig(t, "hangs")
	pid := filepath.Join(t.TempDir(), "pid")
	t.Setenv(behave+"_PID", pid)
	cfg.Timeout = time.Second
	rep, err := Run(t.Context(), cfg)
	if err != nil || rep.End != TimedOut {
		t.Fatalf("%+v, %v", rep, err)
	}
	if b, err := os.ReadFile(pid); err == nil {
		if n, _ := strconv.Atoi(string(b)); alive(n) {
			t.Errorf("process %d lives", n)
		}
	}
}

// waitPID waits for a process to say that it is there.
func waitPID(t *testing.T, path string) int {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil {
			n, err := strconv.Atoi(string(b))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no process wrote %s", path)
	return 0
}

func waitDead(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d lives", pid)
		}
	}
}

func TestCancelLeavesNothingBehind(t *testing.T) {
	for _, behaviour := range []string{"hangs", "forks"} {
		t.Run(behaviour, func(t *testing.T) {
			tmp(t)
			cfg := testConfig(t, behaviour)
			pid := filepath.Join(t.TempDir(), "pid")
			t.Setenv(behave+"_PID", pid)
			ctx, cancel := context.WithCancelCause(t.Context())
			reason := errors.New("the user went away")
			done := make(chan int, 1)
			go func() {
				done <- waitPID(t, pid)
				cancel(reason)
			}()
			rep, err := Run(ctx, cfg)
			if !errors.Is(err, reason) || rep.End != Cancelled {
				t.Errorf("%+v, %v", rep, err)
			}
			waitDead(t, <-done)
		})
	}
}

// supervise runs a QEMU that hangs, in a process that the test kills.
func supervise() {
	os.Setenv(behave, "hangs")
	dir := os.Getenv(behave + "_DIR")
	_, err := Run(context.Background(), Config{QEMU: os.Args[0], Shape: Shape{VCPUs: 1, MemoryMiB: 128, Accel: TCG}, Kernel: "k", Initrd: "i", Dir: dir})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestQEMUDiesWithItsParent(t *testing.T) {
	dir := t.TempDir()
	pid := filepath.Join(dir, "pid")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), behave+"=supervisor", behave+"_PID="+pid, behave+"_DIR="+dir, "TMPDIR="+dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := waitPID(t, pid)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	waitDead(t, n)
}

func TestConsoleIsBounded(t *testing.T) {
	tmp(t)
	rep, err := Run(t.Context(), testConfig(t, "floods"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(rep.ConsolePath)
	if err != nil || info.Size() < maxOutput || info.Size() > maxOutput+100 {
		t.Errorf("console of %d bytes, %v", info.Size(), err)
	}
}

func TestRunRemovesArtefactsOfAnEarlierRun(t *testing.T) {
	tmp(t)
	cfg := testConfig(t, "exits")
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{SealedFile, PlainFile, ReceiptFile, SealedFile + Partial, PlainFile + Partial, ReceiptFile + Partial, incoming + "1"} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(cfg.Dir + "/[r.]*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRunRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no such QEMU":            {func(c *Config) { c.QEMU = "no-such-qemu" }, "apt install qemu-system-x86"},
		"no vCPUs":                {func(c *Config) { c.Shape.VCPUs = 0 }, "vCPUs"},
		"little memory":           {func(c *Config) { c.Shape.MemoryMiB = 64 }, "memory"},
		"an accelerator":          {func(c *Config) { c.Shape.Accel = "hvf" }, "accelerator"},
		"a kernel to measure":     {func(c *Config) { c.Simulated = true }, "measure launch"},
		"a TEE":                   {func(c *Config) { c.Simulated, c.TEE = true, "sgx" }, `TEE "sgx"`},
		"a real TDX":              {func(c *Config) { c.Hardware = &TEE{Kind: evidence.TDX} }, "takes KVM"},
		"a real and a false one":  {func(c *Config) { c.Simulated, c.Hardware = true, &TEE{Kind: evidence.SNP} }, "either on hardware or simulated"},
		"a part without a player": {func(c *Config) { c.TEE = evidence.TDX }, "which was not asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			tmp(t)
			cfg := testConfig(t, "exits")
			c.change(&cfg)
			if rep, err := Run(t.Context(), cfg); rep != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v", rep, err)
			}
		})
	}
}

func TestRunWithoutPlaceForItsSocket(t *testing.T) {
	cfg := testConfig(t, "exits")
	for name, dir := range map[string]string{"none": "/proc/no", "too deep": filepath.Join(t.TempDir(), strings.Repeat("x", 100))} {
		t.Run(name, func(t *testing.T) {
			if name == "too deep" {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("TMPDIR", dir)
			if rep, err := Run(t.Context(), cfg); rep != nil || err == nil || !strings.Contains(err.Error(), "vhost socket") {
				t.Errorf("%+v, %v", rep, err)
			}
		})
	}
}

func TestMeasurementIsOfTheFiles(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Shape: Shape{VCPUs: 1}, Kernel: dir + "/k", Initrd: dir + "/i", Cmdline: "c"}
	os.WriteFile(cfg.Kernel, []byte("kernel"), 0o644)
	os.WriteFile(cfg.Initrd, []byte("initrd"), 0o644)
	first, err := cfg.Measurement()
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(cfg.Initrd, []byte("initrD"), 0o644)
	second, err := cfg.Measurement()
	if err != nil || first == second {
		t.Errorf("%s, %s, %v", first, second, err)
	}
	cfg.TEE = evidence.SNP
	snp, err := cfg.Measurement()
	if err != nil || snp != second {
		t.Errorf("SNP is not the default: %s, %s, %v", second, snp, err)
	}
	cfg.TEE = evidence.TDX
	tdx, err := cfg.Measurement()
	if err != nil || tdx == snp {
		t.Errorf("the simulated TEE is not measured: %s, %v", tdx, err)
	}
	cfg.Shape.Firmware = dir + "/f"
	os.WriteFile(cfg.Shape.Firmware, nil, 0o644)
	if _, err := cfg.Measurement(); err == nil {
		t.Error("an empty firmware is measured as the built-in one")
	}
}
