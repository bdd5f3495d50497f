package image

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/pairhash"
)

// fetchTries bounds the requests for one blob that bring no new byte.
const fetchTries = 3

// A blob is a layer's, on its way from the registry into a stream.
type blob struct {
	*stream
	layer    *Layer
	reg      *registry
	store    store
	sum      *digester // SHA-256 and, for an encrypted layer, HMAC
	size     int64     // bytes that have come
	progress func(int64)
}

// run fetches the blob. It fails if size, digest or HMAC are not right.
func (b *blob) run(ctx context.Context, k *layerKey) error {
	var h summer = sha256.New()
	if k != nil {
		h = withMAC{pairhash.New(k.sym[:])}
	}
	b.sum = newStreamDigester(h)
	defer b.sum.finish()
	if err := b.fetch(ctx); err != nil {
		return err
	}
	sum := b.sum.finish()
	if got := formatDigest(sum[:sha256.Size]); got != b.layer.Digest {
		return fmt.Errorf("%w: the blob is %s, the manifest says %s", ErrDigest, got, b.layer.Digest)
	}
	if k != nil && !hmac.Equal(sum[sha256.Size:], b.layer.enc.mac[:]) {
		return fmt.Errorf("%w: the ciphertext is not what its key's owner made", ErrMAC)
	}
	return nil
}

// withMAC is a pair as one sum: SHA-256, then HMAC-SHA-256.
type withMAC struct{ *pairhash.Pair }

func (p withMAC) Sum(b []byte) []byte {
	sum, mac := p.Sums()
	return slices.Concat(b, sum[:], mac[:])
}

// fetch sends the blob's chunks, taking up a broken transfer where it broke.
func (b *blob) fetch(ctx context.Context) error {
	var last error
	for idle := 0; idle < fetchTries; idle++ {
		start := b.size
		c, err := b.store.take(ctx) // before the request: who waits for memory need not hold a connection
		if err != nil {
			return err
		}
		body, err := b.reg.blob(ctx, b.layer.Digest, start, b.layer.Size)
		if err != nil {
			c.home <- c
			if start == 0 {
				return err // the registry's own word; retries were the transport's
			}
			last = err
			continue
		}
		err = b.copy(ctx, body, c)
		body.Close()
		_, over := errors.AsType[*http.MaxBytesError](err)
		switch {
		case err == nil && b.size == b.layer.Size:
			return nil
		case over || errors.Is(err, ErrDigest):
			return fmt.Errorf("%w: the blob is longer than the %d bytes of its descriptor", ErrDigest, b.layer.Size)
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			err = io.ErrUnexpectedEOF
		}
		last = err
		if b.size > start {
			idle = -1
		}
	}
	return fmt.Errorf("%w: %d of %d bytes came: %w", ErrTruncated, b.size, b.layer.Size, last)
}

// copy sends what r has. A blob that is longer than its descriptor says is ErrDigest.
func (b *blob) copy(ctx context.Context, r io.Reader, c *chunk) error {
	for {
		err := c.fill(r)
		n := int64(len(c.data))
		switch {
		case b.size+n > b.layer.Size:
			c.home <- c
			return ErrDigest
		case n == 0:
			c.home <- c
		default:
			b.send(c, b.sum)
			b.size += n
			b.progress(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if c, err = b.store.take(ctx); err != nil {
			return err
		}
	}
}
