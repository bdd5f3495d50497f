package kbs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxBody  = 1 << 20 // of an answer
	maxTries = 3       // for a broker that does not take the connection

	// requestTimeout bounds one request from connection to last byte, whatever the caller's context allows. A broker
	// that judges evidence may have to fetch collateral from AMD or Intel first.
	requestTimeout = 2 * time.Minute
)

// firstPause is how long the second try waits, give or take half; the third waits twice that.
const firstPause = 200 * time.Millisecond

// transport is the HTTP side of one broker: HTTP/1.1 only, no proxy, no redirects, nothing from the environment.
type transport struct {
	url  string // as the manifest writes it
	base string // with /kbs/v0
	http *http.Client
}

func newTransport(b Broker) (*transport, error) {
	u, err := url.Parse(b.URL)
	if err != nil {
		return nil, err
	}
	switch {
	case u.Scheme == "http" && !b.AllowHTTP:
		return nil, errors.New("http is not allowed by this image, use https")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("scheme %q, want https", u.Scheme)
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("want https://host[:port][/prefix] and nothing else")
	}
	conf, err := tlsConfig(b)
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &transport{
		url:  b.URL,
		base: strings.TrimRight(u.String(), "/") + "/kbs/v0/",
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:            new(net.Dialer).DialContext,
				TLSClientConfig:        conf,
				Protocols:              protocols,
				DisableCompression:     true,
				MaxResponseHeaderBytes: 64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func (c *transport) close() { c.http.CloseIdleConnections() }

// tlsConfig trusts the CA of the manifest, or the key pinned there, or both together.
func tlsConfig(b Broker) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if len(b.CA) > 0 {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(b.CA) {
			return nil, errors.New("CA: no PEM certificate in it")
		}
	}
	if len(b.SPKI) == 0 {
		return conf, nil
	}
	if len(b.SPKI) != sha256.Size {
		return nil, fmt.Errorf("SPKI: %d bytes, want a SHA-256", len(b.SPKI))
	}
	// With a pinned key and no CA the key is the whole identity: name, issuer and dates add nothing to it.
	conf.InsecureSkipVerify = len(b.CA) == 0
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		got := sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
		if subtle.ConstantTimeCompare(got[:], b.SPKI) != 1 {
			return &pinError{got[:], b.SPKI}
		}
		return nil
	}
	return conf, nil
}

// answer is a whole HTTP response, its body bounded.
type answer struct {
	status  int
	body    []byte
	cookies []*http.Cookie
}

// do sends one request. Only a broker that does not take the connection, or whose front end says that it is not
// there, is asked again: neither has seen the request.
func (c *transport) do(ctx context.Context, method, path string, head http.Header, body []byte) (*answer, error) {
	for try := 1; ; try++ {
		a, err := c.once(ctx, method, path, head, body)
		again := err == nil && (a.status == http.StatusBadGateway || a.status == http.StatusServiceUnavailable)
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && !errors.Is(err, context.DeadlineExceeded) {
			again = true
		}
		if !again || try == maxTries || ctx.Err() != nil {
			if err != nil {
				return nil, failed(c.url, path, err)
			}
			return a, nil
		}
		pause := time.NewTimer(firstPause*time.Duration(try)/2 + rand.N(firstPause*time.Duration(try)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, failed(c.url, path, fmt.Errorf("%w (last try: %v)", ctx.Err(), err))
		}
	}
}

func (c *transport) once(ctx context.Context, method, path string, head http.Header, body []byte) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range head {
		req.Header[k] = v
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, bare(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 3 {
		return nil, &redirectError{resp.StatusCode, resp.Header.Get("Location")}
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if len(b) > maxBody {
		return nil, errTooLarge
	}
	return &answer{resp.StatusCode, b, resp.Cookies()}, nil
}

// bare takes off the layer in which net/http repeats method and address.
func bare(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return err
}

var errTooLarge = fmt.Errorf("answer of more than %d bytes", maxBody)

// A pinError is a broker whose key is not the one that the manifest names.
type pinError struct{ got, want []byte }

func (e *pinError) Error() string {
	return fmt.Sprintf("broker's key: SPKI SHA-256 is %x, the manifest pins %x", e.got, e.want)
}

// A redirectError is an answer that sends the guest elsewhere. It is never followed: the manifest names the brokers.
type redirectError struct {
	status   int
	location string
}

func (e *redirectError) Error() string {
	return fmt.Sprintf("status %d redirects to %.200q, which is refused", e.status, e.location)
}

// A statusError is a status by which RCAR says nothing.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }
