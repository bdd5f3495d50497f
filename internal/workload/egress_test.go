package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/egress"
)

// The way out as a workload meets it: names that are listed lead out, by themselves and through the proxy, and nothing else does.
func TestTheProgramGetsOutWhereItMay(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "I am ", r.Host) }))
	defer server.Close()
	outside := egress.Outside{
		Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			switch name {
			case "api.example.":
				return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
			case "loop.example.":
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
			case "meta.example.":
				return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
			}
			t.Errorf("%s was looked up", name)
			return nil, errors.New("no such host")
		},
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			if a := to.Addr().String(); a != "192.0.2.1" && a != "198.51.100.7" && a != "198.51.100.9" {
				t.Errorf("%s was dialled", to)
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", server.Listener.Addr().String())
		},
		Own: func() ([]netip.Addr, error) { return nil, nil },
	}
	rules := []egress.Rule{
		{Name: "api.example", Port: 80}, {Name: "loop.example", Port: 80}, {Name: "meta.example", Port: 80}, {Prefix: netip.MustParsePrefix("198.51.100.0/24"), Port: 80},
		{Prefix: netip.MustParsePrefix("198.51.100.9/32"), Port: 80},
	}
	const refused = "403 "
	for name, c := range map[string]struct {
		env  map[string]string
		want map[string]string
	}{
		"by itself": {nil, map[string]string{
			"http://api.example/":             "200 I am api.example <nil>",
			"http://api.example:81/":          "connection refused",
			"http://other.example/":           "connection refused", // to a name server, of which there is none
			"http://loop.example/":            "cut off",
			"http://meta.example/":            "cut off",
			"http://198.51.100.7/":            "network is unreachable",
			"http://198.51.100.9/":            "200 I am 198.51.100.9 <nil>",
			"http://198.51.100.9:81/":         "connection refused",
			"http://192.0.2.1/":               "network is unreachable",
			"http://169.254.169.254/":         "network is unreachable",
			server.URL:                        "connection refused",
			"http://127.0.0.1:3128/":          "400 ",
			"http://[2001:db8::1]/":           "network is unreachable",
			"http://10.0.2.2/":                "network is unreachable",
			"http://metadata.google.internal": "connection refused",
		}},
		"through the proxy": {egress.Environment(), map[string]string{
			"http://api.example/":     "200 I am api.example <nil>",
			"http://api.example:81/":  refused,
			"http://other.example/":   refused,
			"http://loop.example/":    refused,
			"http://meta.example/":    refused,
			"http://198.51.100.7/":    "200 I am 198.51.100.7 <nil>",
			"http://198.51.100.7:81/": refused,
			"http://198.51.101.7/":    refused,
			"http://192.0.2.1/":       refused,
			"http://169.254.169.254/": refused,
			"http://[2001:db8::1]/":   refused,
			"http://0.0.0.0/":         refused,
			server.URL:                "connection refused",
		}},
	} {
		g := egress.New(rules, outside)
		args := []string{"fetch"}
		for url := range c.want {
			args = append(args, url)
		}
		s, stdout, stderr := sandbox(t, args...)
		for _, addr := range g.Addresses() {
			s.Services = append(s.Services, Service{addr, func(l net.Listener) { g.Serve(t.Context(), l) }})
		}
		s.Files = []File{{"/etc/hosts", []byte(g.Hosts())}}
		for k, v := range c.env {
			s.Env = append(s.Env, k+"="+v)
		}
		mustRun(t, s, Outcome{})
		var got map[string]string
		if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
			t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
		}
		for url, want := range c.want {
			if !strings.HasPrefix(got[url], want) && !strings.HasSuffix(got[url], want) && !(strings.HasPrefix(want, "conn") && strings.Contains(got[url], want)) {
				t.Errorf("%s, %s: %q, want %q", name, url, got[url], want)
			}
		}
	}
}

// A program that ends with connections open leaves none, and one that hangs is killed with them.
func TestTheWayOutEndsWithTheProgram(t *testing.T) {
	ended := make(chan error, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := l.Accept()
		if err != nil {
			ended <- err
			return
		}
		cancel() // the deadline comes while it waits for an answer
		b := make([]byte, 1<<10)
		for err == nil {
			_, err = c.Read(b)
		}
		ended <- nil
	}()
	g := egress.New([]egress.Rule{{Name: "api.example", Port: 80}}, egress.Outside{
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		},
		Dial: func(context.Context, netip.AddrPort) (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) },
		Own:  func() ([]netip.Addr, error) { return nil, nil },
	})
	s, _, _ := sandbox(t, "fetch", "http://api.example/")
	for _, addr := range g.Addresses() {
		s.Services = append(s.Services, Service{addr, func(l net.Listener) { g.Serve(t.Context(), l) }})
	}
	s.Files = []File{{"/etc/hosts", []byte(g.Hosts())}}
	out, err := run(t, ctx, s)
	if err != nil || !out.Deadline {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
