package source

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

func pack(parts ...string) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		z := gzip.NewWriter(&b)
		io.WriteString(z, p)
		z.Close()
	}
	return b.Bytes()
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func TestCmdline(t *testing.T) {
	doc := `{"computation_id":"1"}`
	good := encode(pack(doc))
	for _, tc := range []struct{ name, arg, err string }{
		{"one gzip member", good, ""},
		{"nothing", "", "gzip"},
		{"standard alphabet", strings.NewReplacer("-", "+", "_", "/").Replace(encode([]byte{0xfb, 0xff, 0xfe})), "base64url"},
		{"padding", base64.URLEncoding.EncodeToString([]byte("1234")), "base64url"},
		{"line break", good[:8] + "\n" + good[8:], "line break"},
		{"unused bits set", "Zh", "base64url"},
		{"not gzip", encode([]byte(doc)), "gzip"},
		{"cut short", encode(pack(doc)[:20]), "gzip"},
		{"checksum wrong", encode(flip(pack(doc), -8)), "gzip"},
		{"two members", encode(pack(doc, doc)), "behind the first member"},
		{"trailing zero", encode(append(pack(doc), 0)), "1 bytes behind"},
		{"bomb", encode(pack(strings.Repeat("a", MaxSize+1))), "more than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := Open(cmdline.Source{Kind: "cmdline", Arg: tc.arg}, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.Fetch(t.Context())
			if tc.err == "" && (err != nil || string(b) != doc) {
				t.Errorf("%q, %v", b, err)
			}
			if tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
	exact := strings.Repeat("a", MaxSize)
	if b, err := inline(encode(pack(exact))).Fetch(t.Context()); err != nil || len(b) != MaxSize {
		t.Errorf("largest manifest: %d bytes, %v", len(b), err)
	}
}

func flip(b []byte, at int) []byte {
	b[len(b)+at] ^= 1
	return b
}

// host serves handler as the host does behind the vsock, and returns what Open wants.
func host(t *testing.T, handler http.HandlerFunc) func(uint32) *http.Client {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return func(port uint32) *http.Client {
		if port != 1024 {
			t.Errorf("port %d, want 1024", port)
		}
		return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
		}}}
	}
}

func TestVsock(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler http.HandlerFunc
		err     string
	}{
		{"a manifest", func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "GET" || r.URL.Path != "/v1/manifest" {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			io.WriteString(w, "doc")
		}, ""},
		{"no manifest", http.NotFound, "status 404"},
		{"an empty answer of another status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, "status 204"},
		{"too much", func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, MaxSize+1)) }, "more than"},
		{"cut short", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "9")
			w.Write([]byte("doc"))
		}, "unexpected EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := Open(cmdline.Source{Kind: "vsock", Arg: "1024"}, host(t, tc.handler))
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.Fetch(t.Context())
			if tc.err == "" && (err != nil || string(b) != "doc") {
				t.Errorf("%q, %v", b, err)
			}
			if tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
}

func TestVsockEndsWithItsContext(t *testing.T) {
	s, err := Open(cmdline.Source{Kind: "vsock", Arg: "1024"}, host(t, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // a host that never answers
	}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Fetch(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, s := range []cmdline.Source{{}, {Kind: "imds"}, {Kind: "vsock", Arg: "x"}, {Kind: "vsock", Arg: "-1"}, {Kind: "vsock", Arg: "4294967296"}} {
		if _, err := Open(s, nil); err == nil {
			t.Errorf("Open(%v) took it", s)
		}
	}
}

func FuzzCmdline(f *testing.F) {
	for _, s := range []string{"", "Zh", encode(pack("{}")), encode(pack("{}", "{}")), encode(append(pack("x"), 0))} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := inline(s).decode()
		if err != nil {
			return
		}
		if len(b) > MaxSize {
			t.Errorf("%d bytes", len(b))
		}
		// What was taken has one spelling only: text and bytes map both ways.
		raw, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || encode(raw) != s {
			t.Errorf("%q is not the one spelling of its bytes (%v)", s, err)
		}
	})
}
