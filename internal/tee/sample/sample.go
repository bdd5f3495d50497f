// Package sample is CoCo's sample attester: evidence that anybody can make up and that proves nothing.
//
// Only simulation images have it in their list of drivers, at its end: it is always there, so no driver behind it would be asked.
package sample

import (
	"bytes"
	"context"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// Driver opens the sample attester, which is never absent.
var Driver = tee.Driver{Name: string(evidence.Sample), Open: func() (tee.Device, error) { return device{}, nil }}

type device struct{}

func (device) Kind() evidence.Kind { return evidence.Sample }

// Evidence is the report data itself. Its JSON cuts it to the 48 bytes of a SHA-384 (wire/SPEC.md §2.5).
func (device) Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	if ctx.Err() != nil {
		return evidence.Evidence{}, fmt.Errorf("sample evidence: %w", context.Cause(ctx))
	}
	return evidence.Evidence{Kind: evidence.Sample, Report: bytes.Clone(reportData[:])}, nil
}
