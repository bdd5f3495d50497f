// Package configfs reaches TEEs through the kernel's configfs-tsm reports, below /sys/kernel/config/tsm/report.
package configfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

const (
	snpProvider = "sev_guest"
	maxAux      = 64 << 10 // bytes of certificate table; three certificates are 5 KiB
	maxTries    = 5        // when an entry changes under the reader
)

// SNP opens an AMD SEV-SNP guest device.
var SNP = tee.Driver{Name: "snp", Open: func() (tee.Device, error) {
	client, err := linuxtsm.MakeClient()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the kernel has no configfs-tsm reports: %w", tee.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	return New(client)
}}

// New opens the SNP device behind client. It is tee.ErrNotFound if there is no provider of reports, or one that is not
// SNP's; the error then names it. No report is made: firmware limits how many it gives in a second.
func New(client configfsi.Client) (tee.Device, error) {
	name, err := provider(client)
	if err != nil {
		return nil, err
	}
	if name != snpProvider {
		return nil, fmt.Errorf("%w: reports here come from provider %q, not from %q", tee.ErrNotFound, name, snpProvider)
	}
	return &snp{client}, nil
}

// provider asks an entry of its own for the name of the provider.
func provider(client configfsi.Client) (string, error) {
	// Not report.CreateOpenReport: it hides the error number, by which no provider differs from a broken one.
	dir, err := client.MkdirTemp(configfsi.TsmPrefix+"/report", "ampoule")
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: no provider of reports: %w", tee.ErrNotFound, err)
	case err != nil:
		return "", fmt.Errorf("make a report entry: %w", err)
	}
	r, err := report.UnsafeWrap(client, dir)
	if err != nil {
		return "", fmt.Errorf("report entry: %w", err)
	}
	defer r.Destroy()
	// Any report data will do; it is not signed before outblob is read.
	if err := r.WriteOption("inblob", make([]byte, 64)); err != nil {
		return "", err
	}
	name, err := r.ReadOption("provider")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(name)), nil
}

type snp struct{ client configfsi.Client }

func (*snp) Kind() evidence.Kind { return evidence.SNP }

// Evidence asks the firmware, through the kernel, for a report of VMPL 0 and the host's certificates. If ctx ends
// while the kernel waits, Evidence returns and leaves that wait behind, for nothing can interrupt it.
func (d *snp) Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	if ctx.Err() != nil {
		return evidence.Evidence{}, fmt.Errorf("SNP report: %w", context.Cause(ctx))
	}
	type answer struct {
		ev  evidence.Evidence
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		ev, err := d.ask(ctx, reportData)
		answers <- answer{ev, err}
	}()
	select {
	case a := <-answers:
		return a.ev, a.err
	case <-ctx.Done():
		return evidence.Evidence{}, fmt.Errorf("SNP report: %w", context.Cause(ctx))
	}
}

func (d *snp) ask(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	req := &report.Request{
		InBlob:     reportData[:],
		Privilege:  &report.Privilege{Level: 0},
		GetAuxBlob: true,
	}
	var raced error
	for range maxTries {
		if ctx.Err() != nil {
			return evidence.Evidence{}, fmt.Errorf("SNP report: %w", context.Cause(ctx))
		}
		resp, err := report.Get(d.client, req)
		if _, race := errors.AsType[*report.GenerationErr](err); race {
			raced = err
			continue
		}
		if err != nil {
			return evidence.Evidence{}, fmt.Errorf("SNP report: %w", err)
		}
		return check(resp, reportData)
	}
	return evidence.Evidence{}, fmt.Errorf("SNP report: entry changed under each of %d tries: %w", maxTries, raced)
}

// check finds answers that no verifier would take, where the error can still name the cause.
func check(resp *report.Response, reportData [64]byte) (evidence.Evidence, error) {
	if p := strings.TrimSpace(resp.Provider); p != snpProvider {
		return evidence.Evidence{}, fmt.Errorf("SNP report: provider is %q now, want %q", p, snpProvider)
	}
	r, err := evidence.ParseSNP(resp.OutBlob)
	if err != nil {
		return evidence.Evidence{}, err
	}
	if r.ReportData != reportData {
		return evidence.Evidence{}, errors.New("SNP report: it carries other report data than was asked for")
	}
	if r.VMPL != 0 {
		return evidence.Evidence{}, fmt.Errorf("SNP report: VMPL %d, want 0", r.VMPL)
	}
	if n := len(resp.AuxBlob); n > maxAux {
		return evidence.Evidence{}, fmt.Errorf("SNP certificate table: %d bytes, limit %d", n, maxAux)
	}
	return evidence.Evidence{Kind: evidence.SNP, Report: resp.OutBlob, Aux: resp.AuxBlob}, nil
}
