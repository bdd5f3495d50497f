package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/egress"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
	"github.com/google/go-cmp/cmp"
)

// An addressed listener is at another address than its own.
type addressed struct {
	net.Listener
	addr net.Addr
}

func (a addressed) Addr() net.Addr { return a.addr }

// visit says text at an address of the sandbox, and returns what comes back.
func visit(t *testing.T, s workload.Spec, addr, text string) string {
	t.Helper()
	i := slices.IndexFunc(s.Services, func(v workload.Service) bool { return v.Addr == addr })
	if i < 0 {
		t.Fatalf("nobody is at %s: %+v", addr, s.Services)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		s.Services[i].Serve(addressed{l, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))})
		close(done)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, text)
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	c.Close()
	l.Close()
	<-done
	return string(b)
}

// greeter is an outside where everybody is one server, which repeats what it hears.
func greeter(t *testing.T) egress.Outside {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	return egress.Outside{
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		},
		Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", l.Addr().String())
		},
		Own: func() ([]netip.Addr, error) { return nil, nil },
	}
}

// TestEgress: the workload gets out to what is listed and nowhere else; the owner's log says how much went there, the receipt where it
// could go, and the host's console nothing.
func TestEgress(t *testing.T) {
	f := newFlow(t)
	f.line += " ampoule.net=dhcp"
	f.edit(`"results": {`, `"env": {"https_proxy": "http://mine"}, "network": {"egress": ["api.example:443", "192.0.2.0/24:80"]}, "guest_api": {"evidence": true}, "results": {`)
	f.tamper = func(m *machine) {
		m.outside = greeter(t)
		inner := m.runWorkload
		m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
			var at, proxies []string
			for _, v := range s.Services {
				at = append(at, v.Addr)
			}
			if want := []string{"127.0.0.1:8006", "127.0.0.1:3128", "127.69.0.1:443"}; !slices.Equal(at, want) {
				t.Errorf("services at %q, want %q", at, want)
			}
			for _, kv := range s.Env {
				if strings.Contains(strings.ToLower(kv), "_proxy=") {
					proxies = append(proxies, kv)
				}
			}
			slices.Sort(proxies)
			want := []string{"ALL_PROXY=http://127.0.0.1:3128", "HTTP_PROXY=http://127.0.0.1:3128", "NO_PROXY=localhost,127.0.0.1,::1",
				"all_proxy=http://127.0.0.1:3128", "http_proxy=http://127.0.0.1:3128", "https_proxy=http://mine", "no_proxy=localhost,127.0.0.1,::1"}
			if d := cmp.Diff(want, proxies); d != "" {
				t.Error(d)
			}
			if got := visit(t, s, "127.69.0.1:443", "hello"); got != "hello" {
				t.Errorf("%q came back", got)
			}
			for asked, want := range map[string]string{
				"CONNECT 192.0.2.9:80 HTTP/1.1\r\n\r\nhello":       "HTTP/1.1 200 Connection established\r\n\r\nhello",
				"CONNECT other.example:443 HTTP/1.1\r\n\r\n":       "HTTP/1.1 403 Forbidden\r\n",
				"CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n":      "HTTP/1.1 403 Forbidden\r\n",
				"CONNECT 127.0.0.1:8006 HTTP/1.1\r\n\r\n":          "HTTP/1.1 403 Forbidden\r\n",
				"GET http://api.example/ HTTP/1.1\r\nA: b\r\n\r\n": "HTTP/1.1 403 Forbidden\r\n",
			} {
				if got := visit(t, s, "127.0.0.1:3128", asked); !strings.HasPrefix(got, want) {
					t.Errorf("%q: %q, want %q", asked, got, want)
				}
			}
			return inner(ctx, s)
		}
	}
	f.boot()
	f.ends("", result.OK, true)
	log := f.log()
	for _, want := range []string{
		`msg=egress to=api.example:443 connections=1 failed=0 sent=5 received=5`, `to=192.0.2.0/24:80 connections=1 failed=0 sent=5 received=5`,
		`msg="egress refused" times=4`, "other.example:443", "169.254.169.254:80",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	if note := "the workload could connect to api.example:443, 192.0.2.0/24:80"; !slices.Contains(f.statement().Predicate.Notes, note) {
		t.Errorf("notes %q, want %q", f.statement().Predicate.Notes, note)
	}
	if strings.Contains(f.console.String(), "example") {
		t.Errorf("the console says:\n%s", f.console)
	}
}

// TestNoEgress: nothing of it is there where nothing is said.
func TestNoEgress(t *testing.T) {
	f := newFlow(t)
	f.line += " ampoule.net=dhcp"
	f.tamper = func(m *machine) {
		inner := m.runWorkload
		m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
			if env := strings.ToLower(strings.Join(s.Env, " ")); len(s.Services) > 0 || len(s.Files) > 0 || strings.Contains(env, "proxy") {
				t.Errorf("services %+v, files %+v, environment %s", s.Services, s.Files, env)
			}
			return inner(ctx, s)
		}
	}
	f.boot()
	f.ends("", result.OK, true)
	if notes := fmt.Sprint(f.statement().Predicate.Notes); strings.Contains(notes, "connect") {
		t.Errorf("notes %s", notes)
	}
}

// TestEgressWithoutNetwork is refused before anything is fetched, and the owner is told why.
func TestEgressWithoutNetwork(t *testing.T) {
	f := newFlow(t)
	f.edit(`"results": {`, `"network": {"egress": ["api.example:443"]}, "results": {`)
	f.edit("/dataset@", "/not-there@")
	f.boot()
	f.ends("resolve", result.BadManifest, false)
	if log := f.log(); !strings.Contains(log, "network.egress: names places to reach, and this image has no network (ampoule.net is none)") {
		t.Error(log)
	}
}

// TestNamesAreLaidOver: the sandbox's names do not depend on the image's files, and the manifest's own hosts stay.
func TestNamesAreLaidOver(t *testing.T) {
	file := func(path, text string) workload.File { return workload.File{Path: path, Data: []byte(text)} }
	for name, c := range map[string]struct {
		image      []string
		have, want []workload.File
	}{
		"an image with neither":     {nil, nil, []workload.File{file("/etc/hosts", "1 a\n"), file("/etc/nsswitch.conf", "hosts: files dns\n")}},
		"an image with both":        {[]string{"hosts", "nsswitch.conf"}, nil, []workload.File{file("/etc/hosts", "1 a\n")}},
		"a manifest with its hosts": {[]string{"nsswitch.conf"}, []workload.File{file("/x", ""), file("/etc/hosts", "2 b\n")}, []workload.File{file("/x", ""), file("/etc/hosts", "1 a\n2 b\n")}},
		"a manifest with its order": {nil, []workload.File{file("/etc/nsswitch.conf", "x")}, []workload.File{file("/etc/nsswitch.conf", "x"), file("/etc/hosts", "1 a\n")}},
	} {
		s := workload.Spec{Root: t.TempDir(), Files: c.have}
		if err := os.Mkdir(filepath.Join(s.Root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range c.image {
			if err := os.WriteFile(filepath.Join(s.Root, "etc", f), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		err := layNames(&s, "1 a\n")
		if d := cmp.Diff(c.want, s.Files); d != "" || err != nil {
			t.Errorf("%s: %v, %s", name, err, d)
		}
	}
}
