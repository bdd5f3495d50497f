package kbs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

const handshake = "auth 0.4.0 sample, attest new " + p256

// A session id may change or go at any time: the newest is used, and where there is none or a wrong one, the token.
func TestTheCookieChanges(t *testing.T) {
	for name, c := range map[string]struct {
		attested string // Set-Cookie of attest
		want     string // requests, or the error
	}{
		"to one that nobody knows": {"kbs-session-id=stranger", handshake + ", " + resource + ", " + resource},
		"and is withdrawn":         {"kbs-session-id=; Max-Age=0", handshake + ", " + resource},
		"to one that is too long":  {"kbs-session-id=" + strings.Repeat("s", maxCookie+1), "1025 bytes, at most 1024"},
		"not, another one comes":   {"route=1", handshake + ", " + resource},
	} {
		t.Run(name, func(t *testing.T) {
			b := &trustee{version: "0.4.0"}
			at := b.listen(t)
			b.cookie = func(path string) string {
				switch path {
				case "auth":
					return fmt.Sprintf("kbs-session-id=s%d", b.id+1)
				case "attest":
					return c.attested
				}
				return ""
			}
			_, err := newProbe(t, evidence.Sample, at).Fetch(t.Context(), []Want{{at.URL, "a/b/c"}})
			if got := strings.Join(b.asked(), ", "); got != c.want && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("requests %q, error %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestTheNewestCookieIsSent(t *testing.T) {
	var last string
	b := broker{t: t}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		last = r.Header.Get("Cookie")
		r.Header.Set("Cookie", "kbs-session-id=0123") // which the broker below insists on
		if r.URL.Path != "/kbs/v0/auth" {
			w.Header().Set("Set-Cookie", "kbs-session-id=after"+r.URL.Path[len("/kbs/v0/"):][:6])
		}
		b.ServeHTTP(w, r)
	}))
	defer ts.Close()
	wants := []Want{{ts.URL, "a/b/c"}, {ts.URL, "a/b/d"}}
	for n, want := range []string{1: "kbs-session-id=afterattest", 2: "kbs-session-id=afterresour"} {
		if _, err := Exchange(t.Context(), []Broker{{URL: ts.URL, AllowHTTP: true}}, sampler{}, []byte("init"), wants[:n]); err != nil {
			t.Fatal(err)
		}
		if n > 0 && last != want {
			t.Errorf("cookie %q, want %q", last, want)
		}
	}
}

func TestNoCookieAtAuth(t *testing.T) {
	for _, cookie := range []string{"", "route=1", "kbs-session-id=", "kbs-session-id=a; Max-Age=0"} {
		b := &trustee{version: "0.4.0", cookie: func(string) string { return cookie }}
		at := b.listen(t)
		if _, err := newProbe(t, evidence.Sample, at).Fetch(t.Context(), []Want{{at.URL, "a/b/c"}}); err == nil || !strings.Contains(err.Error(), "no kbs-session-id cookie") {
			t.Errorf("%q: error %v", cookie, err)
		}
	}
}

func TestABrokerThatRestartsMidSession(t *testing.T) {
	b := &trustee{version: "0.4.0"}
	at := b.listen(t)
	b.before = func(_ http.ResponseWriter, _ *http.Request, n int) bool {
		if n == 3 { // after the first of two resources
			b.live, b.token = false, b.token+"x"
		}
		return false
	}
	g, err := newProbe(t, evidence.Sample, at).Fetch(t.Context(), []Want{{at.URL, "a/b/c"}, {at.URL, "a/b/d"}})
	if err != nil || g.Key(at.URL, "a/b/c") == nil || g.Key(at.URL, "a/b/d") == nil {
		t.Errorf("error %v", err)
	}
	const second = "resource/a/b/d"
	want := strings.Join([]string{handshake, resource, second, second, handshake, second}, ", ")
	if got := strings.Join(b.asked(), ", "); got != want {
		t.Errorf("requests %q, want %q", got, want)
	}
}

func TestABrokerThatForgetsAtOnce(t *testing.T) {
	b := &trustee{version: "0.4.0"}
	at := b.listen(t)
	b.before = func(w http.ResponseWriter, r *http.Request, _ int) bool {
		if strings.Contains(r.URL.Path, "/resource/") {
			b.live, b.token = false, b.token+"x"
		}
		return false
	}
	_, err := newProbe(t, evidence.Sample, at).Fetch(t.Context(), []Want{{at.URL, "a/b/c"}})
	d, ok := errors.AsType[*DeniedError](err)
	if !ok || d.Variant != "TokenVerifierError" || len(b.asked()) != 8 {
		t.Errorf("error %v", err)
	}
}

func TestToken(t *testing.T) {
	at := func(exp time.Time) string {
		return "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, exp.Unix())) + ".c2ln"
	}
	for _, keyType := range []string{"", "ECDH-ES+A256KW-P521", "RSA-OAEP-256"} {
		b := &trustee{version: "0.4.0", token: at(time.Now().Add(time.Hour))}
		where := b.listen(t)
		where.KeyType = keyType
		c := newProbe(t, evidence.Sample, where)
		fetch(t, c, where)
		token, text, err := c.Token(t.Context(), where.URL)
		if err != nil || token != b.token {
			t.Fatalf("token %q, error %v", token, err)
		}
		if n := len(b.asked()); n != 3 {
			t.Errorf("%d requests, want those of one session", n)
		}
		var pub crypto.PublicKey
		block, rest := pem.Decode(text)
		switch {
		case block == nil || len(rest) > 0:
			t.Fatalf("PEM %q", text)
		case block.Type == "RSA PRIVATE KEY":
			key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			pub = &key.PublicKey
		default:
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			pub = &key.(*ecdsa.PrivateKey).PublicKey
		}
		want, _, err := evidence.PublicKey(b.key).Key()
		if err != nil || !pub.(interface{ Equal(crypto.PublicKey) bool }).Equal(want) {
			t.Errorf("key type %q: another key than the broker was given", keyType)
		}
		b.mu.Lock()
		b.token = at(time.Now().Add(-time.Second))
		b.mu.Unlock()
		c.sessions[where.URL].token = b.token
		if _, _, err := c.Token(t.Context(), where.URL); err != nil || len(b.asked()) != 2 {
			t.Errorf("an expired token is not renewed: %v", err)
		}
		if _, _, err := c.Token(t.Context(), "https://other"); err == nil {
			t.Error("a token of no broker")
		}
		key := c.sessions[where.URL].key
		c.Close()
		if _, _, err := c.Token(t.Context(), where.URL); !errors.Is(err, errClosed) {
			t.Errorf("after Close: %v", err)
		}
		if _, err := c.Fetch(t.Context(), []Want{{where.URL, "a/b/c"}}); !errors.Is(err, errClosed) {
			t.Errorf("after Close: %v", err)
		}
		isZero(t, key)
	}
}

func TestCallsOfOneSessionWaitForEachOther(t *testing.T) {
	b := &trustee{version: "0.4.0"}
	at := b.listen(t)
	c := newProbe(t, evidence.Sample, at)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.Fetch(t.Context(), []Want{{at.URL, "a/b/c"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(b.asked()); n != 2+8 {
		t.Errorf("%d requests, want one handshake and 8 resources", n)
	}
	c.sessions[at.URL].busy <- struct{}{}
	defer c.sessions[at.URL].busy.release()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, _, err := c.Token(ctx, at.URL); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a busy session: %v", err)
	}
}

// A stall ends at requestTimeout even if the caller gave no deadline, and is not tried again.
func TestAStallWithoutADeadline(t *testing.T) {
	for _, where := range []string{"auth", "attest", "resource/a/b/c", "connect"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := broker{t: t}
				ended := make(chan struct{})
				defer close(ended)
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, where) {
						io.Copy(io.Discard, r.Body)
						w.WriteHeader(200)
						w.(http.Flusher).Flush()
						<-ended
						return
					}
					b.ServeHTTP(w, r)
				})
				l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
				server := &http.Server{Handler: h}
				go server.Serve(l)
				defer server.Close()
				c, err := New([]Broker{{URL: "http://broker", AllowHTTP: true}}, sampler{}, []byte("init"))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				var dials atomic.Int32
				c.sessions["http://broker"].http.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					if dials.Add(1); where == "connect" {
						<-ctx.Done()
						return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
					}
					near, far := net.Pipe()
					l.conns <- far
					return near, nil
				}
				start := time.Now()
				_, err = c.Fetch(t.Context(), []Want{{"http://broker", "a/b/c"}})
				if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != requestTimeout {
					t.Errorf("after %v: %v", took, err)
				}
				if dials.Load() != 1 {
					t.Errorf("%d connections", dials.Load())
				}
				if e, ok := errors.AsType[*BrokerError](err); !ok || e.Next == "" {
					t.Errorf("no next step in %v", err)
				}
			})
		})
	}
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func TestAnAnswerOf1GiB(t *testing.T) {
	for _, where := range []string{"auth", "attest", "resource/default/key/1"} {
		for _, length := range []string{"", "1073741824"} {
			t.Run(where+length, func(t *testing.T) {
				b := broker{t: t}
				var sent atomic.Int64
				done := make(chan struct{})
				ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !strings.HasSuffix(r.URL.Path, where) {
						b.ServeHTTP(w, r)
						return
					}
					defer close(done)
					if length != "" {
						w.Header().Set("Content-Length", length)
					}
					chunk := bytes.Repeat([]byte{' '}, 64<<10)
					for sent.Load() < 1<<30 {
						n, err := w.Write(chunk)
						if sent.Add(int64(n)); err != nil {
							return
						}
					}
				}))
				defer ts.Close()
				_, err := get(t, ts.URL)
				if !errors.Is(err, errTooLarge) {
					t.Errorf("error %v", err)
				}
				if <-done; sent.Load() > 64<<20 {
					t.Errorf("%d bytes were taken off the broker", sent.Load())
				}
			})
		}
	}
}
