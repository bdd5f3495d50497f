package image

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// fetchTries bounds the requests for one blob that bring no new byte.
const fetchTries = 3

// aheadLayers is how many layers of an image are on the wire at once, the one being unpacked included.
const aheadLayers = 4

// fetcher brings the layers of one image, all in the order in which they are due, a few ahead.
type fetcher struct {
	blobs []*blob // those whose turn has not come
	slots chan struct{}
	own   chan *chunk
}

// A blob is one layer on the wire. Its stream ends well only if size, digest and HMAC are right.
type blob struct {
	stream
	due chan struct{} // closed when the layer's turn has come, and it may use the image's own chunks
}

func (i *Image) fetchAll(ctx context.Context, keys []*layerKey, progress func(int64)) *fetcher {
	f := &fetcher{slots: make(chan struct{}, aheadLayers), own: newChunks(ownChunks)}
	for range i.Layers {
		f.blobs = append(f.blobs, &blob{stream{chunks: make(chan *chunk, aheadChunks+ownChunks)}, make(chan struct{})})
	}
	blobs := f.blobs
	go func() {
		for n, b := range blobs {
			select {
			case f.slots <- struct{}{}:
			case <-ctx.Done():
				b.write(ctx.Err)
				continue
			}
			b.write(func() error {
				w := &blobFetch{blob: b, layer: &i.Layers[n], reg: i.reg, ahead: i.mem.ahead, own: f.own, progress: progress}
				return w.run(ctx, keys[n])
			})
		}
	}()
	return f
}

// turn gives the next layer, when the one before is done.
func (f *fetcher) turn() *stream {
	b := f.blobs[0]
	f.blobs = f.blobs[1:]
	close(b.due)
	return &b.stream
}

// done is called when a layer's stream has been closed.
func (f *fetcher) done() { <-f.slots }

// close waits for what turn has not given. The context must have ended.
func (f *fetcher) close() {
	for _, b := range f.blobs {
		b.close()
	}
}

// blobFetch fills one blob's stream.
type blobFetch struct {
	*blob
	layer      *Layer
	reg        *registry
	ahead, own chan *chunk
	sum, mac   *digester // mac nil for a plain layer
	size       int64     // bytes that have come
	progress   func(int64)
}

func (w *blobFetch) run(ctx context.Context, k *layerKey) error {
	w.sum = newDigester(sha256.New(), cap(w.chunks))
	defer w.sum.finish()
	if k != nil {
		w.mac = newDigester(hmac.New(sha256.New, k.sym[:]), cap(w.chunks))
		defer w.mac.finish()
	}
	err := w.fetch(ctx)
	sum := w.sum.finish()
	var mac []byte
	if k != nil {
		mac = w.mac.finish()
	}
	if err != nil {
		return err
	}
	if got := formatDigest(sum); got != w.layer.Digest {
		return fmt.Errorf("%w: the blob is %s, the manifest says %s", ErrDigest, got, w.layer.Digest)
	}
	if k != nil && !hmac.Equal(mac, w.layer.enc.mac[:]) {
		return fmt.Errorf("%w: the ciphertext is not what its key's owner made", ErrMAC)
	}
	return nil
}

// fetch sends the blob's chunks, taking up a broken transfer where it broke.
func (w *blobFetch) fetch(ctx context.Context) error {
	var last error
	for idle := 0; idle < fetchTries; idle++ {
		start := w.size
		c, err := w.chunk(ctx) // before the request: who waits for memory need not hold a connection
		if err != nil {
			return err
		}
		body, err := w.reg.blob(ctx, w.layer.Digest, start, w.layer.Size)
		if err != nil {
			c.home <- c
			if start == 0 {
				return err // the registry's own word; retries were the transport's
			}
			last = err
			continue
		}
		err = w.copy(ctx, body, c)
		body.Close()
		_, over := errors.AsType[*http.MaxBytesError](err)
		switch {
		case err == nil && w.size == w.layer.Size:
			return nil
		case over || errors.Is(err, ErrDigest):
			return fmt.Errorf("%w: the blob is longer than the %d bytes of its descriptor", ErrDigest, w.layer.Size)
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			err = io.ErrUnexpectedEOF
		}
		last = err
		if w.size > start {
			idle = -1
		}
	}
	return fmt.Errorf("%w: %d of %d bytes came: %w", ErrTruncated, w.size, w.layer.Size, last)
}

// copy sends what r has. A blob that is longer than its descriptor says is ErrDigest.
func (w *blobFetch) copy(ctx context.Context, r io.Reader, c *chunk) error {
	for {
		err := c.fill(r)
		n := int64(len(c.data))
		switch {
		case w.size+n > w.layer.Size:
			c.home <- c
			return ErrDigest
		case n == 0:
			c.home <- c
		default:
			w.send(c, w.sum, w.mac)
			w.size += n
			w.progress(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if c, err = w.chunk(ctx); err != nil {
			return err
		}
	}
}

// chunk waits for memory: what layers ahead share or, once the layer is due, its image's own as well.
func (w *blobFetch) chunk(ctx context.Context) (*chunk, error) {
	select {
	case <-w.due:
		return take(ctx, w.ahead, w.own, nil)
	default:
	}
	c, err := take(ctx, w.ahead, nil, w.due)
	if c == nil && err == nil {
		return take(ctx, w.ahead, w.own, nil)
	}
	return c, err
}
