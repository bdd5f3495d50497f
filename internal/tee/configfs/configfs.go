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

// maxTries is how often a report is asked for when its entry changes under the reader.
const maxTries = 5

// A format is what one provider of reports gives, and how it is asked.
type format struct {
	kind     evidence.Kind
	provider string // as the kernel names it
	level    *report.Privilege
	aux      bool
	// check finds answers that no verifier would take, where the error can still name the cause.
	check func(resp *report.Response, reportData [64]byte) (evidence.Evidence, error)
}

// driver opens the device of a format; wrap makes the tee.Device of it.
func driver(f format, wrap func(*device) tee.Device) tee.Driver {
	return tee.Driver{Name: string(f.kind), Open: func() (tee.Device, error) {
		client, err := linuxtsm.MakeClient()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: the kernel has no configfs-tsm reports: %w", tee.ErrNotFound, err)
		}
		if err != nil {
			return nil, err
		}
		d, err := open(client, f)
		if err != nil {
			return nil, err
		}
		return wrap(d), nil
	}}
}

// open finds the provider behind client. It is tee.ErrNotFound if there is none, or one of another TEE; the error then
// names it. No report is made: firmware limits how many it gives in a second.
func open(client configfsi.Client, f format) (*device, error) {
	name, err := provider(client)
	if err != nil {
		return nil, err
	}
	if name != f.provider {
		return nil, fmt.Errorf("%w: reports here come from provider %q, not from %q", tee.ErrNotFound, name, f.provider)
	}
	return &device{f, client}, nil
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

// A device is a provider of reports.
type device struct {
	format
	client configfsi.Client
}

func (d *device) Kind() evidence.Kind { return d.kind }

// Evidence asks the firmware, through the kernel, for a report. If ctx ends while the kernel waits, Evidence returns and
// leaves that wait behind, for nothing can interrupt it.
func (d *device) Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	if ctx.Err() != nil {
		return evidence.Evidence{}, fmt.Errorf("%s report: %w", d.kind, context.Cause(ctx))
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
		return evidence.Evidence{}, fmt.Errorf("%s report: %w", d.kind, context.Cause(ctx))
	}
}

func (d *device) ask(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	req := &report.Request{InBlob: reportData[:], Privilege: d.level, GetAuxBlob: d.aux}
	var raced error
	for range maxTries {
		if ctx.Err() != nil {
			return evidence.Evidence{}, fmt.Errorf("%s report: %w", d.kind, context.Cause(ctx))
		}
		resp, err := report.Get(d.client, req)
		if _, race := errors.AsType[*report.GenerationErr](err); race {
			raced = err
			continue
		}
		if err != nil {
			return evidence.Evidence{}, fmt.Errorf("%s report: %w", d.kind, err)
		}
		if p := strings.TrimSpace(resp.Provider); p != d.provider {
			return evidence.Evidence{}, fmt.Errorf("%s report: provider is %q now, want %q", d.kind, p, d.provider)
		}
		return d.check(resp, reportData)
	}
	return evidence.Evidence{}, fmt.Errorf("%s report: entry changed under each of %d tries: %w", d.kind, maxTries, raced)
}
