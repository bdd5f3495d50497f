package vhostvsock

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// ends hands the host's ends of connections to the test.
type ends chan *net.UnixConn

func (e ends) dial(port uint32) (net.Conn, error) {
	if port == 666 {
		return nil, errors.New("nobody listens")
	}
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	theirs.SetDeadline(time.Now().Add(patience))
	e <- theirs
	return ours, nil
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

var testKey = key{guest: 5000, host: 1024}

func setup(t testing.TB) (*Device, *frontend, ends) {
	t.Helper()
	e := make(ends, maxConns+8)
	d := newDevice(t, e.dial)
	return d, plug(t, d), e
}

func TestManyDescriptorsFromTheGuest(t *testing.T) {
	for name, sizes := range map[string][]int{
		"one descriptor":                    nil,
		"header apart":                      {headerSize},
		"header split":                      {1, 20, 23},
		"pages":                             {headerSize, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096},
		"an empty descriptor in the middle": {headerSize, 0, 100},
	} {
		t.Run(name, func(t *testing.T) {
			_, f, e := setup(t)
			f.open(testKey)
			host := <-e
			want := pattern(maxPayload)
			f.send(pkt(testKey, opRW, want), sizes...)
			got := make([]byte, len(want))
			if _, err := io.ReadFull(host, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("host got other bytes, %v", err)
			}
		})
	}
}

// stream moves n bytes both ways at once, as guests do that obey the credit.
func TestStreamsBothWaysOverTheWindow(t *testing.T) {
	_, f, e := setup(t)
	f.open(testKey)
	host := <-e
	const total = 8 << 20
	data := pattern(total)
	go func() {
		host.Write(data)
		host.CloseWrite()
	}()
	sum := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		io.Copy(h, host)
		sum <- [32]byte(h.Sum(nil))
	}()
	var got []byte
	var sent, fwd uint32
	alloc := uint32(window)
	ended := false
	for !ended || sent < total {
		// Send while there is credit, otherwise receive: a packet must come.
		if sent < total && alloc-(sent-fwd) > 0 {
			n := min(maxPayload, alloc-(sent-fwd), total-sent)
			p := pkt(testKey, opRW, data[sent:sent+n])
			p.alloc, p.fwd = 128<<10, uint32(len(got))
			f.send(p, headerSize, 3000, 5000)
			sent += n
			if f.usedPending(rxRing) == 0 {
				continue
			}
		}
		p := f.receive()
		alloc, fwd = p.alloc, p.fwd
		switch p.op {
		case opRW:
			got = append(got, p.data...)
			if len(got)%(64<<10) < len(p.data) {
				u := pkt(testKey, opCreditUpdate, nil)
				u.alloc, u.fwd = 128<<10, uint32(len(got))
				f.send(u)
			}
		case opShutdown:
			if p.flags != shutSend {
				t.Fatalf("shutdown %d", p.flags)
			}
			ended = true
		case opCreditUpdate:
		default:
			t.Fatalf("packet %+v", p)
		}
	}
	if !bytes.Equal(got, data) {
		t.Errorf("guest got %d bytes, or other ones", len(got))
	}
	end := pkt(testKey, opShutdown, nil)
	end.flags = shutSend | shutReceive
	f.send(end)
	for p := f.receive(); p.op != opReset; p = f.receive() {
		if p.op != opCreditUpdate {
			t.Fatalf("packet %+v", p)
		}
	}
	if s := <-sum; s != sha256.Sum256(data) {
		t.Error("host got other bytes")
	}
}

func TestGuestThatDoesNotReadStopsTheHost(t *testing.T) {
	_, f, e := setup(t)
	req := pkt(testKey, opRequest, nil)
	req.alloc = 10000
	f.send(req)
	f.want(opResponse, testKey)
	host := <-e
	go host.Write(pattern(100000))
	var got []byte
	for len(got) < 10000 {
		got = append(got, f.want(opRW, testKey).data...)
	}
	if len(got) != 10000 {
		t.Fatalf("%d bytes on a credit of 10000", len(got))
	}
	// Only what it makes room for comes; the answer to a credit request comes without data before it.
	f.send(func() packet { p := pkt(testKey, opCreditRequest, nil); p.alloc, p.fwd = 10000, 0; return p }())
	f.want(opCreditUpdate, testKey)
	f.send(func() packet { p := pkt(testKey, opCreditUpdate, nil); p.alloc, p.fwd = 10000, 7; return p }())
	if p := f.want(opRW, testKey); len(p.data) != 7 {
		t.Errorf("%d bytes on a credit of 7", len(p.data))
	}
	// A window that shrinks below what is under way, and a counter from the future, are no credit without end.
	f.send(func() packet { p := pkt(testKey, opCreditUpdate, nil); p.alloc, p.fwd = 100, 7; return p }())
	f.send(func() packet { p := pkt(testKey, opCreditRequest, nil); p.alloc, p.fwd = 100, 1<<31; return p }())
	f.want(opCreditUpdate, testKey)
}

