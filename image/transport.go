package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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
)

const (
	maxReply     = 1 << 20  // bytes of any reply that is neither manifest nor blob: tokens, error texts
	maxHeader    = 64 << 10 // bytes of a reply's header
	maxRedirects = 5
	maxStall     = time.Minute // between two pieces of a body
)

// NewTransport makes what carries requests to one registry: HTTP/1.1, TLS 1.2 or later, and nothing from the environment.
// ca is the PEM that the registry's chain must end in, and that of wherever it redirects to; empty is the public authorities.
// proxy is http://host[:port] or https://host[:port]; empty is none. It gets no login, and its own certificate is
// judged by the public authorities. Deadlines for whole transfers are the context's.
func NewTransport(ca []byte, proxy string) (*http.Transport, error) {
	t := newTransport()
	if len(ca) > 0 {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("ca: no PEM certificate in it")
		}
	}
	if proxy == "" {
		return t, nil
	}
	u, err := url.Parse(proxy)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || proxy != u.Scheme+"://"+u.Host {
		return nil, errors.New("proxy: want http://host[:port] or https://host[:port], without a user")
	}
	t.Proxy = http.ProxyURL(u)
	t.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
		if resp.StatusCode != http.StatusOK {
			return &replyError{host: "proxy " + u.Host, status: resp.StatusCode, after: RetryAfter(resp.Header, time.Now())}
		}
		return nil
	}
	if u.Scheme == "https" {
		d := tls.Dialer{NetDialer: dialer(), Config: &tls.Config{MinVersion: tls.VersionTLS12}}
		t.DialTLSContext = d.DialContext // with a proxy, this is how the proxy itself is reached
	}
	return t, nil
}

// newTransport keeps to HTTP/1.1: layers come side by side on connections of their own, which HTTP/2 would put on one,
// and PID 1 is built without its parser.
func newTransport() *http.Transport {
	var h1 http.Protocols
	h1.SetHTTP1(true)
	return &http.Transport{
		DialContext:            dialer().DialContext,
		Protocols:              &h1,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  60 * time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    aheadLayers,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // digests are over the bytes on the wire
	}
}

func dialer() *net.Dialer { return &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second} }

// A flight is what the guard must know of a request, and of the redirects that follow from it.
type flight struct {
	place *place
	max   int64 // bytes of the reply that are read, if it is a good one
	// content says that the reply is a manifest or a blob, and no token.
	content bool
	auth    credential
	origin  string // scheme://host[:port], the only one that sees auth
}

type flightKey struct{}

// guard stands under everything that speaks to a registry, token service and redirects included: no http unless permitted,
// no credential to anyone but whom it is for, and an end to every reply.
type guard struct {
	usedPlain atomic.Bool // content came over http
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	f := req.Context().Value(flightKey{}).(*flight)
	if f.auth.header != "" && originOf(req.URL) == f.origin {
		if f.auth.secret && req.URL.Scheme != "https" {
			return nil, plainLogin(req.URL.Host)
		}
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", f.auth.header)
	}
	resp, err := (&schemeGuard{f.place.inner, f.place.plain}).RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if f.content && req.URL.Scheme == "http" {
		g.usedPlain.Store(true)
	}
	max := f.max
	if resp.StatusCode >= 300 {
		max = maxReply
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, max)
	return resp, nil
}

func originOf(u *url.URL) string { return u.Scheme + "://" + u.Host }

// do sends one request without a body, and follows redirects.
func (r *registry) do(ctx context.Context, method string, u *url.URL, h http.Header, f *flight) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = h.Clone()
	return r.fly(req, f)
}

// fly sends a request. The errors of net/http repeat the address, which may hold a signature that opens a blob store; only its
// host is kept.
func (r *registry) fly(req *http.Request, f *flight) (*http.Response, error) {
	f.origin = originOf(req.URL)
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), flightKey{}, f))
	client := http.Client{Transport: &r.guard, CheckRedirect: checkRedirect}
	resp, err := client.Do(req.WithContext(ctx))
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
		if at, bad := url.Parse(e.URL); bad == nil && at.Host != req.URL.Host {
			err = fmt.Errorf("redirected to %s: %w", at.Host, err)
		}
	}
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &body{resp.Body, cancel}
	return resp, nil
}

// A body that stops coming is cut, so that it can be asked for anew: the deadline may be hours away.
type body struct {
	io.ReadCloser
	cancel func() // ends the request
}

func (b *body) Read(p []byte) (int, error) {
	stalled := time.AfterFunc(maxStall, b.cancel)
	n, err := b.ReadCloser.Read(p)
	if !stalled.Stop() && err != nil {
		err = fmt.Errorf("nothing came for %v: %w", maxStall, err)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// schemeGuard lets nothing go over http unless that is permitted, and no password ever.
type schemeGuard struct {
	inner http.RoundTripper
	plain bool
}

func (g *schemeGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain {
		return nil, fmt.Errorf("%w: %s://%s; use https, or permit it with `--allow http`", ErrPlainHTTP, req.URL.Scheme, req.URL.Host)
	}
	if _, _, login := req.BasicAuth(); login && req.URL.Scheme != "https" {
		return nil, plainLogin(req.URL.Host)
	}
	return g.inner.RoundTrip(req)
}

func plainLogin(host string) error {
	return fmt.Errorf("%w for a password: http://%s; a registry with a login must speak https", ErrPlainHTTP, host)
}

// checkRedirect lets a registry hand us to its blob store, but not to an address that is
// special to this machine: cloud metadata and loopback answer by address alone.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("over %d redirects", maxRedirects)
	}
	if m := via[0].Method; m != http.MethodGet && m != http.MethodHead {
		return fmt.Errorf("redirect of a %s from %s to %s is refused", m, via[0].URL.Host, req.URL.Host)
	}
	if special(via[0].URL, req.URL) {
		return fmt.Errorf("redirect from %s to %s is refused", via[0].URL.Host, req.URL.Host)
	}
	return nil
}

// special reports whether to is another host than from, and an address that has a meaning of its own in this machine.
func special(from, to *url.URL) bool {
	if from.Hostname() == to.Hostname() {
		return false
	}
	addr, err := netip.ParseAddr(to.Hostname())
	if err != nil {
		return false
	}
	addr = addr.Unmap()
	return addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsUnspecified() || addr.IsMulticast()
}

// readAll reads to EOF, at most max bytes.
func readAll(r io.Reader, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if _, over := errors.AsType[*http.MaxBytesError](err); over || int64(len(b)) > max {
		return nil, fmt.Errorf("%w: over %d bytes", ErrTooBig, max)
	}
	return b, err
}

// hostOf is where a reply came from at last.
func hostOf(resp *http.Response) string { return strings.ToLower(resp.Request.URL.Host) }
