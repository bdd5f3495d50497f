package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// TestReceiptSaysWhereAndOfWhat: build, hardware, time, what the run took, and every form of the result.
func TestReceiptSaysWhereAndOfWhat(t *testing.T) {
	f := newFlow(t)
	f.outcome.Usage = workload.Usage{MemoryPeak: 1 << 20, CPU: 2500, PIDsPeak: 3}
	before := time.Now().Add(-time.Second)
	f.boot()
	f.ends("", result.OK, true)
	st := f.statement()
	p := st.Predicate
	cmdline := sha256.Sum256([]byte(f.line))
	want := result.Build{Init: version(), Go: runtime.Version(), Kernel: kernelRelease(), Cmdline: hex.EncodeToString(cmdline[:])}
	if d := cmp.Diff(want, p.Build); d != "" || p.Build.Kernel == "" {
		t.Errorf("build %+v\n%s", p.Build, d)
	}
	if p.TEE != (result.TEE{Kind: "snp", TCB: "04000000000016d5"}) || p.ImagePolicy != "" {
		t.Errorf("%+v, policy %q", p.TEE, p.ImagePolicy)
	}
	if at, err := time.Parse(result.TimeFormat, p.Completed); err != nil || at.Before(before) || at.After(time.Now()) {
		t.Errorf("completed %s: %v", p.Completed, err)
	}
	if r := p.Resources; r.MemoryPeak != 1<<20 || r.CPU != 2500 || r.ProcessesPeak != 3 || r.OOMKills != 0 || r.Pulled < 100 {
		t.Errorf("resources %+v", r)
	}
	sum := sha256.Sum256(f.peer.result)
	n := len(st.Subject)
	if n != 2 || st.Subject[0] != result.NewSubject(result.SealedName, sum[:]) || st.Subject[1].Name != result.TarName {
		t.Errorf("subjects %+v", st.Subject)
	}
}

// TestReceiptNamesTheImagePolicy: by the digest of its text, which the broker or the manifest had.
func TestReceiptNamesTheImagePolicy(t *testing.T) {
	f := newFlow(t)
	f.edit(`"results": {`, `"images": {"policy": {"default": [{"type": "insecureAcceptAnything"}]}}, "results": {`)
	f.boot()
	f.ends("", result.OK, true)
	if got := f.statement().Predicate.ImagePolicy; len(got) != 64 || !strings.Contains(f.log(), "sha256="+got) {
		t.Errorf("policy %q; the log:\n%s", got, f.log())
	}
}

// loggedDevice is a TDX guest whose firmware left a log: of nothing, for the simulated registers are zero.
type loggedDevice struct {
	quoteDevice
	log func() []byte
}

func (d loggedDevice) Evidence(ctx context.Context, data [64]byte) (evidence.Evidence, error) {
	ev, err := d.quoteDevice.Evidence(ctx, data)
	ev.EventLog = d.log()
	return ev, err
}

// emptyLog is a log whose header says text, which no register holds.
func emptyLog(text string) []byte {
	b := append([]byte{1, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	return append(append(b, byte(len(text)), 0, 0, 0), text...)
}

// TestEventLogIsSigned: its texts are in no register, so that the statement is over them, and a host that changes them is seen.
func TestEventLogIsSigned(t *testing.T) {
	for name, c := range map[string]struct {
		log  func() func() []byte
		want string
	}{
		"the same log": {func() func() []byte { return func() []byte { return emptyLog("what the firmware saw") } }, ""},
		"a log that changes": {func() func() []byte {
			n := 0
			return func() []byte { n++; return emptyLog(fmt.Sprint("version ", n)) }
		}, "it says that the event log has"},
		"no log": {func() func() []byte { return func() []byte { return nil } }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			log := c.log()
			f.tamper = func(m *machine) {
				m.openTEE = func([]tee.Driver) (tee.Device, error) {
					return loggedDevice{quoteDevice{chipDevice{f.world.PSP, f.launch}}, log}, nil
				}
			}
			f.boot()
			f.ends("", result.OK, true)
			root, err := verify.LoadIntelRoot(f.world.PSP.TDXRootPEM())
			if err != nil {
				t.Fatal(err)
			}
			_, err = verify.Receipt(f.peer.receipt, verify.Expect{Intel: root})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if got := f.statement().Predicate.Build.EventLog; (got == "") != bytes.Equal(log(), nil) {
				t.Errorf("event log %q", got)
			}
		})
	}
}
