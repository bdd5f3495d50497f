package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// isPrivate asserts that nothing that the host got holds text.
func (f *flow) isPrivate(text string) {
	f.Helper()
	if strings.Contains(f.console.String(), text) {
		f.Errorf("the console has %q:\n%s", text, f.console)
	}
	for _, e := range f.peer.events {
		if bytes.Contains(e.Line(), []byte(text)) {
			f.Errorf("event %s has %q", e.Line(), text)
		}
	}
	if bytes.Contains(f.peer.result, []byte(text)) || bytes.Contains(f.peer.receipt, []byte(text)) {
		f.Errorf("what was delivered has %q in clear", text)
	}
}

// A brokenDevice gives evidence some times, and then fails.
type brokenDevice struct {
	tee.Device
	left int
	fail func() error
}

func (d *brokenDevice) Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	if d.left--; d.left < 0 {
		return evidence.Evidence{}, d.fail()
	}
	return d.Device.Evidence(ctx, reportData)
}

// evidenceFails lets the device sign n reports.
func evidenceFails(n int) func(*machine, func() error) {
	return func(m *machine, fail func() error) {
		open := m.openTEE
		m.openTEE = func([]tee.Driver) (tee.Device, error) {
			d, err := open(nil)
			return &brokenDevice{d, n, fail}, err
		}
	}
}

// TestErrorTextsArePrivate: whatever the outside of a real boot fails with, by an error or by a panic, and in whatever
// goroutine, its text is for the owner: sealed once the manifest is bound, and nowhere before, when the recipients may
// be the host's own.
func TestErrorTextsArePrivate(t *testing.T) {
	for name, c := range map[string]struct {
		fault  func(m *machine, fail func() error)
		step   string
		reason result.Reason
		sealed bool // the owner is told
		run    bool // the workload had started
	}{
		"file systems":     {func(m *machine, fail func() error) { m.mount = fail }, "mount", result.Internal, false, false},
		"the command line": {func(m *machine, fail func() error) { m.commandLine = func() (string, error) { return "", fail() } }, "mount", result.Internal, false, false},
		"the kernel":       {func(m *machine, fail func() error) { m.lockdown = fail }, "lockdown", result.Internal, false, false},
		"no TEE": {func(m *machine, fail func() error) {
			m.openTEE = func([]tee.Driver) (tee.Device, error) { return nil, fail() }
		}, "platform", result.NoTEE, false, false},
		"the network": {func(m *machine, fail func() error) {
			m.network = func(context.Context, cmdline.Net) error { return fail() }
		}, "network", result.Unreachable, false, false},
		"the manifest": {func(m *machine, fail func() error) {
			m.fetchManifest = func(context.Context, cmdline.Source) ([]byte, error) { return nil, fail() }
		}, "manifest", result.BadManifest, false, false},
		"the first evidence": {evidenceFails(0), "bind", result.NoTEE, false, false},
		"an image's reference": {func(m *machine, fail func() error) {
			m.resolve = func(context.Context, string, image.Options) (*image.Image, error) { return nil, fail() }
		}, "resolve", result.BadImage, true, false},
		"one image of two": {func(m *machine, fail func() error) {
			resolve := m.resolve
			m.resolve = func(ctx context.Context, uri string, o image.Options) (*image.Image, error) {
				if strings.Contains(uri, "dataset") {
					return nil, fail()
				}
				return resolve(ctx, uri, o)
			}
		}, "resolve", result.BadImage, true, false},
		"memory": {func(m *machine, fail func() error) { m.memory = func() (room, error) { return room{}, fail() } }, "resolve", result.Internal, true, false},
		"the broker": {func(m *machine, fail func() error) {
			m.onFetch(func(context.Context, []kbs.Want, fetch) (*kbs.Grant, error) { return nil, fail() })
		}, "attest", result.Denied, true, false},
		"the broker's evidence":  {evidenceFails(1), "attest", result.Denied, true, false},
		"the receipt's evidence": {evidenceFails(2), "seal", result.NoTEE, true, true},
		"an image": {func(m *machine, fail func() error) {
			m.unpack = func(context.Context, *image.Image, string, image.Keys, image.Limits, func(int64)) error {
				return fail()
			}
		}, "pull", result.BadImage, true, false},
		"progress": {func(m *machine, fail func() error) {
			m.unpack = func(_ context.Context, _ *image.Image, _ string, _ image.Keys, _ image.Limits, progress func(int64)) error {
				progress(1)
				return fail()
			}
		}, "pull", result.BadImage, true, false},
		"the results' disk": {func(m *machine, fail func() error) { m.boundResults = func(string, int64) error { return fail() } }, "execute", result.Internal, true, false},
		"the sandbox": {func(m *machine, fail func() error) {
			m.runWorkload = func(context.Context, workload.Spec) (workload.Outcome, error) { return workload.Outcome{}, fail() }
		}, "execute", result.Internal, true, false},
	} {
		for how, fail := range map[string]func() error{
			"an error": func() error { return errors.New(secret) },
			"a panic":  func() error { panic(secret) },
		} {
			t.Run(name+" with "+how, func(t *testing.T) {
				f := newFlow(t)
				f.tamper = func(m *machine) { c.fault(m, fail) }
				f.boot()
				reason := c.reason
				if how == "a panic" {
					reason = result.Internal
				}
				f.ends(c.step, reason, c.run)
				f.isPrivate(secret)
				if f.peer.receipt != nil {
					t.Error("a receipt was delivered")
				}
				if c.sealed != (f.peer.result != nil) {
					t.Fatalf("a log was delivered: %v, want %v", f.peer.result != nil, c.sealed)
				}
				if c.sealed && !strings.Contains(f.log(), secret) {
					t.Errorf("the sealed log has no error's text:\n%s", f.log())
				}
			})
		}
	}
}
