// Package vtpm reaches the TEE of an Azure confidential VM, which shows itself only through the vTPM of its paravisor.
//
// The hardware's report is over the paravisor's variable data, which name a key of the vTPM; that key signs the PCRs and
// the report data. What the guest can say for itself is thus a TPM quote, and 48 bytes of report data (wire/SPEC.md §2.3).
package vtpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

const tpmFile = "/dev/tpmrm0"

// refreshPoll is how often the paravisor's report is looked at for what was written, refreshLimit how long at most. Azure
// takes up to three seconds.
const (
	refreshPoll  = 200 * time.Millisecond
	refreshLimit = 30 * time.Second
)

// Drivers of the two sorts of Azure confidential VMs. They belong before configfs.SNP in a list.
var (
	AzSNP = driver(evidence.AzSNPvTPM)
	AzTDX = driver(evidence.AzTDXvTPM)
)

func driver(kind evidence.Kind) tee.Driver {
	return tee.Driver{Name: string(kind), Open: func() (tee.Device, error) {
		tpm, err := openDevice(tpmFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: no TPM: %w", tee.ErrNotFound, err)
		}
		if err != nil {
			return nil, err
		}
		d, err := New(tpm, kind, imdsURL)
		if err != nil {
			return nil, errors.Join(err, tpm.Close())
		}
		return d, nil
	}}
}

// A Device is the vTPM of a paravisor.
type Device struct {
	kind evidence.Kind
	imds imds

	mu  sync.Mutex // one user-data, hence one report at a time
	tpm chip
}

var _ tee.Measurer = (*Device)(nil)

// New finds the paravisor behind a TPM; kind is AzSNPvTPM or AzTDXvTPM, url that of the metadata service, which is not asked
// yet. The error is tee.ErrNotFound if the TPM is no paravisor's, or runs on the other TEE.
func New(tpm Transport, kind evidence.Kind, url string) (*Device, error) {
	d := &Device{kind: kind, imds: newIMDS(url), tpm: chip{tpm}}
	b, err := d.tpm.report()
	if errors.Is(err, errNoIndex) {
		return nil, fmt.Errorf("%w: %w: no Azure confidential VM", tee.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	r, err := evidence.ParseHCL(b)
	if err != nil {
		return nil, err
	}
	if r.Kind != kind {
		return nil, fmt.Errorf("%w: the paravisor's report is of kind %s", tee.ErrNotFound, r.Kind)
	}
	return d, nil
}

func (d *Device) Kind() evidence.Kind { return d.kind }

// Evidence asks for a fresh report of the paravisor and for a quote of its TPM. Both hold the first 48 bytes of the report
// data, for no more fit: all of a hash of RCAR, and three quarters of a receipt's SHA-512. If ctx ends while the TPM works,
// Evidence returns and leaves that wait behind, for nothing can interrupt it.
func (d *Device) Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	ev, err := detach(ctx, func() (evidence.Evidence, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.ask(ctx, reportData[:userData])
	})
	if err != nil {
		return evidence.Evidence{}, fmt.Errorf("%s evidence: %w", d.kind, err)
	}
	return ev, nil
}

func (d *Device) ask(ctx context.Context, data []byte) (evidence.Evidence, error) {
	raw, r, err := d.fresh(ctx, data)
	if err != nil {
		return evidence.Evidence{}, err
	}
	quote, err := d.tpm.quote(data, r.AK)
	if err != nil {
		return evidence.Evidence{}, err
	}
	aux, err := d.vouch(ctx, &r)
	if err != nil {
		return evidence.Evidence{}, err
	}
	return evidence.Evidence{Kind: d.kind, Report: raw, Aux: aux, TPM: quote}, nil
}

// fresh writes data for the paravisor, and waits for the report that carries it.
func (d *Device) fresh(ctx context.Context, data []byte) ([]byte, evidence.HCLReport, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, refreshLimit, fmt.Errorf("%w after %v", context.DeadlineExceeded, refreshLimit))
	defer cancel()
	if err := context.Cause(ctx); err != nil {
		return nil, evidence.HCLReport{}, err
	}
	if err := d.tpm.setUserData(data); err != nil {
		return nil, evidence.HCLReport{}, err
	}
	for {
		raw, err := d.tpm.report()
		if err != nil {
			return nil, evidence.HCLReport{}, err
		}
		r, err := evidence.ParseHCL(raw)
		if err != nil {
			return nil, evidence.HCLReport{}, err
		}
		if r.Kind != d.kind {
			return nil, evidence.HCLReport{}, fmt.Errorf("the paravisor's report is of kind %s now", r.Kind)
		}
		if bytes.HasPrefix(r.UserData, data) {
			return raw, r, nil
		}
		select {
		case <-time.After(refreshPoll):
		case <-ctx.Done():
			return nil, evidence.HCLReport{}, fmt.Errorf("the paravisor gave no report over what was written to NV index 0x%08x: %w",
				nvUserData, context.Cause(ctx))
		}
	}
}

// vouch gets what ties the report to the maker of the hardware, and checks that the report is tied to the TPM.
func (d *Device) vouch(ctx context.Context, r *evidence.HCLReport) ([]byte, error) {
	if d.kind == evidence.AzSNPvTPM {
		snp, err := evidence.ParseSNP(r.Hardware)
		if err != nil {
			return nil, err
		}
		if err := vouchedBy(r, snp.ReportData); err != nil {
			return nil, err
		}
		return d.imds.vcek(ctx)
	}
	quote, err := d.imds.tdQuote(ctx, r.Hardware)
	if err != nil {
		return nil, err
	}
	td, err := evidence.ParseTDX(quote)
	if err != nil {
		return nil, err
	}
	return quote, vouchedBy(r, td.Report.ReportData)
}

// vouchedBy is an error unless data, the report data of the hardware, is over the variable data.
func vouchedBy(r *evidence.HCLReport, data [64]byte) error {
	if sum := sha256.Sum256(r.VarData); !bytes.Equal(data[:sha256.Size], sum[:]) {
		return errors.New("HCL report: the hardware's report is over other variable data")
	}
	return nil
}

// Measure extends PCR 8, which must still be zero, and PCR 14: brokers look at the one, and the other is for events of the
// guest.
func (d *Device) Measure(ctx context.Context, digest [32]byte) (register string, err error) {
	_, err = detach(ctx, func() (struct{}, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return struct{}{}, d.measure(digest)
	})
	if err != nil {
		return "", err
	}
	return evidence.PCR8, nil
}

func (d *Device) measure(digest [32]byte) error {
	before, err := d.tpm.pcr(8)
	if err != nil {
		return err
	}
	if before != [32]byte{} {
		return fmt.Errorf("PCR 8 is %x before this boot has extended it: something else measures into it", before)
	}
	for _, slot := range []uint{8, 14} {
		if err := d.tpm.extend(slot, digest); err != nil {
			return err
		}
	}
	after, err := d.tpm.pcr(8)
	if err != nil {
		return err
	}
	if want := sha256.Sum256(append(before[:], digest[:]...)); after != want {
		return fmt.Errorf("PCR 8 is %x after it was extended, want %x", after, want)
	}
	return nil
}

// detach runs f until it is done or ctx is.
func detach[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	answers := make(chan answer, 1)
	var none T
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	go func() {
		v, err := f()
		answers <- answer{v, err}
	}()
	select {
	case a := <-answers:
		return a.v, a.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}
