package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A fence is a gate that is served, with a server of its own as the outside.
type fence struct {
	*testing.T
	g     *Gate
	doors map[string]string // of Addresses, where they are on this machine
	close func()            // ends the workload; returns when Serve has
}

// named is a listener at another address than its own.
type named struct {
	net.Listener
	addr net.Addr
}

func (n named) Addr() net.Addr { return n.addr }

// serve serves rules. All that is dialled goes to server, whatever the address.
func serve(t *testing.T, l limits, server string, rules ...Rule) *fence {
	t.Helper()
	o := Outside{
		Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			switch name {
			case "loop.example.":
				return addrs([]string{"127.0.0.1"}), nil
			case "meta.example.":
				return addrs([]string{"169.254.169.254"}), nil
			case "panic.example.":
				panic("at the resolver")
			}
			return addrs([]string{"192.0.2.1"}), nil
		},
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			if to.Port() == 9 {
				return nil, errors.New("connection refused")
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", server)
		},
		Own: func() ([]netip.Addr, error) { return nil, nil },
	}
	f := &fence{T: t, g: newGate(rules, o, l), doors: map[string]string{}}
	ctx, cancel := context.WithCancel(t.Context())
	var served sync.WaitGroup
	var listeners []net.Listener
	for _, addr := range f.g.Addresses() {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f.doors[addr] = inner.Addr().String()
		listeners = append(listeners, inner)
		served.Go(func() { f.g.Serve(ctx, named{inner, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))}) })
	}
	f.close = func() {
		for _, l := range listeners {
			l.Close()
		}
		served.Wait()
		cancel()
	}
	t.Cleanup(f.close)
	return f
}

func (f *fence) dial(addr string) net.Conn {
	f.Helper()
	c, err := net.Dial("tcp", f.doors[addr])
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second)) // a test that hangs says where
	return c
}

// says sends text and gives all that comes back.
func (f *fence) says(addr, text string) string {
	f.Helper()
	c := f.dial(addr)
	if _, err := io.WriteString(c, text); err != nil {
		f.Fatal(err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

// resets expects that a connection is made and fails.
func (f *fence) resets(addr string) {
	f.Helper()
	c, err := net.Dial("tcp", f.doors[addr])
	if err == nil {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		f.Errorf("%s: %v, want a reset", addr, err)
	}
}

// echo is a server that says what it hears until it hears no more, and then "end".
func echo(t *testing.T) string {
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
			go func() {
				defer c.Close()
				if _, err := io.Copy(c, c); err == nil {
					io.WriteString(c, "end")
				}
			}()
		}
	}()
	return l.Addr().String()
}

func (f *fence) reported(want []Usage, refused ...string) {
	f.Helper()
	used, n, first := f.g.Report()
	if !slices.Equal(used, want) {
		f.Errorf("used %+v, want %+v", used, want)
	}
	if int(n) < len(refused) || !slices.Equal(first, refused) {
		f.Errorf("refused %d: %q, want %q", n, first, refused)
	}
}

func TestNamesHaveAddresses(t *testing.T) {
	g := New(rules("b.example:443", "192.0.2.0/24:80", "a.example:443", "b.example:80", "192.0.2.7:80", "[2001:db8::7]:443"), Outside{})
	if want := []string{Proxy, "127.69.0.1:443", "127.69.0.2:443", "127.69.0.1:80", "192.0.2.7:80"}; !slices.Equal(g.Addresses(), want) {
		t.Errorf("%q, want %q", g.Addresses(), want)
	}
	if want := "127.0.0.1 localhost\n::1 localhost\n127.69.0.1 b.example\n127.69.0.2 a.example\n"; g.Hosts() != want {
		t.Errorf("%q, want %q", g.Hosts(), want)
	}
}

// Bytes go both ways, and the end of one direction leaves the other open.
func TestStraightThrough(t *testing.T) {
	f := serve(t, defaults, echo(t), rules("a.example:443", "b.example:9", "loop.example:443", "meta.example:443", "192.0.2.7:80")...)
	c := f.dial("127.69.0.1:443").(*net.TCPConn)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() { c.Write(sent); c.CloseWrite() }()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, append(sent, "end"...)) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
	for _, addr := range []string{"127.69.0.2:9", "127.69.0.3:443", "127.69.0.4:443"} {
		f.resets(addr)
	}
	n := f.dial("192.0.2.7:80").(*net.TCPConn)
	n.CloseWrite()
	if b, err := io.ReadAll(n); err != nil || string(b) != "end" {
		t.Errorf("by address: %q, %v", b, err)
	}
	f.close()
	const (
		loop = "127.0.0.1 is this machine, nobody or many: not in the manifest's network.egress"
		meta = "meta.example leads to [169.254.169.254], which are addresses that a name must not lead to: not in the manifest's network.egress"
	)
	f.reported([]Usage{{"a.example:443", 1, 0, 1 << 20, 1<<20 + 3, ""}, {"b.example:9", 0, 1, 0, 0, "connection refused"},
		{"loop.example:443", 0, 1, 0, 0, loop}, {"meta.example:443", 0, 1, 0, 0, meta}, {"192.0.2.7:80", 1, 0, 0, 3, ""}},
		"loop.example:443: "+loop, "meta.example:443: "+meta)
}

