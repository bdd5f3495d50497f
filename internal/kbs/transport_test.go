package kbs

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestABrokerThatIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	start := time.Now()
	_, err = get(t, "http://"+addr)
	if err == nil || !strings.Contains(err.Error(), "connection refused") || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(start); d < 3*firstPause/2 {
		t.Errorf("gave up after %v: fewer than three tries", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), firstPause/4)
	defer cancel()
	if _, err = ask(ctx, Broker{URL: "http://" + addr, AllowHTTP: true}, "a/b/c"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want a deadline", err)
	}
}

func TestABrokerThatComesUpLate(t *testing.T) {
	b := broker{t: t}
	var n atomic.Int32
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		b.ServeHTTP(w, r)
	}))
	defer ts.Close()
	if _, err := get(t, ts.URL); err != nil {
		t.Error(err)
	}
}

func TestABrokerThatIsSilent(t *testing.T) {
	for _, where := range []string{"auth", "attest", "resource/default/key/1", "body"} {
		t.Run(where, func(t *testing.T) {
			release := make(chan struct{})
			b := broker{t: t}
			ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, where):
					<-release
				case where == "body" && strings.Contains(r.URL.Path, "resource"):
					io.WriteString(w, "{")
					w.(http.Flusher).Flush()
					<-release
				default:
					b.ServeHTTP(w, r)
				}
			}))
			defer ts.Close()
			defer close(release)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := ask(ctx, Broker{URL: ts.URL, AllowHTTP: true}, "default/key/1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v, want a deadline", err)
			}
		})
	}
}

func TestOneBrokerThatRefusesEndsTheOthers(t *testing.T) {
	release := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer silent.Close()
	defer close(release)
	refusing := (&broker{resource: answering(401, `{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":""}`)}).listen(t)
	brokers := []Broker{{URL: silent.URL, AllowHTTP: true}, {URL: refusing, AllowHTTP: true}}
	_, err := Exchange(t.Context(), brokers, sampler{}, []byte("init"), []Want{{silent.URL, "a/b/c"}, {refusing, "a/b/c"}})
	if d, ok := errors.AsType[*DeniedError](err); !ok || d.Broker != refusing {
		t.Errorf("error %v", err)
	}
}

func TestTLS(t *testing.T) {
	b := &broker{t: t}
	ts := httptest.NewUnstartedServer(b)
	ts.Config.ErrorLog = log.New(io.Discard, "", 0)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	defer ts.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	spki := sha256.Sum256(ts.Certificate().RawSubjectPublicKeyInfo)
	other := sha256.Sum256([]byte("another key"))
	_, port, err := net.SplitHostPort(ts.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		b    Broker
		want string
	}{
		"its CA":                       {Broker{CA: ca}, ""},
		"its key":                      {Broker{SPKI: spki[:]}, ""},
		"its key, under another name":  {Broker{SPKI: spki[:], URL: "https://localhost:" + port}, ""},
		"both":                         {Broker{CA: ca, SPKI: spki[:]}, ""},
		"neither":                      {Broker{}, "give its CA or its SPKI in the manifest"},
		"another key":                  {Broker{SPKI: other[:]}, fmt.Sprintf("%x", other)},
		"its CA and another key":       {Broker{CA: ca, SPKI: other[:]}, fmt.Sprintf("%x", other)},
		"its CA, under another name":   {Broker{CA: ca, URL: "https://localhost:" + port}, "localhost"},
		"its key, another CA":          {Broker{CA: otherCA(t), SPKI: spki[:]}, "give its CA"},
		"a CA that is none":            {Broker{CA: []byte("CA"), SPKI: spki[:]}, "no PEM certificate"},
		"a key that is not a SHA-256":  {Broker{SPKI: spki[:20]}, "20 bytes"},
		"http, although it speaks TLS": {Broker{URL: "http://127.0.0.1:" + port}, "http is not allowed by this image"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.b.URL == "" {
				c.b.URL = ts.URL
			}
			_, err := ask(t.Context(), c.b, "default/key/1")
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestTheEnvironmentNamesNoProxy(t *testing.T) {
	c, err := newTransport(Broker{URL: "https://broker"})
	if err != nil {
		t.Fatal(err)
	}
	if tr := c.http.Transport.(*http.Transport); tr.Proxy != nil || tr.Protocols.HTTP2() || !tr.Protocols.HTTP1() {
		t.Error("proxy or HTTP/2")
	}
}
