package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
)

// registry reads from one repository: manifests and blobs by digest from the mirrors, in order, and then from the
// registry itself, which alone is asked for tags. go-containerregistry parses references. The rest is ours, because its own
// client reads manifests of 100 MiB and configs of any size, follows the layers' foreign URLs, knows no Retry-After, and
// links a reader of Docker's configuration into PID 1.
type registry struct {
	places []*place // the registry itself is the last
	guard  guard
	log    *slog.Logger

	mu     sync.Mutex
	served map[string][]*place // which mirrors sent something of a blob
}

// A place is a host that has the repository.
type place struct {
	host   string // host[:port]
	repo   string // the repository there
	mirror bool
	inner  http.RoundTripper
	login  *Login
	plain  bool        // it may be asked over http
	push   bool        // it is written to
	out    atomic.Bool // a mirror that has failed is not asked again

	mu     sync.Mutex
	scheme string // that it has answered to; "" at first
	auth   credential
}

// parseURI reads docker://host[:port]/repo[:tag][@sha256:…].
func parseURI(uri string, plainHTTP bool) (ref name.Reference, pinned bool, err error) {
	rest, ok := strings.CutPrefix(uri, "docker://")
	if !ok {
		return nil, false, fmt.Errorf("%w: reference %.200q; write docker://host/repository@sha256:…", ErrFormat, uri)
	}
	var opts []name.Option
	if plainHTTP {
		opts = append(opts, name.Insecure)
	}
	ref, err = name.ParseReference(rest, opts...)
	if err != nil {
		return nil, false, fmt.Errorf("%w: reference %.200q: %w", ErrFormat, uri, err)
	}
	for p := range strings.SplitSeq(ref.Context().RepositoryStr(), "/") {
		if p == "" || p == "." || p == ".." { // would be another path at the registry
			return nil, false, fmt.Errorf("%w: reference %.200q: empty or dot component", ErrFormat, uri)
		}
	}
	d, pinned := ref.(name.Digest)
	if pinned && !isDigest(d.DigestStr()) {
		return nil, false, fmt.Errorf("%w: reference %.200q: digest must be sha256 and 64 hex digits", ErrFormat, uri)
	}
	return ref, pinned, nil
}

