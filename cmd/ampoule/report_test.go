package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/qemu"
)

func TestOutcomeError(t *testing.T) {
	status := func(n int) *int { return &n }
	for _, c := range []struct {
		name    string
		outcome *result.Event
		result  string
		code    int
		says    []string
	}{
		{"ok", &result.Event{Reason: result.OK, Exit: status(0)}, "result.tar.zst.age", 0, nil},
		{"never reported", nil, "", 5, []string{"never reported", string(qemu.TimedOut), "console.log", "qemu-system-x86_64 -nodefaults"}},
		{"no status", &result.Event{Reason: result.Internal}, "", 1, []string{"ended with internal; ", "console.log"}},
		{"broken step", &result.Event{Reason: result.Internal, Step: "lockdown"}, "", 1, []string{"internal in step lockdown", "console.log"}},
		{"unreachable", &result.Event{Reason: result.Unreachable, Step: "network"}, "", 1, []string{"unreachable in step network"}},
		{"bad manifest", &result.Event{Reason: result.BadManifest, Step: "manifest"}, "", 1, []string{"bad-manifest"}},
		{"bad image", &result.Event{Reason: result.BadImage, Step: "pull"}, "result.tar.zst.age", 1, []string{"bad-image in step pull", "result.tar.zst.age (ampoule open)"}},
		{"undelivered", &result.Event{Reason: result.Undelivered, Step: "deliver"}, "", 1, []string{"undelivered"}},
		{"deadline", &result.Event{Reason: result.Deadline, Step: "attest"}, "", 1, []string{"deadline in step attest"}},
		{"no TEE", &result.Event{Reason: result.NoTEE, Step: "platform"}, "", 1, []string{"no-tee in step platform"}},
		{"not bound", &result.Event{Reason: result.NotBound, Step: "bind"}, "", 3, []string{"not-bound in step bind"}},
		{"denied", &result.Event{Reason: result.Denied, Step: "attest"}, "result.tar.zst.age", 3, []string{"denied in step attest", "ampoule open"}},
		{"workload", &result.Event{Reason: result.Workload, Step: "execute", Exit: status(7)}, "result.tar.zst.age", 4, []string{"workload exited with status 7", "ampoule open"}},
		{"killed", &result.Event{Reason: result.Workload, Step: "execute"}, "result.tar.zst.age", 4, []string{"workload in step execute"}},
		{"hung", &result.Event{Reason: result.Deadline, Step: "execute"}, "result.tar.zst.age", 4, []string{"deadline in step execute"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := outcomeError(&qemu.Report{Outcome: c.outcome, ResultPath: c.result, ConsolePath: "console.log", Command: "qemu-system-x86_64 -nodefaults", End: qemu.TimedOut})
			code := 0
			if e, ok := errors.AsType[*exitError](err); ok {
				code = e.code
			}
			if code != c.code || (err == nil) != (c.code == 0) {
				t.Errorf("exit status %d, want %d: %v", code, c.code, err)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}

func TestRunOf(t *testing.T) {
	start := time.Unix(0, 0)
	r := runOf(&qemu.Report{QEMUStart: start, Zero: start.Add(2 * time.Second), Exited: start.Add(9500 * time.Millisecond)})
	if r.Before != 2*time.Second || r.End != 7500*time.Millisecond {
		t.Errorf("the kernel began after %v and the VM ended at %v of its clock", r.Before, r.End)
	}
	if r := runOf(&qemu.Report{QEMUStart: start, Exited: start.Add(time.Second)}); r.Before != 0 || r.End != 0 {
		t.Errorf("of a VM that said nothing: %+v", r)
	}
	if r := runOf(&qemu.Report{QEMUStart: start, Zero: start.Add(-time.Hour * 1e5), Exited: start}); r.Before != 0 {
		t.Errorf("of a VM that lied: %+v", r)
	}
}

func TestMedians(t *testing.T) {
	runs := []figures{{PID1: 3, Pull: 6, HostPull: 24, Peak: 10}, {PID1: 1, Pull: 6, HostPull: 24, Peak: 40}, {PID1: 2, Pull: 6, HostPull: 24, Peak: 20}}
	if got := medians(runs); got != (figures{PID1: 2, Pull: 6, HostPull: 24, Peak: 20}) {
		t.Errorf("median of three: %+v", got)
	}
	if got := medians(append(runs, figures{PID1: 8, Pull: 6, HostPull: 24, Peak: 30})); got != (figures{PID1: 2.5, Pull: 6, HostPull: 24, Peak: 25}) {
		t.Errorf("median of four: %+v", got)
	}
	b := benchReport{Accel: qemu.TCG, PullBytes: 8_700_000, Runs: runs, Median: medians(runs), Init: 9 << 20, Kernel: 4 << 20, Initramfs: 3 << 20}
	for _, want := range []string{"\n3 ", "\nmedian        2.00 s", "pulled 8.7 MB a run, in the VM at 0.250 of the host's speed, accelerator tcg", "/init 9.00 MiB, kernel 4.00 MiB, initramfs 3.00 MiB, kernel + initramfs 7.00 MiB"} {
		if !strings.Contains(b.text(), want) {
			t.Errorf("no %q in\n%s", want, b.text())
		}
	}
}