func TestHostThatDoesNotReadIsNotFlooded(t *testing.T) {
	d, f, e := setup(t)
	f.open(testKey)
	host := <-e
	block := pattern(maxPayload)
	// The kernel's socket buffer takes some; a reader that takes none lets the window fill and no more.
	sent := 0
	for {
		d.mu.Lock()
		c := d.conns[testKey]
		held := c.held
		d.mu.Unlock()
		if held+maxPayload > window {
			break
		}
		f.send(pkt(testKey, opRW, block))
		sent++
	}
	if sent < window/maxPayload {
		t.Fatalf("%d packets", sent)
	}
	for range 2 { // what was under way when held was read leaves room for one at most
		f.send(pkt(testKey, opRW, block))
	}
	for p := f.receive(); p.op != opReset; p = f.receive() {
		if p.op != opCreditUpdate {
			t.Fatalf("packet %+v", p)
		}
	}
	if _, err := io.Copy(io.Discard, host); err != nil && !errors.Is(err, io.EOF) {
		t.Log(err) // a reset is as good as an end
	}
	// The port is free again. The second of the two packets may have been answered with a reset of its own.
	f.send(pkt(testKey, opRequest, nil))
	for p := f.receive(); p.op != opResponse; p = f.receive() {
		if p.op != opReset {
			t.Fatalf("packet %+v", p)
		}
	}
}

