package guest

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play the children of the reaper tests, so that they need no program of the system.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[0] == "guest-test-child" {
		os.Exit(child(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func child(args []string) int {
	switch args[0] {
	case "exit":
		return int(args[1][0] - '0')
	case "env":
		return len(os.Environ())
	case "hang":
		os.Stdout.WriteString("ready\n")
		select {}
	case "orphan": // its own child outlives it, and ends when the pipe on descriptor 3 closes
		pid, err := syscall.ForkExec("/proc/self/exe", []string{"guest-test-child", "linger"},
			&syscall.ProcAttr{Files: []uintptr{0, 1, 2, 3}})
		if err != nil || pid <= 0 {
			return 9
		}
		return 0
	case "linger":
		os.NewFile(3, "pipe").Read(make([]byte, 1))
		return 0
	}
	return 8
}

func newReaper(t *testing.T) *Reaper {
	r := NewReaper()
	t.Cleanup(r.Close)
	return r
}

func start(t *testing.T, r *Reaper, attr *os.ProcAttr, args ...string) *Child {
	t.Helper()
	c, err := r.Start("/proc/self/exe", append([]string{"guest-test-child"}, args...), attr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReaperLosesNoStatus(t *testing.T) {
	r := newReaper(t)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			code := i % 7
			c := start(t, r, nil, "exit", string(rune('0'+code)))
			status, err := c.Wait(t.Context())
			if err != nil || !status.Exited() || status.ExitStatus() != code {
				t.Errorf("child %d: status %v, error %v, want exit %d", i, status, err, code)
			}
		})
	}
	wg.Wait()
	if n := r.Orphans(); n != 0 {
		t.Errorf("%d orphans, want 0: a child was reaped before it was known", n)
	}
}

func TestChildGetsNoEnvironmentUnlessGiven(t *testing.T) {
	t.Setenv("LD_PRELOAD", "")
	r := newReaper(t)
	for _, tc := range []struct {
		env  []string
		want int
	}{{nil, 0}, {[]string{"A=1", "B=2"}, 2}} {
		status, err := start(t, r, &os.ProcAttr{Env: tc.env}, "env").Wait(t.Context())
		if err != nil || status.ExitStatus() != tc.want {
			t.Errorf("Env %q: child sees %d variables, want %d (%v)", tc.env, status.ExitStatus(), tc.want, err)
		}
	}
}

func TestWaitEndsWithItsContextAndLeavesTheChildAlone(t *testing.T) {
	r := newReaper(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := start(t, r, &os.ProcAttr{Files: []*os.File{nil, in, nil}}, "hang")
	in.Close()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the step is over")
	cancel(cause)
	if _, err := c.Wait(ctx); !errors.Is(err, cause) {
		t.Errorf("Wait: %v, want the cause", err)
	}
	if err := c.Signal(0); err != nil {
		t.Errorf("child is gone after Wait gave up: %v", err)
	}
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	status, err := c.Wait(t.Context())
	if err != nil || status.Signal() != syscall.SIGKILL {
		t.Errorf("status %v, error %v, want SIGKILL", status, err)
	}
	// A status that is known wins over a context that has ended.
	if _, err := c.Wait(ctx); err != nil {
		t.Errorf("second Wait: %v", err)
	}
	if err := c.Kill(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Kill after the end: %v, want ErrProcessDone", err)
	}
}

func TestOrphansAreReapedAndCounted(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	ended := make(chan os.Signal, 8)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	r := newReaper(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := start(t, r, &os.ProcAttr{Files: []*os.File{nil, nil, nil, out}}, "orphan")
	if status, err := c.Wait(t.Context()); err != nil || status.ExitStatus() != 0 {
		t.Fatalf("parent of the orphan: %v, %v", status, err)
	}
	in.Close()
	for r.Orphans() == 0 {
		select {
		case <-ended:
			r.reap() // the reaper has the same signal, and may not have come to it yet
		case <-time.After(10 * time.Second):
			t.Fatal("orphan was not reaped within 10 s")
		}
	}
}

func TestStartRefuses(t *testing.T) {
	r := newReaper(t)
	if _, err := r.Start("/no/such/program", []string{"x"}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	} else if !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error %q does not name the program", err)
	}
	fd := 0
	if _, err := r.Start("/proc/self/exe", nil, &os.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &fd}}); err == nil {
		t.Error("PidFD of the caller was taken")
	}
}
