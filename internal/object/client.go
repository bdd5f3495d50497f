package object

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	maxRedirects = 5
	maxTries     = 4 // of one request
	firstPause   = 500 * time.Millisecond
	maxPause     = time.Minute
	maxErrorBody = 4 << 10 // bytes of a refusal that are looked at
)

// client makes the requests for one object, one at a time.
type client struct {
	Options
	url  *url.URL
	auth func(*http.Request) // nil: nobody asks
	hops int                 // redirects that are followed

	usedPlain bool // content came over http
}

func open(src Source, o Options) (*client, error) {
	c := &client{Options: o}
	if c.Transport == nil {
		return nil, errors.New("no transport")
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.pause == nil {
		c.pause = pause
	}
	c.stall = cmp.Or(c.stall, stallLimit)
	scheme, _, _ := strings.Cut(src.URI, "://")
	switch scheme {
	case "https", "http":
		return c, c.https(src)
	case "s3":
		return c, c.s3(src)
	case "gs":
		return c, c.gcs(src)
	}
	return nil, fmt.Errorf("%w: scheme %.20q; want https://, s3:// or gs://", ErrFormat, scheme)
}

// get asks until there is an answer that will not change by asking again. Waiting is inside of ctx.
func (c *client) get(ctx context.Context, h http.Header) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, again, err := c.once(ctx, h)
		if ctx.Err() != nil {
			if err == nil {
				resp.Body.Close()
			}
			return nil, context.Cause(ctx)
		}
		if !again || try == maxTries {
			return resp, err
		}
		wait := firstPause << (try - 1)
		wait += rand.N(wait) // so that a thousand machines do not come back together
		if err == nil {
			if s, e := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); e == nil {
				wait = max(wait, time.Duration(s)*time.Second)
			}
			resp.Body.Close()
		}
		if err := c.pause(ctx, min(wait, maxPause)); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// once makes one request and follows where it is sent. Redirects are walked here and not by net/http, which would tell the next host the
// query of this one, and quote it in errors.
func (c *client) once(ctx context.Context, h http.Header) (resp *http.Response, again bool, err error) {
	u := c.url
	for hop := 0; ; hop++ {
		req := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: h.Clone()}).WithContext(ctx)
		req.Header.Set("Accept-Encoding", "identity") // digests are over the bytes on the wire
		if u.Scheme != "https" && !c.PlainHTTP {
			return nil, false, fmt.Errorf("%w: %s://%s; use https, or permit it with `--allow http`", ErrPlainHTTP, u.Scheme, u.Host)
		}
		if c.auth != nil && u.Scheme == c.url.Scheme && u.Host == c.url.Host {
			if u.Scheme != "https" {
				return nil, false, fmt.Errorf("%w for credentials: %s://%s; a store with a login must speak https", ErrPlainHTTP, u.Scheme, u.Host)
			}
			c.auth(req)
		}
		c.usedPlain = c.usedPlain || u.Scheme != "https"
		resp, err := c.Transport.RoundTrip(req)
		if err != nil {
			_, wrong := errors.AsType[*tls.CertificateVerificationError](err)
			return nil, !wrong, fmt.Errorf("GET %s: %w", shown(u), err)
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return resp, true, nil
		default:
			return resp, false, nil
		}
		if c.hops == 0 {
			return resp, false, nil // a store says which region it is, and the owner should
		}
		resp.Body.Close()
		if hop == c.hops {
			return nil, false, fmt.Errorf("%w: over %d of them", ErrRedirect, c.hops)
		}
		if u, err = c.next(u, resp.Header.Get("Location")); err != nil {
			return nil, false, err
		}
	}
}

// next judges a redirect: not from https to http, and not to an address that is special to this machine, which answers by address alone,
// as cloud metadata and loopback do.
func (c *client) next(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if err != nil || location == "" || to.Host == "" || to.User != nil {
		return nil, fmt.Errorf("%w: %s sends to no URL", ErrRedirect, from.Host)
	}
	if to.Scheme != "https" && (to.Scheme != "http" || from.Scheme == "https") {
		return nil, fmt.Errorf("%w: from %s to %s://%s; only https", ErrRedirect, from.Host, to.Scheme, to.Host)
	}
	if host := to.Hostname(); host != c.url.Hostname() && special(host) {
		return nil, fmt.Errorf("%w: from %s to %s, an address of this machine or its host", ErrRedirect, from.Host, to.Host)
	}
	return to, nil
}

func special(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	a = a.Unmap()
	return err == nil && (a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast())
}

// shown is a URL as errors have it: what is behind the ? may be a signature.
func shown(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }

// contentRange is the whole size that a partial answer names, which must begin at from.
func contentRange(resp *http.Response, from int64) (size int64, err error) {
	got := resp.Header.Get("Content-Range")
	rest, ok := strings.CutPrefix(got, fmt.Sprintf("bytes %d-", from))
	_, total, slash := strings.Cut(rest, "/")
	size, err = strconv.ParseInt(total, 10, 64)
	if !ok || !slash || err != nil || size < 0 {
		return 0, fmt.Errorf("%w: asked for bytes from %d, the server sent %.80q", ErrFormat, from, got)
	}
	return size, nil
}

// statusError is a server's refusal: its code, and the word that stores put into the body.
func statusError(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what cannot be read explains nothing
	text := "the server says " + strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode)
	_, rest, _ := bytes.Cut(body, []byte("<Code>"))
	if code, _, ok := bytes.Cut(rest, []byte("</Code>")); ok && len(code) <= 64 && word(string(code)) {
		text += ", " + string(code)
	}
	if r := resp.Header.Get("X-Amz-Bucket-Region"); resp.StatusCode != http.StatusNotFound && r != "" && len(r) <= 64 && word(r) {
		text += "; the bucket is in region " + r + ": is that what stores[].region says?"
	}
	return errors.New(text)
}

func word(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}
