package image

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"sync"
)

const (
	chunkSize = 512 << 10 // bytes: hashing in parallel pays for its goroutines many times over

	// fetchTries bounds the requests for one blob that bring no new byte.
	fetchTries = 3
)

// fetcher brings the layers of one image, in order, a few ahead of the caller.
type fetcher struct {
	blobs []chan fetched // each gets exactly one value
	slots chan struct{}
	taken int
}

type fetched struct {
	blob *os.File
	err  error
	died any
}

func (i *Image) fetchAll(ctx context.Context, dir string, keys []*layerKey, progress func(int64)) *fetcher {
	f := &fetcher{
		blobs: make([]chan fetched, len(i.Layers)),
		slots: make(chan struct{}, fetchAhead),
	}
	for n := range f.blobs {
		f.blobs[n] = make(chan fetched, 1)
	}
	go func() {
		for n := range i.Layers {
			select {
			case f.slots <- struct{}{}:
			case <-ctx.Done():
				f.blobs[n] <- fetched{err: ctx.Err()}
				continue
			}
			go func() {
				var got fetched
				defer func() { f.blobs[n] <- got }()
				defer carry(&got.died)
				got.blob, got.err = i.reg.spool(ctx, dir, &i.Layers[n], keys[n], progress)
			}()
		}
	}()
	return f
}

// next waits for the next layer's verified blob; the caller gives it back with done.
func (f *fetcher) next() (*os.File, error) {
	got := <-f.blobs[f.taken]
	f.taken++
	if got.died != nil {
		panic(got.died)
	}
	return got.blob, got.err
}

func (f *fetcher) done(blob *os.File) {
	blob.Close()
	<-f.slots
}

// drain waits for whatever next has not taken. Nothing of the fetcher runs afterwards.
func (f *fetcher) drain() {
	for f.taken < len(f.blobs) {
		if blob, err := f.next(); err == nil {
			f.done(blob)
		}
	}
}

// spool fetches a layer into a nameless file below dir, as it is: ciphertext if it is
// encrypted. The file is returned only if size, digest and HMAC are right.
func (r *registry) spool(ctx context.Context, dir string, l *Layer, k *layerKey, progress func(int64)) (_ *os.File, err error) {
	file, err := os.CreateTemp(dir, ".spool-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	if err := os.Remove(file.Name()); err != nil { // from here on it dies with its descriptor
		return nil, err
	}

	w := &spoolWriter{file: file, sum: sha256.New(), progress: progress, buf: make([]byte, chunkSize)}
	if k != nil {
		w.mac = hmac.New(sha256.New, k.sym[:])
	}
	if err := r.fetch(ctx, l, w); err != nil {
		return nil, err
	}
	if got := formatDigest(w.sum.Sum(nil)); got != l.Digest {
		return nil, fmt.Errorf("%w: the blob is %s, the manifest says %s", ErrDigest, got, l.Digest)
	}
	if k != nil && !hmac.Equal(w.mac.Sum(nil), l.enc.mac[:]) {
		return nil, fmt.Errorf("%w: the ciphertext is not what its key's owner made", ErrMAC)
	}
	return file, nil
}

// fetch copies the blob to w, taking up a broken transfer where it broke.
func (r *registry) fetch(ctx context.Context, l *Layer, w *spoolWriter) error {
	var last error
	for idle := 0; idle < fetchTries; idle++ {
		start := w.size
		body, err := r.blob(ctx, l.Digest, start, l.Size)
		if err != nil {
			if start == 0 {
				return err // the registry's own word; retries were the transport's
			}
			last = err
			continue
		}
		err = w.copy(body, l.Size)
		body.Close()
		_, over := errors.AsType[*http.MaxBytesError](err)
		switch {
		case err == nil && w.size == l.Size:
			return nil
		case over || errors.Is(err, ErrDigest):
			return fmt.Errorf("%w: the blob is longer than the %d bytes of its descriptor", ErrDigest, l.Size)
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			err = io.ErrUnexpectedEOF
		}
		last = err
		if w.fatal {
			break
		}
		if w.size > start {
			idle = -1
		}
	}
	if w.fatal {
		return fmt.Errorf("spool: %w", last)
	}
	return fmt.Errorf("%w: %d of %d bytes came: %w", ErrTruncated, w.size, l.Size, last)
}

// spoolWriter appends to the spool while digest and HMAC are computed beside each other.
type spoolWriter struct {
	file     *os.File
	sum, mac hash.Hash // mac nil for a plain layer
	size     int64
	progress func(int64)
	buf      []byte
	fatal    bool // the spool itself cannot be written: fetching again is no use
}

// copy appends r up to max bytes in all. A longer r is ErrDigest.
func (w *spoolWriter) copy(r io.Reader, max int64) error {
	for {
		n, err := fill(r, w.buf)
		b := w.buf[:n]
		if w.size+int64(n) > max {
			return ErrDigest
		}
		if n > 0 {
			if err := w.write(b); err != nil {
				w.fatal = true
				return err
			}
			w.size += int64(n)
			w.progress(int64(n))
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *spoolWriter) write(b []byte) error {
	var both sync.WaitGroup
	both.Go(func() { w.sum.Write(b) })
	if w.mac != nil {
		both.Go(func() { w.mac.Write(b) })
	}
	_, err := w.file.Write(b)
	both.Wait()
	return err
}