// openRegistry says where repo is. Nobody is asked yet.
func openRegistry(repo name.Repository, o Options) *registry {
	r := &registry{log: o.Log, served: map[string][]*place{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	for _, m := range o.Mirrors {
		host, prefix, _ := strings.Cut(m.At, "/")
		path := repo.RepositoryStr()
		if prefix != "" {
			path = prefix + "/" + path
		}
		p := &place{host: host, repo: path, mirror: true, inner: m.Transport, login: m.Login, plain: m.PlainHTTP}
		r.places = append(r.places, p)
	}
	p := &place{host: repo.RegistryStr(), repo: repo.RepositoryStr(), inner: o.Transport, login: o.Login, plain: o.PlainHTTP}
	r.places = append(r.places, p)
	for _, p := range r.places {
		if p.inner == nil {
			p.inner = newTransport()
		}
	}
	return r
}

// from asks one place after the other. What a mirror does wrong is noted and costs it the rest of the image, unless
// it just has not what is asked for.
func (r *registry) from(ctx context.Context, ref string, ask func(*place) error) error {
	for _, p := range r.places {
		if p.mirror && (p.out.Load() || !isDigest(ref)) {
			continue
		}
		err := ask(p)
		if err == nil || !p.mirror || ctx.Err() != nil {
			return err
		}
		if e, ok := errors.AsType[*replyError](err); ok && e.status == http.StatusNotFound {
			r.log.Info("mirror", "at", p.host, "lacks", ref)
			continue
		}
		r.drop(p, err)
	}
	return errors.New("no place to ask") // not reached: the registry is one
}

func (r *registry) drop(p *place, why error) {
	if !p.out.Swap(true) {
		r.log.Warn("mirror is not asked again for this image", "at", p.host, "error", why)
	}
}

// manifest gets a manifest or index by tag or digest, at most max bytes of it. What is asked for by digest has it.
func (r *registry) manifest(ctx context.Context, ref string, max int64) (body []byte, mediaType string, err error) {
	accept := strings.Join([]string{ociManifest, ociIndex, dockerManifest, dockerIndex}, ",")
	err = r.from(ctx, ref, func(p *place) error {
		resp, err := r.get(ctx, p, "manifests", ref, max, http.Header{"Accept": {accept}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err = readAll(resp.Body, max); err != nil {
			return fmt.Errorf("manifest %s: %w", ref, err)
		}
		if got := digestOf(body); isDigest(ref) && got != ref {
			return fmt.Errorf("%w: manifest %s is asked for, %s sent %s", ErrDigest, ref, p.host, got)
		}
		mediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
		return nil
	})
	return body, strings.TrimSpace(mediaType), err
}

// small gets a whole blob into memory and checks it.
func (r *registry) small(ctx context.Context, digest string, size int64) (body []byte, err error) {
	err = r.from(ctx, digest, func(p *place) error {
		rc, err := r.open(ctx, p, digest, 0, size)
		if err != nil {
			return err
		}
		defer rc.Close()
		if body, err = readAll(rc, size); err != nil {
			return fmt.Errorf("blob %s: %w", digest, err)
		}
		if got := digestOf(body); got != digest {
			return fmt.Errorf("%w: blob %s is asked for, %s sent %s", ErrDigest, digest, p.host, got)
		}
		return nil
	})
	return body, err
}

// blob opens a blob of the given size at an offset. Its bytes are not verified: whoever finds them wrong tells
// [registry.wrong]. The rest of a blob may come from another place than its beginning.
func (r *registry) blob(ctx context.Context, digest string, offset, size int64) (body io.ReadCloser, err error) {
	err = r.from(ctx, digest, func(p *place) error {
		if body, err = r.open(ctx, p, digest, offset, size); err != nil || !p.mirror {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.served[digest] = append(r.served[digest], p)
		body = &mirrored{ReadCloser: body, left: size - offset, failed: func(err error) {
			if ctx.Err() == nil {
				r.drop(p, fmt.Errorf("blob %s: %w", digest, err))
			}
		}}
		return nil
	})
	return body, err
}

// wrong is told of a blob that is not what it should be, and why. It reports whether mirrors may be to blame: then they
// are not asked again, and the blob is worth fetching anew from its start.
func (r *registry) wrong(digest string, why error) (again bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.served[digest] {
		r.drop(p, why)
		again = true
	}
	delete(r.served, digest)
	return again
}

// mirrored notices a mirror that cuts a blob short, so that its rest is asked elsewhere.
type mirrored struct {
	io.ReadCloser
	left   int64
	failed func(error)
}

func (m *mirrored) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	if m.left -= int64(n); err != nil && (err != io.EOF || m.left > 0) {
		m.failed(err)
	}
	return n, err
}

// open asks one place for a blob from offset on. The body ends one byte over, so that a blob longer than its descriptor
// is seen as such.
func (r *registry) open(ctx context.Context, p *place, digest string, offset, size int64) (io.ReadCloser, error) {
	if offset > 0 && offset >= size {
		return http.NoBody, nil // there is no such range
	}
	h := http.Header{}
	if offset > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := r.get(ctx, p, "blobs", digest, size+1, h)
	if e, ok := errors.AsType[*replyError](err); ok && offset > 0 && e.status == http.StatusRequestedRangeNotSatisfiable {
		resp, err = r.get(ctx, p, "blobs", digest, size+1, http.Header{}) // it may still have the whole
	}
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent:
		if err = checkRange(resp.Header.Get("Content-Range"), offset, size); err == nil {
			return http.MaxBytesReader(nil, resp.Body, size-offset+1), nil
		}
	case resp.ContentLength > size:
		err = fmt.Errorf("%w: it has %d bytes, the manifest says %d", ErrDigest, resp.ContentLength, size)
	default: // if a range was asked for, it does none: read again what is already there
		if _, err = io.CopyN(io.Discard, resp.Body, offset); err == nil {
			return resp.Body, nil
		}
	}
	resp.Body.Close()
	return nil, fmt.Errorf("blob %s from %s: %w", digest, p.host, err)
}

// checkRange holds a Content-Range (RFC 9110 §14.4) against what was asked for: a blob of size bytes from offset on.
func checkRange(s string, offset, size int64) error {
	span, total, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	first, last, dash := strings.Cut(span, "-")
	start, err1 := strconv.ParseUint(first, 10, 63)
	end, err2 := strconv.ParseUint(last, 10, 63)
	if !strings.HasPrefix(s, "bytes ") || !ok || !dash || err1 != nil || err2 != nil {
		return fmt.Errorf("%w: Content-Range %.80q", ErrFormat, s)
	}
	if int64(start) != offset || end < start || int64(end) >= size {
		return fmt.Errorf("%w: bytes %d-%d are asked for, %.80q is sent", ErrFormat, offset, size-1, s)
	}
	if total != "*" && total != strconv.FormatInt(size, 10) {
		return fmt.Errorf("%w: it has %.20q bytes, the manifest says %d", ErrDigest, total, size)
	}
	return nil
}

// get asks p until it has an answer. Other replies than 200, and 206 to a range, are errors.
func (r *registry) get(ctx context.Context, p *place, kind, ref string, max int64, h http.Header) (*http.Response, error) {
	tries := maxTries
	if p.mirror {
		tries = 1
	}
	path := fmt.Sprintf("/v2/%s/%s/%s", p.repo, kind, ref)
	resp, err := retry(ctx, tries, func() (*http.Response, error) {
		resp, err := r.ask(ctx, p, http.MethodGet, path, max, h)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent && h.Get("Range") != "":
			return resp, nil
		}
		return nil, refusal(resp)
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", strings.TrimSuffix(kind, "s"), ref, err)
	}
	return resp, nil
}

// ask asks p, and once more with what it wants to see when it says 401.
func (r *registry) ask(ctx context.Context, p *place, method, path string, max int64, h http.Header) (*http.Response, error) {
	resp, auth, err := r.send(ctx, p, method, path, max, h)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || hostOf(resp) != strings.ToLower(p.host) {
		return resp, err
	}
	resp.Body.Close()
	if err := r.authenticate(ctx, p, auth, resp); err != nil {
		return nil, err
	}
	resp, _, err = r.send(ctx, p, method, path, max, h)
	return resp, err
}

// send asks p once, with what it last wanted to see, which is returned as well. A place that may be asked over http is asked
// over https first, and whichever answers is kept to.
func (r *registry) send(ctx context.Context, p *place, method, path string, max int64, h http.Header) (resp *http.Response, auth credential, err error) {
	p.mu.Lock()
	scheme, auth := p.scheme, p.auth
	p.mu.Unlock()
	schemes := []string{"https", "http"}
	if scheme != "" {
		schemes = []string{scheme}
	}
	var first, failed error
	for _, s := range schemes {
		u := &url.URL{Scheme: s, Host: p.host, Path: path}
		resp, err = r.do(ctx, method, u, h, &flight{place: p, max: max, content: true, auth: auth})
		if err == nil {
			p.mu.Lock()
			p.scheme = s
			p.mu.Unlock()
			return resp, auth, nil
		}
		if failed = err; s != schemes[0] {
			failed = fmt.Errorf("over https: %w; over http: %w", first, err)
		}
		first = err
		if !(errors.Is(err, http.ErrSchemeMismatch) || p.plain && unreachable(err)) || ctx.Err() != nil {
			break
		}
	}
	return nil, auth, failed
}