func TestAnAddressThatIsNobodys(t *testing.T) {
	f := serve(t, defaults, echo(t), rules("a.example:443")...)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go f.g.Serve(t.Context(), l)
	f.doors["other"] = l.Addr().String()
	f.resets("other")
}

func TestProxyConnects(t *testing.T) {
	f := serve(t, defaults, echo(t), rules("a.example:443", "192.0.2.0/24:80", "b.example:9")...)
	for _, c := range []struct{ asks, want string }{
		{"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nhello", "HTTP/1.1 200 Connection established\r\n\r\nhelloend"},
		{"CONNECT 192.0.2.9:80 HTTP/1.1\r\n\r\nhello", "HTTP/1.1 200 Connection established\r\n\r\nhelloend"},
		{"CONNECT a.example:80 HTTP/1.1\r\n\r\nhello", "HTTP/1.1 403 Forbidden\r\n"},
		{"CONNECT c.example:443 HTTP/1.1\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n"},
		{"CONNECT 192.0.3.9:80 HTTP/1.1\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n"},
		{"CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n"},
		{"GET http://c.example/ HTTP/1.1\r\n\r\n", "HTTP/1.1 403 Forbidden\r\n"},
		{"CONNECT b.example:9 HTTP/1.1\r\n\r\n", "HTTP/1.1 502 Bad Gateway\r\n"},
		{"CONNECT b.example HTTP/1.1\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"},
		{"CONNECT a.example:443 HTTP/1.1\r\nA: " + strings.Repeat("x", 1<<16), "HTTP/1.1 431 Request Header Fields Too Large\r\n"},
		{"\x05\x01\x00\x05\x01\x00\x03\x09a.example\x01\xbbhello", "\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00helloend"},
		{"\x05\x01\x00\x05\x01\x00\x03\x09c.example\x01\xbb", "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"},
		{"\x05\x01\x00\x05\x01\x00\x03\x09b.example\x00\x09", "\x05\x00\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00"},
		{"\x05\x01\x00\x05\x02\x00\x03\x09a.example\x01\xbb", "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00"},
		{"\x05\x01\x02", "\x05\xff"},
		{"\x16\x03\x01\n", "HTTP/1.1 400 Bad Request\r\n"}, // TLS
	} {
		conn := f.dial(Proxy).(*net.TCPConn)
		go func() { io.WriteString(conn, c.asks); conn.CloseWrite() }()
		b, _ := io.ReadAll(conn)
		if got := string(b); got != c.want && (!strings.Contains(c.want, " 4") && !strings.Contains(c.want, " 5") || !strings.HasPrefix(got, c.want)) {
			t.Errorf("%.60q: says %q, want %q", c.asks, got, c.want)
		}
	}
	f.close()
	f.reported([]Usage{{"a.example:443", 2, 0, 10, 16, ""}, {"192.0.2.0/24:80", 1, 0, 5, 8, ""}, {"b.example:9", 0, 2, 0, 0, "connection refused"}},
		"a.example:80", "c.example:443", "192.0.3.9:80", "169.254.169.254:80", "c.example:80")
}

