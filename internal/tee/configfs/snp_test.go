package configfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// kernel is faketsm with SNP's provider behind it; aux and change are what a test varies.
type kernel struct {
	*faketsm.ReportSubsystem
	provider string
	aux      []byte
	change   func(*evidence.SNPReport) // before the report is given
	mkdir    error
	race     int // that many reads of a generation are wrong
	reports  int
}

func newKernel() *kernel {
	k := &kernel{ReportSubsystem: faketsm.ReportV7(0), provider: "sev_guest\n"}
	k.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch attr {
		case "provider":
			return []byte(k.provider), nil
		case "auxblob":
			return k.aux, nil
		case "outblob":
			k.reports++
			r := evidence.SNPReport{Version: 3, ReportData: [64]byte(e.InAttrs["inblob"].Value)}
			if k.change != nil {
				k.change(&r)
			}
			return r.Marshal(), nil
		}
		return nil, os.ErrNotExist
	}
	return k
}

func (k *kernel) MkdirTemp(dir, pattern string) (string, error) {
	if k.mkdir != nil {
		return "", &os.PathError{Op: "mkdir", Path: dir, Err: k.mkdir}
	}
	return k.ReportSubsystem.MkdirTemp(dir, pattern)
}

func (k *kernel) ReadFile(name string) ([]byte, error) {
	if strings.HasSuffix(name, "/outblob") {
		if k.race > 0 {
			// Somebody writes to the entry between our writes and our read.
			k.race--
			if err := k.WriteFile(strings.TrimSuffix(name, "outblob")+"privlevel", []byte("0")); err != nil {
				return nil, err
			}
		}
	}
	return k.ReportSubsystem.ReadFile(name)
}

var _ configfsi.Client = (*kernel)(nil)

var nonce = [64]byte{1, 2, 3, 63: 64}

func TestEvidence(t *testing.T) {
	for _, aux := range []string{"", "certificates"} {
		k := newKernel()
		k.aux = []byte(aux)
		d, err := New(k)
		if err != nil {
			t.Fatal(err)
		}
		if k.reports != 0 {
			t.Error("New had a report made")
		}
		ev, err := d.Evidence(t.Context(), nonce)
		if err != nil {
			t.Fatal(err)
		}
		want := evidence.Evidence{Kind: evidence.SNP, Report: (&evidence.SNPReport{Version: 3, ReportData: nonce}).Marshal(), Aux: []byte(aux)}
		if d.Kind() != want.Kind || ev.Kind != want.Kind || !bytes.Equal(ev.Report, want.Report) || !bytes.Equal(ev.Aux, want.Aux) {
			t.Errorf("evidence differs:\n%s", cmp.Diff(want, ev))
		}
		if len(k.Entries) != 0 {
			t.Errorf("%d report entries left behind", len(k.Entries))
		}
	}
}

func TestAbsentHardwareIsNotFound(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(*kernel)
		says string
	}{
		{"no provider", func(k *kernel) { k.mkdir = unix.ENXIO }, "no provider"},
		{"no configfs-tsm", func(k *kernel) { k.mkdir = unix.ENOENT }, "no provider"},
		{"another TEE", func(k *kernel) { k.provider = "tdx_guest\n" }, `"tdx_guest"`},
	} {
		k := newKernel()
		tc.set(k)
		_, err := New(k)
		if !errors.Is(err, tee.ErrNotFound) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v, want tee.ErrNotFound with %q", tc.name, err, tc.says)
		}
	}
}

func TestBrokenHardwareIsNotAbsent(t *testing.T) {
	k := newKernel()
	k.mkdir = unix.EIO
	if _, err := New(k); err == nil || errors.Is(err, tee.ErrNotFound) {
		t.Errorf("error %v, want one that is not tee.ErrNotFound", err)
	}
}

func TestEvidenceRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(*kernel)
		says string
	}{
		{"a report over other data", func(k *kernel) { k.change = func(r *evidence.SNPReport) { r.ReportData[0]++ } }, "other report data"},
		{"a report of VMPL 2", func(k *kernel) { k.change = func(r *evidence.SNPReport) { r.VMPL = 2 } }, "VMPL 2"},
		{"an unknown version", func(k *kernel) { k.change = func(r *evidence.SNPReport) { r.Version = 9 } }, "version 9"},
		{"too many certificates", func(k *kernel) { k.aux = make([]byte, maxAux+1) }, "limit"},
		{"a provider that changed", func(k *kernel) { k.provider = "other\n" }, `"other"`},
		{"a race without end", func(k *kernel) { k.race = 1000 }, "5 tries"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKernel()
			d, err := New(k)
			if err != nil {
				t.Fatal(err)
			}
			tc.set(k)
			ev, err := d.Evidence(t.Context(), nonce)
			if err == nil || !strings.Contains(err.Error(), tc.says) || ev.Report != nil {
				t.Errorf("error %v, want one with %q", err, tc.says)
			}
			if len(k.Entries) != 0 {
				t.Errorf("%d report entries left behind", len(k.Entries))
			}
		})
	}
}

func TestEvidenceSurvivesFourRaces(t *testing.T) {
	k := newKernel()
	d, err := New(k)
	if err != nil {
		t.Fatal(err)
	}
	k.race = maxTries - 1
	if _, err := d.Evidence(t.Context(), nonce); err != nil {
		t.Error(err)
	}
}

func TestEvidenceEndsWithItsContextWhenTheKernelHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel()
		d, err := New(k)
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		defer close(release)
		k.change = func(*evidence.SNPReport) { <-release }
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, fmt.Errorf("step is over"))
		defer cancel()
		begin := time.Now()
		if _, err := d.Evidence(ctx, nonce); !errors.Is(err, context.Cause(ctx)) {
			t.Errorf("error %v, want the cause", err)
		}
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("took %v", took)
		}
	})
}
