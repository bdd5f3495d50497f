// Package fake is a TEE for unit tests: what it says, no verifier takes.
package fake

import (
	"bytes"
	"context"
	"sync"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Device is a tee.Device that gives evidence of kind "sample", whose Report is the report data itself.
type Device struct {
	Err   error      // what Evidence returns, if it is set
	Asked [][64]byte // every report data so far; read it when nobody asks any more

	mu sync.Mutex // of Asked
}

// Kind is evidence.Sample.
func (*Device) Kind() evidence.Kind { return evidence.Sample }

// Evidence notes that it was asked, whatever it answers.
func (d *Device) Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Asked = append(d.Asked, reportData)
	if d.Err != nil {
		return evidence.Evidence{}, d.Err
	}
	if err := context.Cause(ctx); err != nil {
		return evidence.Evidence{}, err
	}
	return evidence.Evidence{Kind: evidence.Sample, Report: bytes.Clone(reportData[:])}, nil
}
