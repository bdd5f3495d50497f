package image

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// proxy is one that tunnels to wherever CONNECT says, if it likes.
func proxy(t *testing.T, encrypted bool, status int) (url string, served *atomic.Int32) {
	t.Helper()
	served = new(atomic.Int32)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		if r.Method != http.MethodConnect || r.Header.Get("Proxy-Authorization") != "" || r.Header.Get("Authorization") != "" {
			t.Errorf("the proxy got %s %s with %v", r.Method, r.URL, r.Header)
		}
		if status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
		out, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer out.Close()
		in, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer in.Close()
		fmt.Fprint(in, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(out, in)
		io.Copy(in, out)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if encrypted {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv.URL, served
}

// TestProxy: requests go through it, encrypted to the registry, whose own authority counts there and not for the proxy.
func TestProxy(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	srv := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool { return false })
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	for name, c := range map[string]struct {
		encrypted, trusted bool
		status             int
		want               string // in the error; empty is success
	}{
		"http":                          {false, false, 200, ""},
		"https":                         {true, true, 200, ""},
		"https, of a private authority": {true, false, 200, "certificate"}, // that of the registry, and it does not count
		"one that wants a login":        {false, false, 407, "status 407"},
	} {
		t.Run(name, func(t *testing.T) {
			url, served := proxy(t, c.encrypted, c.status)
			tr, err := NewTransport(ca, url)
			if err != nil {
				t.Fatal(err)
			}
			defer tr.CloseIdleConnections()
			if c.trusted {
				tr.DialTLSContext = (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext
			}
			_, err = Resolve(t.Context(), at(uri, s, srv), Options{Transport: tr, Login: &Login{"alice", "x"}})
			if c.want == "" && (err != nil || served.Load() == 0) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q; the proxy served %d", err, c.want, served.Load())
			}
		})
	}
}

func TestTransport(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	tr, err := NewTransport(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if tr.Proxy != nil || tr.TLSClientConfig.MinVersion != tls.VersionTLS12 || tr.MaxResponseHeaderBytes != maxHeader || tr.Protocols.HTTP2() || !tr.DisableCompression {
		t.Errorf("%+v", tr)
	}
	for _, p := range []string{"x", "proxy.example:3128", "socks5://p", "http://", "http://u:s3cret@p", "http://p/x", "http://p?x", "http://p#x", "://"} {
		if tr, err := NewTransport(nil, p); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("proxy %s: %v, %v", p, tr, err)
		}
	}
	if tr, err := NewTransport([]byte("none"), ""); err == nil {
		t.Errorf("an authority that is none: %v", tr)
	}
}

// TestOldTLSAndLongHeaders are refused.
func TestOldTLSAndLongHeaders(t *testing.T) {
	s := newShelf(t)
	old := httptest.NewUnstartedServer(s)
	old.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.StartTLS()
	defer old.Close()
	long, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	go func() {
		for {
			c, err := long.Accept()
			if err != nil {
				return
			}
			http.ReadRequest(bufio.NewReader(c))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX: %s\r\n\r\n", strings.Repeat("x", maxHeader))
			c.Close()
		}
	}()
	tr, err := NewTransport(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Certificate().Raw}), "")
	if err != nil {
		t.Fatal(err)
	}
	defer tr.CloseIdleConnections()
	once := func(host string) error {
		ref, _, err := parseURI("docker://"+host+"/r/i:v1", true)
		if err != nil {
			t.Fatal(err)
		}
		r := openRegistry(ref.Context(), Options{Transport: tr, PlainHTTP: true})
		_, _, err = r.send(t.Context(), r.places[0], http.MethodGet, "/v2/", maxReply, http.Header{})
		return err
	}
	if err := once(old.Listener.Addr().String()); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.1: %v", err)
	}
	if err := once(long.Addr().String()); err == nil || !strings.Contains(err.Error(), "header") {
		t.Errorf("a header of 64 KiB: %v", err)
	}
}
