package mkimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

// A Stub is systemd's EFI stub, which starts the kernel of a UKI.
type Stub struct {
	Suite   string `json:"suite"` // of Debian
	Package string `json:"package"`
	Version string `json:"package_version,omitempty"` // absent when a stub was given by path and is not the pinned one
	SHA256  string `json:"sha256"`
	Label   string `json:"label"` // Pinned or Unpinned
}

// stubPin is the stub of every production image. From 257 on the stub takes no command line but its own in a confidential
// VM, and measures into RTMRs as into PCRs.
var stubPin = Stub{"trixie", "systemd-boot-efi", "257.13-1~deb13u1", "9c623743834bb904a3cb941092cffc958c31230263ce896d332a75e9ec48aa85", Pinned}

const stubPath = "usr/lib/systemd/boot/efi/linuxx64.efi.stub" // in the package

// stub returns the stub to build with, from o.Stub, the cache or Debian's archive. Without simulation that is the pinned
// one or an error.
func (o Options) stub(ctx context.Context) ([]byte, *Stub, error) {
	if o.Stub != "" {
		b, err := os.ReadFile(o.Stub)
		if err != nil {
			return nil, nil, fmt.Errorf("EFI stub: %w", err)
		}
		s, err := o.judgeStub(b, "")
		return b, s, err
	}
	cached := filepath.Join(o.Cache, "stub", stubPin.SHA256)
	if b, err := os.ReadFile(cached); err == nil && hexSum(b) == stubPin.SHA256 {
		return b, new(stubPin), nil
	}
	b, version, err := o.fetchStub(ctx)
	if err != nil {
		return nil, nil, err
	}
	s, err := o.judgeStub(b, version)
	if err != nil {
		return nil, nil, err
	}
	if s.Label == Pinned {
		if err := os.MkdirAll(filepath.Dir(cached), 0o755); err != nil {
			return nil, nil, err
		}
		if err := writeFile(cached, b); err != nil {
			return nil, nil, err
		}
	} else {
		fmt.Fprintf(o.Progress, "UKI: the archive no longer serves %s %s; taking %s, unpinned\n", stubPin.Package, stubPin.Version, version)
	}
	return b, s, nil
}

// judgeStub says what stub b is. version is that of the package, "" if b was given by path.
func (o Options) judgeStub(b []byte, version string) (*Stub, error) {
	sum := hexSum(b)
	switch {
	case sum == stubPin.SHA256:
		return new(stubPin), nil
	case version == stubPin.Version:
		return nil, fmt.Errorf("the EFI stub of %s %s has sha256 %s in this archive, want %s: do not use this archive", stubPin.Package, version, sum, stubPin.SHA256)
	case o.simulation():
		return &Stub{stubPin.Suite, stubPin.Package, version, sum, Unpinned}, nil
	case version != "":
		return nil, fmt.Errorf("%w %s %s of Debian %s, whose EFI stub a production image is built with, but %s: give its linuxx64.efi.stub "+
			"(sha256 %s) with --stub, or build with --formats none", ErrNotServed, stubPin.Package, stubPin.Version, stubPin.Suite, version, stubPin.SHA256)
	}
	return nil, fmt.Errorf("EFI stub %s has sha256 %s; a production image is built with that of %s %s only, which has %s",
		o.Stub, sum, stubPin.Package, stubPin.Version, stubPin.SHA256)
}

// fetchStub unpacks the package that the archive has today, and keeps nothing of it.
func (o Options) fetchStub(ctx context.Context) (b []byte, version string, err error) {
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, "", err
	}
	tmp, err := os.MkdirTemp(o.Cache, "stub-*")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(tmp)
	root, err := debian.Fetch(ctx, tmp, stubPin.Suite, []string{stubPin.Package}, o.Progress)
	if errors.Is(err, debian.ErrNotServed) {
		return nil, "", fmt.Errorf("%w the EFI stub: give linuxx64.efi.stub of %s %s (sha256 %s) with --stub, or build with --formats none: %w",
			ErrNotServed, stubPin.Package, stubPin.Version, stubPin.SHA256, err)
	}
	if err != nil {
		return nil, "", err
	}
	path, err := root.File(stubPath)
	if err != nil {
		return nil, "", err
	}
	b, err = os.ReadFile(path)
	return b, root.Version(stubPin.Package), err
}