// Go's own client, as a program uses it: plain requests, bodies, CONNECT for https, and SOCKS.
func TestAnOrdinaryClient(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Host, r.URL, " ", string(b), r.Header.Get("Proxy-Authorization"))
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	for _, scheme := range []string{"http", "socks5h"} {
		for server, base := range map[*httptest.Server]string{plain: "http://a.example", secure: "https://example.com"} {
			f := serve(t, defaults, server.Listener.Addr().String(), rules("a.example:80", "example.com:443")...)
			tr := server.Client().Transport.(*http.Transport).Clone()
			tr.Proxy = http.ProxyURL(&url.URL{Scheme: scheme, Host: f.doors[Proxy], User: url.UserPassword("u", "p")})
			if scheme == "socks5h" {
				tr.Proxy = http.ProxyURL(&url.URL{Scheme: scheme, Host: f.doors[Proxy]})
			}
			client := &http.Client{Transport: tr}
			for _, body := range []string{"", "body", strings.Repeat("b", 1<<20)} {
				resp, err := client.Post(base+"/x?y", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Fatal(scheme, base, err)
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if want := strings.SplitN(base, "//", 2)[1] + "/x?y " + body; err != nil || string(b) != want {
					t.Errorf("%s of %s: %.100q, %v; want %.100q", scheme, base, b, err, want)
				}
			}
			resp, err := client.Get("http://b.example/")
			if scheme == "http" {
				if err != nil || resp.StatusCode != http.StatusForbidden {
					t.Errorf("%s: %v, %v", base, resp, err)
				}
				resp.Body.Close()
			} else if err == nil || !strings.Contains(err.Error(), "not allowed") {
				t.Errorf("%s: %v", base, err)
			}
			tr.CloseIdleConnections()
		}
	}
}

// A server that goes on after its answer, as "Connection: close" forbids, gets no second request: it may be for another place.
func TestASecondRequestEndsTheConnection(t *testing.T) {
	heard := make(chan string, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		b, _ := io.ReadAll(c)
		heard <- string(b)
	}()
	f := serve(t, defaults, l.Addr().String(), rules("a.example:80", "b.example:80")...)
	c := f.dial(Proxy)
	io.WriteString(c, "POST http://a.example/ HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, "GET http://b.example/secret HTTP/1.1\r\n\r\n")
	if got, want := <-heard, "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"; got != want {
		t.Errorf("the server heard %q, want %q", got, want)
	}
}

// TestLimits: whoever is slow, silent or many loses the connection, and no more.
func TestLimits(t *testing.T) {
	short := limits{conns: 2, handshake: 50 * time.Millisecond, dial: time.Second, idle: 100 * time.Millisecond}
	for name, c := range map[string]struct{ addr, text string }{
		"silent at the proxy":     {Proxy, ""},
		"half a head":             {Proxy, "CONNECT a.example:443 HTTP/1.1\r\nHo"},
		"half a greeting":         {Proxy, "\x05"},
		"half a SOCKS request":    {Proxy, "\x05\x01\x00\x05\x01\x00\x03\xff"},
		"silent through the door": {"127.69.0.1:443", ""},
		"silent after CONNECT":    {Proxy, "CONNECT a.example:443 HTTP/1.1\r\n\r\n"},
	} {
		f := serve(t, short, echo(t), rules("a.example:443")...)
		f.says(c.addr, c.text) // returns when the other side closes
		f.close()
		if n := len(f.g.slots); n != 0 {
			t.Errorf("%s: %d connections are left", name, n)
		}
	}

	l := defaults
	l.conns = 2
	f := serve(t, l, echo(t), rules("a.example:443")...)
	one, two := f.dial("127.69.0.1:443"), f.dial("127.69.0.1:443")
	for _, c := range []net.Conn{one, two} {
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		f.resets("127.69.0.1:443")
	}
	f.close()
	f.reported([]Usage{{"a.example:443", 2, 0, 2, 2, ""}}, "more than its connections at once")
}

// A connection on which one direction moves is not idle; when it stops, the connection ends.
func TestOneDirectionIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(nil, Outside{})
		program, c := net.Pipe()
		out, server := net.Pipe()
		start := time.Now()
		go func() {
			for range 20 {
				time.Sleep(defaults.idle - time.Second)
				server.Write([]byte("x"))
			}
		}()
		go g.carry(t.Context(), c, c, out, &usage{})
		b, err := io.ReadAll(program)
		if took := time.Since(start); err != nil || len(b) != 20 || took != 21*defaults.idle-20*time.Second {
			t.Errorf("%q in %v, %v", b, took, err)
		}
		if _, err := server.Write([]byte("x")); err == nil {
			t.Error("the outer side is open")
		}
	})
}

