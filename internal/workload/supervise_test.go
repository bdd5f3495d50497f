package workload

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
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
