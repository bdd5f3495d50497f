package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/sink"
)

// A parcel is what is delivered: the result as a file, and its receipt.
type parcel struct {
	path    string
	digests result.Digests
	receipt []byte
}

// checkSinks judges, before anything runs, what the manifest itself says of object stores.
func checkSinks(sinks []manifest.Sink, http bool) error {
	for i, s := range sinks {
		if s.Upload == nil {
			continue
		}
		if _, err := sink.ParseUpload(s.Upload, http); err != nil {
			return fmt.Errorf("results.sinks[%d]: %w", i, err)
		}
	}
	return nil
}

// sinkWants are the uploads that brokers keep.
func (r *run) sinkWants() []kbs.Want {
	var wants []kbs.Want
	for _, s := range r.doc.Results.Sinks {
		if s.At != nil {
			wants = append(wants, want(*s.At))
		}
	}
	return wants
}

// keepUploads reads them while the grant is there: it does not outlive pull.
func (r *run) keepUploads() (err error) {
	r.uploads = make([]*sink.Upload, len(r.doc.Results.Sinks))
	for i, s := range r.doc.Results.Sinks {
		doc := s.Upload
		if s.At != nil {
			doc = r.grant.Key(s.At.Broker, s.At.Path)
		}
		if doc == nil {
			continue
		}
		if r.uploads[i], err = sink.ParseUpload(doc, r.opts.Allow.Has(cmdline.AllowHTTP)); err != nil {
			return because(result.Denied, fmt.Errorf("results.sinks[%d]: %s: %w", i, s, err))
		}
	}
	return nil
}

// openSink is where the result goes that the manifest names i-th.
func (r *run) openSink(i int) (sink.Sink, error) {
	switch s := r.doc.Results.Sinks[i]; s.Type {
	case manifest.UploadSink:
		t, err := r.fileTransport()
		if err != nil {
			return nil, err
		}
		return r.uploads[i].Open(t), nil
	case manifest.OCISink:
		o, err := r.imageOptions(s.URI)
		if err != nil {
			return nil, err
		}
		return sink.OpenOCI(s.URI, o)
	default:
		return sink.Host{Peer: r.peer}, nil
	}
}

// deliver gives the result to every sink at the same time, and then to each that took it the receipt. It fails when none took
// the result. The host hears what ran in any case, and the owner what went wrong.
func (r *run) deliver(ctx context.Context) error {
	f, err := os.Open(r.parcel.path)
	if err != nil {
		return because(result.Internal, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return because(result.Internal, err)
	}
	res := sink.Result{ReaderAt: f, Name: result.ClearName, Size: fi.Size(), SHA256: r.parcel.digests.Sealed}
	if r.sealed() {
		res.Name = result.SealedName
	}
	var all sync.WaitGroup
	sinks := r.doc.Results.Sinks
	failed := make([]error, len(sinks))
	taken, told := make([]bool, len(sinks)), make([]bool, len(sinks))
	for i, s := range sinks {
		all.Go(func() {
			failed[i] = guarded(func() error {
				ctx, cancel := context.WithTimeout(ctx, s.Deadline)
				defer cancel()
				to, err := r.openSink(i)
				if err != nil {
					return err
				}
				if err := to.PutResult(ctx, res); err != nil {
					return err
				}
				taken[i] = true
				if err := to.PutReceipt(ctx, r.parcel.receipt); err != nil {
					return fmt.Errorf("it took the result, and not the receipt: %w", err)
				}
				told[i] = s.Type == manifest.VsockSink
				return nil
			})()
		})
	}
	all.Wait()
	return r.delivered(ctx, failed, taken, told)
}

// delivered tells what became of it: the host gets the receipt, unless it has it, and when a sink failed the sealed log, which
// says why: the result was sealed before.
func (r *run) delivered(ctx context.Context, failed []error, taken, told []bool) error {
	any, hostKnows := false, false
	var errs []error
	for i, s := range r.doc.Results.Sinks {
		any, hostKnows = any || taken[i], hostKnows || told[i]
		if failed[i] != nil {
			errs = append(errs, fmt.Errorf("sink %s: %w", s, failed[i]))
			r.private.Error("sink", "at", s.String(), "error", failed[i])
		} else {
			r.private.Info("sink", "at", s.String(), "took", "result and receipt")
		}
	}
	// A time of its own: a sink that took all there was must not keep the receipt back.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportLimit)
	defer cancel()
	if !hostKnows {
		if err := r.peer.PutReceipt(ctx, r.parcel.receipt); err != nil {
			r.private.Error("receipt to the host", "error", err)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	if err := r.sendLate(ctx); err != nil {
		r.private.Error("log to the host", "error", err)
	}
	if any {
		return nil
	}
	return errors.Join(errs...)
}

// sendLate gives the host the sealed log of what went wrong after the result was sealed.
func (r *run) sendLate(ctx context.Context) error {
	path := filepath.Join(r.dir, "log")
	if _, err := r.pack(path, false); err != nil {
		return err
	}
	b, err := os.ReadFile(path) // at most 33 MiB of logs, compressed
	if err != nil {
		return err
	}
	return r.peer.PutLog(ctx, bytes.NewReader(b), int64(len(b)))
}
