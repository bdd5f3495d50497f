package object

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	chunkSize = 512 << 10 // bytes: hashing beside writing pays for its goroutine many times over

	// fetchTries bounds the requests for one object that bring no new byte.
	fetchTries = 3

	// stallLimit is how long a server may send nothing at all before it is asked anew.
	stallLimit = time.Minute
)

// fetch copies the object into the spool, taking up a broken transfer where it broke, and returns its SHA-256.
func (o *Object) fetch(ctx context.Context, spool *os.File, progress func(int64)) ([]byte, error) {
	w := &spoolWriter{file: spool, sum: sha256.New(), want: o.Size, progress: progress, buf: make([]byte, chunkSize)}
	var last error
	for idle := 0; w.size < o.Size; idle++ {
		if idle == fetchTries {
			return nil, fmt.Errorf("%w: %d of %d bytes came: %w", ErrTruncated, w.size, o.Size, last)
		}
		start := w.size
		once, stop := context.WithCancelCause(ctx)
		body, err := o.content(once, start)
		if err != nil {
			stop(nil)
			return nil, err // asking again was the client's
		}
		stalled := time.AfterFunc(o.client.stall, func() { stop(errStalled) })
		last = w.copy(&livelyReader{body, stalled, o.client.stall})
		if once.Err() != nil {
			last = context.Cause(once)
		}
		stalled.Stop()
		body.Close()
		stop(nil)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(last, errSpool), errors.Is(last, ErrChanged):
			return nil, last
		}
		if w.size > start {
			idle = -1
		}
	}
	return w.sum.Sum(nil), nil
}

// content opens the object at an offset.
func (o *Object) content(ctx context.Context, from int64) (io.ReadCloser, error) {
	h := http.Header{}
	if from > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", from))
		if o.etag != "" {
			h.Set("If-Range", o.etag)
		}
	}
	resp, err := o.client.get(ctx, h)
	if err != nil {
		return nil, err
	}
	size := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		size, err = contentRange(resp, from)
	default:
		err = statusError(resp)
	}
	e := resp.Header.Get("Etag")
	switch {
	case err != nil:
	case size >= 0 && size != o.Size || o.etag != "" && e != "" && e != o.etag:
		err = fmt.Errorf("%w: it was %d bytes with ETag %s and is %d with %.80s; run again", ErrChanged, o.Size, o.etag, size, e)
	case resp.StatusCode == http.StatusOK && from > 0: // the server does not do ranges: read again what is already there
		_, err = io.CopyN(io.Discard, resp.Body, from)
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}

var errStalled = errors.New("the server sent nothing for too long")

// livelyReader puts a timer off with every byte.
type livelyReader struct {
	io.Reader
	timer *time.Timer
	limit time.Duration
}

func (r *livelyReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if n > 0 {
		r.timer.Reset(r.limit)
	}
	return n, err
}

// errSpool is that the spool itself cannot be written: fetching again is no use.
var errSpool = errors.New("spool")

// spoolWriter appends to the spool while the digest is computed beside it.
type spoolWriter struct {
	file       *os.File
	sum        hash.Hash
	size, want int64
	progress   func(int64)
	buf        []byte
}

// copy appends r. One that goes on behind the size that the server has told is ErrChanged.
func (w *spoolWriter) copy(r io.Reader) error {
	for {
		n, err := fill(r, w.buf)
		if w.size+int64(n) > w.want {
			return fmt.Errorf("%w: it is longer than the %d bytes that the server told", ErrChanged, w.want)
		}
		if e := w.write(w.buf[:n]); e != nil {
			return fmt.Errorf("%w: %w", errSpool, e)
		}
		if err == io.EOF {
			return io.ErrUnexpectedEOF // unless that was all, which fetch sees
		}
		if err != nil {
			return err
		}
	}
}

func (w *spoolWriter) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	var hashing sync.WaitGroup
	hashing.Go(func() { w.sum.Write(b) })
	_, err := w.file.Write(b)
	hashing.Wait()
	w.size += int64(len(b))
	w.progress(int64(len(b)))
	return err
}

// fill reads until b is full or r fails, and passes on r's own error.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}
