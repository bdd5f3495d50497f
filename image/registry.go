package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	maxReply     = 1 << 20 // bytes of any reply that is neither manifest nor blob: tokens, error texts
	maxRedirects = 5
)

// registry reads from one repository. go-containerregistry parses references and does
// the handshake (ping, anonymous tokens); the two GETs are ours, because its own read
// manifests of 100 MiB, configs of any size, and follow the layers' foreign URLs.
type registry struct {
	repo   name.Repository
	client *http.Client
	guard  *guard
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

// openRegistry shakes hands with the registry of repo.
func openRegistry(ctx context.Context, repo name.Repository, o Options) (*registry, error) {
	inner := o.Transport
	if inner == nil {
		inner = newTransport()
	}
	g := &guard{schemeGuard: schemeGuard{inner, o.PlainHTTP}}
	tr, err := transport.NewWithContext(ctx, repo.Registry, o.auth(),
		transport.NewRetry(g, transport.WithRetryStatusCodes(429, 500, 502, 503, 504)),
		[]string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", repo.RegistryStr(), err)
	}
	return &registry{repo, &http.Client{Transport: tr, CheckRedirect: checkRedirect}, g}, nil
}

// newTransport speaks HTTP/1.1 and asks nobody but its arguments where to go. Deadlines
// for whole transfers are the context's.
func newTransport() *http.Transport {
	var h1 http.Protocols
	h1.SetHTTP1(true)
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		Protocols:             &h1,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		IdleConnTimeout:       30 * time.Second,
		MaxIdleConnsPerHost:   aheadLayers,
		DisableCompression:    true, // digests are over the bytes on the wire
	}
}

// manifest gets a manifest or index by tag or digest, at most max bytes of it.
func (r *registry) manifest(ctx context.Context, ref string, max int64) (body []byte, mediaType string, err error) {
	accept := strings.Join([]string{ociManifest, ociIndex, dockerManifest, dockerIndex}, ",")
	resp, err := r.get(ctx, "manifests", ref, max, http.Header{"Accept": {accept}})
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err = readAll(resp.Body, max)
	if err != nil {
		return nil, "", fmt.Errorf("manifest %s: %w", ref, err)
	}
	mediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
	return body, strings.TrimSpace(mediaType), nil
}

// blob opens a blob of the given size at an offset. Its bytes are not verified.
func (r *registry) blob(ctx context.Context, digest string, offset, size int64) (io.ReadCloser, error) {
	h := http.Header{}
	if offset > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	// One byte over, so that a blob longer than its descriptor is seen as such.
	resp, err := r.get(ctx, "blobs", digest, size+1, h)
	if err != nil {
		return nil, err
	}
	if offset == 0 {
		return resp.Body, nil
	}
	if resp.StatusCode == http.StatusPartialContent {
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", offset)) {
			resp.Body.Close()
			return nil, fmt.Errorf("blob %s: asked for bytes from %d, the registry sent %.80q", digest, offset, got)
		}
		return resp.Body, nil
	}
	// The registry does not do ranges: read again what is already there.
	if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("blob %s: %w", digest, err)
	}
	return resp.Body, nil
}

func (r *registry) get(ctx context.Context, kind, ref string, max int64, h http.Header) (*http.Response, error) {
	u := url.URL{
		Scheme: r.repo.Scheme(),
		Host:   r.repo.RegistryStr(),
		Path:   fmt.Sprintf("/v2/%s/%s/%s", r.repo.RepositoryStr(), kind, ref),
	}
	req, err := http.NewRequestWithContext(context.WithValue(ctx, limitKey{}, max), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = h
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", strings.TrimSuffix(kind, "s"), ref, err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %w", strings.TrimSuffix(kind, "s"), ref, err)
	}
	return resp, nil
}

// schemeGuard stands under everything that speaks to a registry, handshake, token service
// and redirects included: no http unless permitted.
type schemeGuard struct {
	inner http.RoundTripper
	plain bool
}

func (g *schemeGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain {
		return nil, fmt.Errorf("%w: %s://%s; use https, or permit it with `--allow http`", ErrPlainHTTP, req.URL.Scheme, req.URL.Host)
	}
	if _, _, login := req.BasicAuth(); login && req.URL.Scheme != "https" {
		return nil, fmt.Errorf("%w for a password: %s://%s; a registry with a login must speak https", ErrPlainHTTP, req.URL.Scheme, req.URL.Host)
	}
	return g.inner.RoundTrip(req)
}

// guard is a schemeGuard that also gives every reply an end.
type guard struct {
	schemeGuard
	usedPlain atomic.Bool // content came over http
}

// limitKey carries the permitted reply size of a request in its context, an int64.
type limitKey struct{}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := g.schemeGuard.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	max, content := req.Context().Value(limitKey{}).(int64)
	if content && req.URL.Scheme == "http" {
		g.usedPlain.Store(true)
	}
	if resp.StatusCode >= 300 || !content {
		max = maxReply
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, max)
	return resp, nil
}

// checkRedirect lets a registry hand us to its blob store, but not to an address that is
// special to this machine: cloud metadata and loopback answer by address alone.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("over %d redirects", maxRedirects)
	}
	if via[0].URL.Hostname() == req.URL.Hostname() {
		return nil
	}
	addr, err := netip.ParseAddr(req.URL.Hostname())
	if err != nil {
		return nil
	}
	if addr = addr.Unmap(); addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() || addr.IsMulticast() {
		return fmt.Errorf("redirect from %s to %s is refused", via[0].URL.Host, req.URL.Host)
	}
	return nil
}

// readAll reads to EOF, at most max bytes.
func readAll(r io.Reader, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if _, over := errors.AsType[*http.MaxBytesError](err); over || int64(len(b)) > max {
		return nil, fmt.Errorf("%w: over %d bytes", ErrTooBig, max)
	}
	return b, err
}
