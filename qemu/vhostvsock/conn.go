package vhostvsock

import (
	"net"
	"sync"
	"time"
)

// window is how many bytes the guest may have under way in one connection. They wait in memory here, so the whole guest
// can hold twice maxConns × window.
const window = 256 << 10

type state uint8

const (
	dialing    state = iota // the guest asked, the host's end is being opened
	requesting              // the host asked, the guest has not answered
	connected
)

// A conn is one connection. Its fields are under Device.mu; nothing that can block is done with the lock held.
type conn struct {
	key
	d     *Device
	cond  *sync.Cond
	state state
	host  net.Conn      // nil while dialing
	ready chan struct{} // requesting: closed when the guest answered, or never will

	// From the guest to the host.
	in           []byte // received and not yet being written
	spare        []byte // the buffer that is not in use
	held         uint32 // bytes received and not yet written: what counts against window
	fwd, fwdSent uint32 // bytes written since the beginning, and what the guest knows of that
	inEnd        bool   // the guest sends no more
	refused      bool   // the host's end takes no more

	// From the host to the guest.
	out        []byte // read and not yet sent
	sending    bool   // a piece of it is on its way into the ring
	tx         uint32 // bytes sent since the beginning
	alloc, got uint32 // the guest's window, and how much it has taken since the beginning
	outEnd     bool   // the guest takes no more

	// What the guest has yet to be told.
	owesRequest, owesResponse, owesCredit bool
	shut, shutSent                        uint32

	queued bool // in Device.ready
	gone   bool // not in Device.conns: the guest has forgotten it
	dead   bool // and what is under way is lost
}

// credit is how many bytes the guest has room for. Its counters are its own to falsify: the worst is that it gets more
// than it has room for.
func (c *conn) credit() int {
	flight := c.tx - c.got
	if flight >= c.alloc {
		return 0
	}
	return int(c.alloc - flight)
}

// take makes the next packet for the guest, if there is one; order matters: an answer, data, the end of data.
func (c *conn) take() (p packet, ok bool) {
	p = packet{key: c.key, src: hostCID, dst: c.d.cfg.CID, kind: typeStream, alloc: window, fwd: c.fwd}
	switch {
	case c.dead || c.gone:
		return p, false
	case c.owesRequest:
		p.op, c.owesRequest = opRequest, false
	case c.owesResponse:
		p.op, c.owesResponse = opResponse, false
	case c.state != connected:
		return p, false
	case len(c.out) > 0 && !c.outEnd && c.credit() > 0:
		n := min(len(c.out), c.credit())
		p.op, p.data = opRW, c.out[:n]
		c.out, c.tx, c.sending = c.out[n:], c.tx+uint32(n), true
	case c.shut != c.shutSent:
		p.op, p.flags, c.shutSent = opShutdown, c.shut, c.shut
	case c.owesCredit:
		p.op = opCreditUpdate
	default:
		return p, false
	}
	c.fwdSent, c.owesCredit = c.fwd, false // every packet tells the window
	return p, true
}

// run moves bytes both ways until both ways have ended, and closes the host's end.
func (c *conn) run() {
	var wg sync.WaitGroup
	wg.Go(c.fromHost)
	c.toHost()
	wg.Wait()
	// The other end has gone or has seen the end of the data: nobody is left to tell of an error.
	_ = c.host.Close()
	c.d.mu.Lock()
	delete(c.d.all, c)
	c.d.mu.Unlock()
}

// fromHost reads no more than the guest has room for, so a guest that does not read stops the sender.
func (c *conn) fromHost() {
	d, buf := c.d, make([]byte, maxPayload)
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		for !c.dead && !c.outEnd && c.credit() == 0 {
			c.cond.Wait()
		}
		if c.dead || c.outEnd {
			return
		}
		n := min(len(buf), c.credit())
		d.mu.Unlock()
		n, err := c.host.Read(buf[:n])
		d.mu.Lock()
		if n > 0 {
			c.out = buf[:n]
			d.enqueue(c)
		}
		for !c.dead && !c.outEnd && (len(c.out) > 0 || c.sending) {
			c.cond.Wait()
		}
		if err != nil {
			// An error is an end as well: what it was, the guest need not know. One that takes no more knows already.
			if !c.outEnd {
				c.shut |= shutSend
				d.enqueue(c)
			}
			return
		}
	}
}

// toHost writes what the guest sent.
func (c *conn) toHost() {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		for len(c.in) == 0 && !c.inEnd && !c.dead {
			c.cond.Wait()
		}
		if c.dead {
			return
		}
		if len(c.in) == 0 {
			if h, ok := c.host.(interface{ CloseWrite() error }); ok {
				// Where the other end is gone already, there is no one to whom the end matters.
				_ = h.CloseWrite()
			}
			return
		}
		b := c.in
		c.in, c.spare = c.spare[:0], nil
		d.mu.Unlock()
		_, err := c.host.Write(b)
		d.mu.Lock()
		c.spare = b
		c.held -= uint32(len(b))
		c.fwd += uint32(len(b))
		if err != nil {
			// The host's end may still have an answer to send: only this way is shut.
			c.refuse()
			return
		}
		if c.fwd-c.fwdSent >= window/4 {
			c.owesCredit = true
			d.enqueue(c)
		}
	}
}

func (c *conn) refuse() {
	c.refused = true
	c.fwd += c.held
	c.in, c.held = nil, 0
	c.shut |= shutReceive
	c.d.enqueue(c)
}

// receive takes data from the guest; false says that it broke the rules.
func (c *conn) receive(data []byte) bool {
	if c.inEnd || uint32(len(data)) > window-c.held {
		return false
	}
	if c.refused {
		c.fwd += uint32(len(data))
		return true
	}
	c.in = append(c.in, data...)
	c.held += uint32(len(data))
	c.cond.Broadcast()
	return true
}

// endInput and endOutput shut one way; what the guest has sent before is still delivered.
func (c *conn) endInput() {
	c.inEnd = true
	c.cond.Broadcast()
}

func (c *conn) endOutput() {
	if c.outEnd {
		return
	}
	c.outEnd = true
	c.cond.Broadcast()
	if c.host == nil {
		return
	}
	// Read returns; and where it can be done, whoever writes at the other end hears of it.
	_ = c.host.SetReadDeadline(time.Unix(1, 0))
	if h, ok := c.host.(interface{ CloseRead() error }); ok {
		_ = h.CloseRead()
	}
}

// kill ends a connection at once.
func (c *conn) kill() {
	if c.dead {
		return
	}
	c.dead = true
	c.cond.Broadcast()
	if c.state == requesting {
		close(c.ready)
	}
	if c.host != nil {
		_ = c.host.Close()
	}
}
