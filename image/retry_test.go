package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// direct answers requests from the shelf without a network, so that time can stand still. before may answer first.
func (s *shelf) direct(before func(r *http.Request) (*http.Response, error)) roundTripper {
	return func(r *http.Request) (*http.Response, error) {
		if resp, err := before(r); resp != nil || err != nil {
			return resp, err
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		resp := w.Result()
		resp.Request = r
		return resp, nil
	}
}

func reply(r *http.Request, status int, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Request: r, Body: io.NopCloser(strings.NewReader(`{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`))}
}

func TestRetries(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	status := func(code int, header ...string) func(*http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) { return reply(r, code, header...), nil }
	}
	failure := func(err error) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return nil, err }
	}
	const sum = firstPause * (1<<(maxTries-1) - 1) // of the longest pauses; none of them is cut
	for name, c := range map[string]struct {
		reply       func(*http.Request) (*http.Response, error)
		times       int // that it comes before the good one
		tries       int
		least, most time.Duration
		want        string // in the error; empty is success
	}{
		"too many requests, once":            {status(429), 1, 2, 0, firstPause, ""},
		"an internal error, twice":           {status(500), 2, 3, 0, 3 * firstPause, ""},
		"a bad gateway":                      {status(502), 1, 2, 0, firstPause, ""},
		"not available":                      {status(503), 1, 2, 0, firstPause, ""},
		"a gateway that waits too long":      {status(504), 1, 2, 0, firstPause, ""},
		"never available":                    {status(503), 99, maxTries, 0, sum, `registry.example: status 503: "TOOMANYREQUESTS: slow down" (6 tries)`},
		"not found":                          {status(404), 99, 1, 0, 0, "status 404"},
		"forbidden":                          {status(403), 99, 1, 0, 0, "status 403"},
		"a redirect to nowhere":              {status(304), 99, 1, 0, 0, "status 304"},
		"no content":                         {status(204), 99, 1, 0, 0, "status 204"},
		"a part that was not asked for":      {status(206), 99, 1, 0, 0, "status 206"},
		"a wish of 7 seconds":                {status(429, "Retry-After", "7"), 1, 2, 7 * time.Second, 7*time.Second + firstPause, ""},
		"a wish of an hour":                  {status(429, "Retry-After", "3600"), 1, 2, maxAfter, maxAfter + firstPause, ""},
		"a wish beyond all numbers":          {status(429, "Retry-After", "99999999999999999999"), 1, 2, 0, firstPause, ""},
		"a wish to the past":                 {status(429, "Retry-After", "-7"), 1, 2, 0, firstPause, ""},
		"a date by the registry's clock":     {status(503, "Retry-After", "Fri, 01 Jan 2100 00:00:09 GMT", "Date", "Fri, 01 Jan 2100 00:00:00 GMT"), 1, 2, 9 * time.Second, 9*time.Second + firstPause, ""},
		"a date by ours":                     {status(503, "Retry-After", "Sat, 01 Jan 2000 00:00:05 GMT"), 1, 2, 5 * time.Second, 5*time.Second + firstPause, ""}, // where synctest's clock begins
		"a date gone by":                     {status(503, "Retry-After", "Fri, 01 Jan 1999 00:00:00 GMT"), 1, 2, 0, firstPause, ""},
		"no connection":                      {failure(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), 3, 4, 0, 7 * firstPause, ""},
		"a connection that ends":             {failure(io.EOF), 1, 2, 0, firstPause, ""},
		"a connection that hangs":            {failure(&net.DNSError{IsTimeout: true}), 1, 2, 0, firstPause, ""},
		"a certificate of another":           {failure(&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}}), 99, 1, 0, 0, "certificate"},
		"a registry that speaks plain http":  {failure(http.ErrSchemeMismatch), 99, 1, 0, 0, ErrPlainHTTP.Error()},
		"an answer that is not to be helped": {failure(errors.New("malformed")), 99, 1, 0, 0, "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				tr := s.direct(func(r *http.Request) (*http.Response, error) {
					if !strings.Contains(r.URL.Path, "/manifests/") {
						return nil, nil
					}
					if tries++; tries <= c.times {
						return c.reply(r)
					}
					return nil, nil
				})
				start := time.Now()
				_, err := Resolve(t.Context(), strings.Replace(uri, s.host, "registry.example", 1), Options{Transport: tr})
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("error %v, want %q", err, c.want)
				}
				if took := time.Since(start); took < c.least || took > c.most || tries != c.tries {
					t.Errorf("%d tries in %v, want %d in %v to %v", tries, took, c.tries, c.least, c.most)
				}
			})
		})
	}
}

// TestRetryIntoTheDeadline fails at once, and says why: there is no use in sleeping until nobody waits any more.
func TestRetryIntoTheDeadline(t *testing.T) {
	s := newShelf(t)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		tr := s.direct(func(r *http.Request) (*http.Response, error) { return reply(r, 429, "Retry-After", "30"), nil })
		_, err := Resolve(ctx, "docker://registry.example/r/i:v1", Options{Transport: tr})
		if err == nil || !strings.Contains(err.Error(), "status 429") || !strings.Contains(err.Error(), "the next try would be in 30") || time.Since(start) != 0 {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(10*time.Second, func() { cancel(errors.New("switched off")) })
		start := time.Now()
		tr := s.direct(func(r *http.Request) (*http.Response, error) { return reply(r, 429, "Retry-After", "30"), nil })
		_, err := Resolve(ctx, "docker://registry.example/r/i:v1", Options{Transport: tr})
		if err == nil || !strings.Contains(err.Error(), "switched off") || !strings.Contains(err.Error(), "status 429") || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// TestBusyTokenService is waited for like the registry.
func TestBusyTokenService(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	synctest.Test(t, func(t *testing.T) {
		busy := 2
		tr := s.direct(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.URL.Path == "/token" && busy > 0:
				busy--
				return reply(r, 429, "Retry-After", "3"), nil
			case r.URL.Path == "/token":
				resp := reply(r, 200)
				resp.Body = io.NopCloser(strings.NewReader(`{"token":"abc"}`))
				return resp, nil
			case r.Header.Get("Authorization") == "":
				return reply(r, 401, "WWW-Authenticate", `Bearer realm="https://auth.example/token"`), nil
			}
			return nil, nil
		})
		start := time.Now()
		_, err := Resolve(t.Context(), strings.Replace(uri, s.host, "registry.example", 1), Options{Transport: tr})
		if took := time.Since(start); err != nil || took < 6*time.Second || took > 6*time.Second+3*firstPause {
			t.Errorf("after %v: %v", took, err)
		}
	})
}
