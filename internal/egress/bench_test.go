package egress

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
)

// BenchmarkStraight is what one connection carries on its way in.
func BenchmarkStraight(b *testing.B) {
	const size = 64 << 20
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write(make([]byte, size))
			c.Close()
		}
	}()
	in, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	g := New(rules("a.example:443"), Outside{
		Lookup: func(context.Context, string) ([]netip.Addr, error) { return addrs([]string{"192.0.2.1"}), nil },
		Dial:   func(context.Context, netip.AddrPort) (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) },
		Own:    func() ([]netip.Addr, error) { return nil, nil },
	})
	go g.Serve(b.Context(), named{in, net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.69.0.1:443"))})
	b.SetBytes(size)
	for b.Loop() {
		c, err := net.Dial("tcp", in.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, c); err != nil || n != size {
			b.Fatal(n, err)
		}
		c.Close()
	}
	in.Close()
}
