package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Serve answers at one of Addresses until l is closed or ctx ends. All its connections are closed when it returns, in both directions.
func (g *Gate) Serve(ctx context.Context, l net.Listener) {
	ctx, cancel := context.WithCancel(ctx)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	answer := g.at(l.Addr().String())
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed: the workload is gone
		}
		select {
		case g.slots <- struct{}{}:
		default:
			g.refuse("more than its connections at once")
			reset(c)
			continue
		}
		open.Go(func() {
			defer func() { <-g.slots }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			defer g.caught()
			answer(ctx, c)
		})
	}
}

// caught ends a panic, which would end PID 1.
func (g *Gate) caught() {
	if p := recover(); p != nil {
		g.refuse(fmt.Sprintf("panic: %v", p))
	}
}

// reset closes a connection so that the program sees that it failed, and not that there was nothing to say.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// at says who answers at an address: the proxy, or a rule.
func (g *Gate) at(addr string) func(context.Context, net.Conn) {
	if addr == Proxy {
		return g.proxy
	}
	for _, r := range g.rules {
		if at, ok := g.door(r); ok && at.String() == addr {
			return func(ctx context.Context, c net.Conn) { g.straight(ctx, c, r) }
		}
	}
	return func(_ context.Context, c net.Conn) { reset(c) }
}

// straight carries a connection to the one place that its address stands for.
func (g *Gate) straight(ctx context.Context, c net.Conn, r Rule) {
	host := r.Name
	if host == "" {
		host = r.Prefix.Addr().String()
	}
	out, i, err := g.open(ctx, host, r.Port)
	if err != nil {
		reset(c)
		return
	}
	g.carry(ctx, c, c, out, &g.used[i])
}

// open dials and counts.
func (g *Gate) open(ctx context.Context, host string, port uint16) (net.Conn, int, error) {
	out, i, err := g.dial(ctx, host, port)
	if errors.Is(err, errRefused) {
		place := net.JoinHostPort(host, fmt.Sprint(port))
		if i >= 0 {
			place += ": " + err.Error()
		}
		g.refuse(place)
	}
	switch {
	case i < 0:
	case err != nil:
		why := err.Error()
		why = why[:min(len(why), maxPlace)]
		g.used[i].why.Store(&why)
		g.used[i].failed.Add(1)
	default:
		g.used[i].conns.Add(1)
	}
	return out, i, err
}

// proxy serves one request of a program that knows that it speaks to a proxy.
func (g *Gate) proxy(ctx context.Context, c net.Conn) {
	c.SetDeadline(time.Now().Add(g.limits.handshake))
	r, left := headReader(c)
	first, err := r.Peek(1)
	if err != nil {
		return
	}
	socks := first[0] == socksVersion
	var req request
	if socks {
		left.N = math.MaxInt64 // a request of SOCKS has at most 519 bytes
		req, err = readSOCKS(r, c)
	} else {
		req, err = readHTTP(r, left)
	}
	if err != nil {
		if why, ok := errors.AsType[*badSOCKS](err); ok {
			c.Write(socksReply(why.code))
		} else if why, ok := errors.AsType[*badRequest](err); ok {
			answer(c, why.status, why.why)
		}
		part(c)
		return
	}
	c.SetDeadline(time.Time{})
	out, i, err := g.open(ctx, req.host, req.port)
	c.SetWriteDeadline(time.Now().Add(g.limits.handshake))
	place := net.JoinHostPort(req.host, fmt.Sprint(req.port))
	switch {
	case err != nil && socks:
		code := byte(socksUnreachable)
		if errors.Is(err, errRefused) {
			code = socksRefused
		}
		c.Write(socksReply(code))
		part(c)
		return
	case errors.Is(err, errRefused):
		answer(c, "403 Forbidden", place+" is "+errRefused.Error())
		part(c)
		return
	case err != nil: // why, is nothing that a workload could do something about
		answer(c, "502 Bad Gateway", place+" cannot be reached")
		part(c)
		return
	case socks:
		_, err = c.Write(socksReply(socksOK))
	case req.head == nil:
		_, err = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	default:
		out.SetWriteDeadline(time.Now().Add(g.limits.handshake))
		_, err = out.Write(req.head)
		g.used[i].sent.Add(int64(len(req.head)))
		out.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		out.Close()
		return
	}
	c.SetWriteDeadline(time.Time{})
	var in io.Reader = r
	if req.head != nil {
		in = &one{r, req.body}
	}
	g.carry(ctx, c, in, out, &g.used[i])
}

// one is the body of one request. A second request on the connection ends it: it may be for another place.
type one struct {
	r    io.Reader
	left int64
}

func (o *one) Read(b []byte) (int, error) {
	if o.left == 0 {
		n, err := o.r.Read(b[:1])
		if n > 0 {
			return 0, errors.New("a second request")
		}
		return 0, err
	}
	n, err := o.r.Read(b[:min(int64(len(b)), o.left)])
	o.left -= int64(n)
	return n, err
}

// part lets the program read the last answer: closing at once, with something unread, would take it back.
func part(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	io.CopyN(io.Discard, c, 16*maxHead)
}

// answer is all that the proxy itself says in HTTP.
func answer(w io.Writer, status, text string) {
	text = strings.ToValidUTF8(text, "?") + "\n"
	fmt.Fprintf(w, "HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, len(text), text)
}

// carry copies both ways between c, whose bytes come from r, and out, until both have ended, one fails, nothing moves for too long, or
// ctx ends. It closes both.
func (g *Gate) carry(ctx context.Context, c net.Conn, r io.Reader, out net.Conn, u *usage) {
	end := func() { c.Close(); out.Close() }
	defer end()
	defer context.AfterFunc(ctx, end)()
	idle := time.AfterFunc(g.limits.idle, end)
	defer idle.Stop()
	var back sync.WaitGroup
	back.Go(func() {
		defer g.caught()
		move(c, out, &u.received, idle, g.limits.idle, end)
	})
	move(out, r, &u.sent, idle, g.limits.idle, end)
	back.Wait()
}

// chunk is what is copied at once, bytes: two of them for each connection.
const chunk = 16 << 10

// move copies in one direction. At the end of from, to is told that there is no more, and may go on in its own direction.
func move(to net.Conn, from io.Reader, count *atomic.Int64, idle *time.Timer, limit time.Duration, end func()) {
	b := make([]byte, chunk)
	for {
		n, err := from.Read(b)
		if n > 0 {
			idle.Reset(limit)
			if _, err := to.Write(b[:n]); err != nil {
				end()
				return
			}
			count.Add(int64(n))
		}
		if err == nil {
			continue
		}
		half, ok := to.(interface{ CloseWrite() error })
		if !errors.Is(err, io.EOF) || !ok || half.CloseWrite() != nil {
			end()
		}
		return
	}
}
