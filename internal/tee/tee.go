// Package tee is the seam between PID 1 and the hardware that vouches for it.
package tee

import (
	"context"
	"errors"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A Device produces evidence. There is one per boot.
type Device interface {
	Kind() evidence.Kind
	// Evidence asks the hardware to sign reportData: 64 bytes, shorter values padded with zeros at the end.
	Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error)
}

// A Measurer is a Device with a register that the guest itself can extend, to tie an initdata document to its evidence
// (wire/SPEC.md §3): PCR 8 on Azure, RTMR3 of TDX where the kernel offers it.
type Measurer interface {
	// Measure extends the register with the SHA-256 digest of the document, once, from zero, and names it
	// (evidence.PCR8, evidence.RTMR3). A register that is not zero is an error. The error wraps ErrNotFound if the
	// kernel offers no such register.
	Measure(ctx context.Context, digest [32]byte) (register string, err error)
}

// ErrNotFound says that this sort of hardware is absent, as opposed to present and broken.
var ErrNotFound = errors.New("no such TEE")

// A Driver opens one sort of Device. Open returns an error that wraps ErrNotFound if the hardware is absent.
type Driver struct {
	Name string
	Open func() (Device, error)
}

// Open returns the device of the first driver whose hardware is there. Hardware that is there and broken is an
// error: nothing falls through to a weaker driver. If there is none, the error wraps ErrNotFound and says what each
// driver saw.
func Open(drivers []Driver) (Device, error) {
	absent := []error{ErrNotFound}
	for _, d := range drivers {
		dev, err := d.Open()
		if err == nil {
			return dev, nil
		}
		err = fmt.Errorf("%s: %w", d.Name, err)
		if !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		absent = append(absent, err)
	}
	return nil, errors.Join(absent...)
}
