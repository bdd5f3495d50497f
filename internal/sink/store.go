package sink

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/ampoule-vm/ampoule/image"
)

const (
	maxReply = 64 << 10    // bytes of a reply that are read
	maxStall = time.Minute // between two pieces of a body that a server takes
)

// A Result is a sealed result as a file, which may be read again from anywhere.
type Result struct {
	io.ReaderAt
	Name   string   // result.tar.zst.age
	Size   int64    // bytes
	SHA256 [32]byte // of all of it
}

// A Sink takes a result, and then its receipt. Both are tried anew until ctx ends, unless it is no use.
type Sink interface {
	PutResult(context.Context, Result) error
	PutReceipt(context.Context, []byte) error
}

// Open makes the sink of an upload. t carries the requests.
func (u *Upload) Open(t http.RoundTripper) Sink { return &store{u, t, maxStall} }

type store struct {
	*Upload
	transport http.RoundTripper
	stall     time.Duration
}

func (s *store) PutResult(ctx context.Context, r Result) error { return s.method.put(ctx, s, r) }

func (s *store) PutReceipt(ctx context.Context, b []byte) error {
	if s.receipt == nil {
		return nil
	}
	h := http.Header{}
	if isAzure(s.receipt) {
		h.Set(blobType, blockBlob)
	}
	return s.put(ctx, request{http.MethodPut, s.receipt, h, bytes.NewReader(b), 0, int64(len(b))})
}

// A request sends size bytes of body, from an offset on.
type request struct {
	method     string
	url        *url.URL
	header     http.Header
	body       io.ReaderAt
	from, size int64
}

func (q request) String() string { return q.method + " " + shown(q.url) }

// shown is a URL as errors have it: what is behind the ? may be a signature.
func shown(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }

// An answer is what a server said.
type answer struct {
	status int
	header http.Header
	body   string
}

// put sends one request until it is taken.
func (s *store) put(ctx context.Context, q request) error {
	return Retry(ctx, func(ctx context.Context) error {
		_, err := s.send(ctx, q)
		return err
	})
}

// send is once; another status than 2xx is an error.
func (s *store) send(ctx context.Context, q request) (answer, error) {
	a, err := s.once(ctx, q)
	if err == nil && a.status/100 != 2 {
		err = a.refusal(q)
	}
	return a, err
}

func (a answer) refusal(q request) error {
	return &statusError{q.String(), a.status, codeIn(a.body), image.RetryAfter(a.header, time.Now())}
}

// once makes one request. It does not go through http.Client, which would follow redirects and quote the URL in errors.
func (s *store) once(ctx context.Context, q request) (a answer, err error) {
	w, ctx := watch(ctx, s.stall)
	defer w.stop()
	req := (&http.Request{Method: q.method, URL: q.url, Host: q.url.Host, Header: http.Header{}, Body: http.NoBody}).WithContext(ctx)
	maps.Copy(req.Header, q.header)
	if q.size > 0 {
		req.ContentLength = q.size
		req.GetBody = func() (io.ReadCloser, error) { // a connection may turn out to have been closed
			return io.NopCloser(w.body(io.NewSectionReader(q.body, q.from, q.size))), nil
		}
		req.Body, _ = req.GetBody()
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		return a, fmt.Errorf("%s: %w", q, w.explain(err))
	}
	defer resp.Body.Close()
	a = answer{status: resp.StatusCode, header: resp.Header}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil && a.status/100 == 2 {
		return a, fmt.Errorf("%s: %w", q, err)
	}
	a.body = string(b)
	return a, nil
}
