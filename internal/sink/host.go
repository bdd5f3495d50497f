package sink

import (
	"context"
	"fmt"
	"io"
)

// A Peer is the host at the other end of the vsock.
type Peer interface {
	PutResult(ctx context.Context, r io.Reader, size int64) error
	PutReceipt(ctx context.Context, receipt []byte) error
}

// hostTries is how often the host is tried: it is on the same machine, and what it refuses it may well refuse for good.
const hostTries = 3

// Host is the sink of who started the machine.
type Host struct{ Peer Peer }

// PutResult hands the result over.
func (h Host) PutResult(ctx context.Context, r Result) error {
	return h.retry(ctx, func(ctx context.Context) error {
		return h.Peer.PutResult(ctx, io.NewSectionReader(r, 0, r.Size), r.Size)
	})
}

// PutReceipt hands the receipt over.
func (h Host) PutReceipt(ctx context.Context, b []byte) error {
	return h.retry(ctx, func(ctx context.Context) error { return h.Peer.PutReceipt(ctx, b) })
}

func (h Host) retry(ctx context.Context, try func(context.Context) error) error {
	n := 0
	return Retry(ctx, func(ctx context.Context) error {
		err := try(ctx)
		if n++; err != nil && n == hostTries {
			return final{fmt.Errorf("%w (%d tries)", err, n)}
		}
		return err
	})
}

// final is an error that another try will not better.
type final struct{ error }

func (f final) Unwrap() error { return f.error }