func TestHalfCloses(t *testing.T) {
	shut := func(flags uint32) packet {
		p := pkt(testKey, opShutdown, nil)
		p.flags = flags
		return p
	}
	t.Run("the guest ends its sending and still receives", func(t *testing.T) {
		_, f, e := setup(t)
		f.open(testKey)
		host := <-e
		f.send(pkt(testKey, opRW, []byte("request")))
		f.send(shut(shutSend))
		if b, err := io.ReadAll(host); err != nil || string(b) != "request" {
			t.Errorf("%q, %v", b, err)
		}
		host.Write([]byte("answer"))
		if p := f.want(opRW, testKey); string(p.data) != "answer" {
			t.Errorf("%q", p.data)
		}
		host.Close()
		if p := f.want(opShutdown, testKey); p.flags != shutSend {
			t.Errorf("flags %d", p.flags)
		}
		f.send(shut(shutSend | shutReceive))
		f.want(opReset, testKey)
	})
	t.Run("the guest ends both and what it sent arrives", func(t *testing.T) {
		_, f, e := setup(t)
		f.open(testKey)
		host := <-e
		f.send(pkt(testKey, opRW, pattern(50000)))
		f.send(shut(shutSend | shutReceive))
		f.want(opReset, testKey)
		if b, err := io.ReadAll(host); err != nil || !bytes.Equal(b, pattern(50000)) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		f.open(testKey)
	})
	t.Run("the guest receives no more and the host hears of it", func(t *testing.T) {
		_, f, e := setup(t)
		f.open(testKey)
		host := <-e
		f.send(shut(shutReceive))
		var err error
		for err == nil {
			_, err = host.Write(make([]byte, 1<<20))
		}
		f.send(pkt(testKey, opRW, []byte("still")))
		got := make([]byte, 5)
		if _, err := io.ReadFull(host, got); err != nil || string(got) != "still" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("the host answers early and takes no more", func(t *testing.T) {
		_, f, e := setup(t)
		f.open(testKey)
		host := <-e
		host.Write([]byte("413"))
		if p := f.want(opRW, testKey); string(p.data) != "413" {
			t.Errorf("%q", p.data)
		}
		host.Close()
		if p := f.want(opShutdown, testKey); p.flags != shutSend {
			t.Errorf("flags %d", p.flags)
		}
		f.send(pkt(testKey, opRW, []byte("rest of the request")))
		if p := f.want(opShutdown, testKey); p.flags != shutSend|shutReceive {
			t.Errorf("flags %d", p.flags)
		}
		f.send(pkt(testKey, opRW, []byte("and more of it")))
		f.send(shut(shutSend | shutReceive))
		f.want(opReset, testKey)
	})
	t.Run("data after the end is refused", func(t *testing.T) {
		_, f, e := setup(t)
		f.open(testKey)
		<-e
		f.send(shut(shutSend))
		f.send(pkt(testKey, opRW, []byte("x")))
		f.want(opReset, testKey)
	})
}

func TestResets(t *testing.T) {
	_, f, e := setup(t)
	k := func(port uint32) key { return key{guest: port, host: 1024} }
	for name, p := range map[string]packet{
		"data of no connection":            pkt(k(1), opRW, []byte("x")),
		"a response that nobody asked":     pkt(k(2), opResponse, nil),
		"a shutdown of no connection":      pkt(k(3), opShutdown, nil),
		"an operation that does not exist": pkt(k(4), 99, nil),
		"a port where nobody listens":      pkt(key{guest: 5, host: 666}, opRequest, nil),
		"a port of the host's own":         pkt(key{guest: 5, host: firstPort}, opRequest, nil),
	} {
		t.Run(name, func(t *testing.T) {
			f.t = t
			f.send(p)
			f.want(opReset, p.key)
		})
	}
	f.t = t
	t.Run("another type of socket", func(t *testing.T) {
		p := pkt(k(6), opRequest, nil)
		p.kind = 2
		f.send(p)
		if got := f.receive(); got.op != opReset || got.kind != 2 {
			t.Errorf("packet %+v", got)
		}
	})
	// What is not for us, and what needs no answer, gets none.
	for _, change := range []func(*packet){
		func(p *packet) { p.src = testCID + 1 },
		func(p *packet) { p.dst = 1 },
		func(p *packet) { p.op = opReset },
		func(p *packet) { p.op, p.kind = opReset, 2 },
	} {
		p := pkt(k(7), opRW, nil)
		change(&p)
		f.send(p)
	}
	f.sendRaw(make([]byte, headerSize-1))
	t.Run("a second request for a connection", func(t *testing.T) {
		f.t = t
		f.open(testKey)
		host := <-e
		f.send(pkt(testKey, opRequest, nil))
		f.want(opReset, testKey)
		if b, err := io.ReadAll(host); len(b) != 0 {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("a payload that is longer than its chain", func(t *testing.T) {
		f.t = t
		f.open(testKey)
		p := pkt(testKey, opRW, nil)
		h := p.header(100)
		le.PutUint32(h[16:], p.guest)
		le.PutUint32(h[20:], p.host)
		f.sendRaw(append(h[:], make([]byte, 99)...))
		f.want(opReset, testKey)
		<-e
	})
	t.Run("a reset of the guest", func(t *testing.T) {
		f.t = t
		f.open(testKey)
		host := <-e
		f.send(pkt(testKey, opReset, nil))
		if b, err := io.ReadAll(host); len(b) != 0 {
			t.Errorf("%q, %v", b, err)
		}
		f.open(testKey)
	})
}

func TestConnectionsAreLimited(t *testing.T) {
	_, f, e := setup(t)
	k := func(i int) key { return key{guest: uint32(i), host: 1024} }
	var hosts []*net.UnixConn
	for i := range maxConns {
		f.open(k(i))
		hosts = append(hosts, <-e)
	}
	f.send(pkt(k(maxConns), opRequest, nil))
	f.want(opReset, k(maxConns))
	// One that the guest has left and the host has not is still counted until it ends.
	f.send(pkt(k(0), opReset, nil))
	io.ReadAll(hosts[0])
	deadline := time.Now().Add(patience)
	for {
		f.send(pkt(k(maxConns), opRequest, nil))
		if p := f.receive(); p.op == opResponse {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a connection that ended is not free")
		}
	}
}

func TestHostDialsTheGuest(t *testing.T) {
	type dialed struct {
		net.Conn
		error
	}
	dial := func(ctx context.Context, d *Device) chan dialed {
		c := make(chan dialed, 1)
		go func() {
			conn, err := d.Dial(ctx, 7)
			c <- dialed{conn, err}
		}()
		return c
	}
	t.Run("answered", func(t *testing.T) {
		d, f, _ := setup(t)
		c := dial(t.Context(), d)
		p := f.receive()
		if p.op != opRequest || p.guest != 7 || p.host < firstPort {
			t.Fatalf("packet %+v", p)
		}
		f.send(pkt(p.key, opResponse, nil))
		got := <-c
		if got.error != nil {
			t.Fatal(got.error)
		}
		defer got.Close()
		got.Write([]byte("ping"))
		if q := f.want(opRW, p.key); string(q.data) != "ping" {
			t.Errorf("%q", q.data)
		}
		f.send(pkt(p.key, opRW, []byte("pong")))
		b := make([]byte, 4)
		if _, err := io.ReadFull(got, b); err != nil || string(b) != "pong" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		d, f, _ := setup(t)
		c := dial(t.Context(), d)
		p := f.receive()
		f.send(pkt(p.key, opReset, nil))
		if got := <-c; got.error == nil {
			t.Error("no error")
		}
	})
	t.Run("answered with data", func(t *testing.T) {
		d, f, _ := setup(t)
		c := dial(t.Context(), d)
		p := f.receive()
		f.send(pkt(p.key, opRW, []byte("x")))
		f.want(opReset, p.key)
		if got := <-c; got.error == nil {
			t.Error("no error")
		}
	})
	t.Run("never answered", func(t *testing.T) {
		d, f, _ := setup(t)
		ctx, cancel := context.WithCancel(t.Context())
		c := dial(ctx, d)
		p := f.receive()
		cancel()
		if got := <-c; !errors.Is(got.error, context.Canceled) {
			t.Errorf("error %v", got.error)
		}
		f.want(opReset, p.key)
	})
}