// TestTheEnd: when the workload is gone, nothing is left of its connections, on either side, whatever they were doing.
func TestTheEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	f := serve(t, defaults, l.Addr().String(), rules("a.example:443")...)
	inside := []net.Conn{f.dial("127.69.0.1:443"), f.dial(Proxy), f.dial(Proxy)}
	outside := []net.Conn{<-accepted}
	io.WriteString(inside[1], "CONNECT a.example:443 HTTP/1.1\r\n\r\n")
	outside = append(outside, <-accepted)
	io.WriteString(inside[2], "CONNECT a.exa") // and no more
	f.close()
	for i, c := range slices.Concat(inside, outside) {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection %d is open", i)
		}
	}
	if n := len(f.g.slots); n != 0 {
		t.Errorf("%d connections are left", n)
	}
	if _, err := net.Dial("tcp", f.doors[Proxy]); err == nil {
		t.Error("the proxy still answers")
	}
}

// TestWithItsContext: the deadline of the workload ends it as well.
func TestWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		New(nil, Outside{}).Serve(ctx, named{l, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(Proxy))})
		close(served)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	<-served
}

func TestAPanicEndsOneConnection(t *testing.T) {
	f := serve(t, defaults, echo(t), rules("panic.example:443", "a.example:443")...)
	io.ReadAll(f.dial("127.69.0.1:443"))
	c := f.dial("127.69.0.2:443").(*net.TCPConn)
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "end" {
		t.Errorf("then: %q, %v", b, err)
	}
	f.close()
	f.reported([]Usage{{"panic.example:443", 0, 0, 0, 0, ""}, {"a.example:443", 1, 0, 0, 3, ""}}, "panic: at the resolver")
}

// TestTheReportIsBounded: a workload cannot fill the owner's log with what it asks for.
func TestTheReportIsBounded(t *testing.T) {
	g := New(nil, Outside{})
	for i := range 10_000 {
		g.refuse(fmt.Sprintf("%d.%s", i%5000, strings.Repeat("x", 1000)))
	}
	_, n, first := g.Report()
	if n != 10_000 || len(first) != maxFirst || len(first[0]) != maxPlace {
		t.Errorf("%d refused, %d kept, of %d bytes", n, len(first), len(first[0]))
	}
}

func TestEnvironment(t *testing.T) {
	env := Environment()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		if env[name] != "http://"+Proxy {
			t.Errorf("%s=%s", name, env[name])
		}
	}
	if env["NO_PROXY"] != env["no_proxy"] || !strings.Contains(env["NO_PROXY"], "127.0.0.1") || len(env) != 8 {
		t.Errorf("%v", env)
	}
}
