package vhostvsock

import (
	"net"
	"sync"
)

// All of this file runs with Device.mu held, except handle, next, sent, dial and detach, which take it. None of it blocks.

func (d *Device) add(k key, st state) *conn {
	c := &conn{key: k, d: d, state: st}
	c.cond = sync.NewCond(&d.mu)
	d.conns[k] = c
	d.all[c] = struct{}{}
	return c
}

// drop forgets a connection: its ports may be used again. Its goroutines, if it has any, end as they can.
func (d *Device) drop(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	delete(d.conns, c.key)
	if c.state == requesting {
		delete(d.all, c) // it has no goroutine that does it in the end
	}
}

func (d *Device) enqueue(c *conn) {
	if !c.queued && !c.gone {
		c.queued = true
		d.ready = append(d.ready, c)
		d.work.Signal()
	}
}

// reset ends a connection at once and tells the guest.
func (d *Device) reset(c *conn) {
	d.resetKey(c.key, typeStream)
	d.drop(c)
	c.kill()
}

func (d *Device) resetKey(k key, kind uint16) {
	if len(d.resets) < maxResets {
		d.resets = append(d.resets, packet{key: k, src: hostCID, dst: d.cfg.CID, kind: kind, op: opReset})
		d.work.Signal()
	}
}

// start lets bytes move. The host's end is there.
func (d *Device) start(c *conn) {
	c.state = connected
	d.wg.Go(c.run)
}

// handle acts on one packet of the guest.
func (d *Device) handle(p packet, bad error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || p.src != d.cfg.CID || p.dst != hostCID {
		return
	}
	c := d.conns[p.key]
	switch {
	case p.kind != typeStream:
		if p.op != opReset {
			d.resetKey(p.key, p.kind)
		}
	case p.op == opReset:
		if c != nil {
			d.drop(c)
			c.kill()
		}
	case c == nil && p.op == opRequest && bad == nil && len(d.all) < maxConns && p.host < firstPort:
		c = d.add(p.key, dialing)
		c.alloc, c.got = p.alloc, p.fwd
		d.wg.Go(func() { d.dial(c) })
	case c == nil:
		d.resetKey(p.key, typeStream)
	case bad != nil || !d.dispatch(c, p):
		d.reset(c)
	}
}

// dispatch acts on a packet of a connection; false says that it broke the rules.
func (d *Device) dispatch(c *conn, p packet) bool {
	c.alloc, c.got = p.alloc, p.fwd
	if c.state == requesting && p.op == opResponse {
		d.start(c)
		close(c.ready)
		return true
	}
	if c.state != connected {
		return false
	}
	if len(c.out) > 0 && c.credit() > 0 {
		d.enqueue(c)
	}
	c.cond.Broadcast()
	switch p.op {
	case opRW:
		return c.receive(p.data)
	case opCreditUpdate:
	case opCreditRequest:
		c.owesCredit = true
		d.enqueue(c)
	case opShutdown:
		d.shutdown(c, p.flags)
	default:
		return false
	}
	return true
}

func (d *Device) shutdown(c *conn, flags uint32) {
	if flags&shutReceive != 0 {
		c.endOutput()
	}
	if flags&shutSend != 0 {
		c.endInput()
	}
	if c.outEnd && c.inEnd {
		// The guest waits for this answer before it lets go of the port. What it sent is still delivered.
		d.resetKey(c.key, typeStream)
		d.drop(c)
	}
}

// dial opens the host's end of a connection that the guest asked for.
func (d *Device) dial(c *conn) {
	var host net.Conn
	err := net.ErrClosed
	if d.cfg.Dial != nil {
		host, err = d.cfg.Dial(c.key.host)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil:
		delete(d.all, c)
		if !c.gone {
			d.reset(c)
		}
	case c.gone:
		delete(d.all, c)
		_ = host.Close()
	default:
		c.host, c.owesResponse = host, true
		d.start(c)
		d.enqueue(c)
	}
}

// next waits for something that the guest should get; false says that s has ended.
func (d *Device) next(s *session) (p packet, c *conn, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for !s.ended {
		if len(d.resets) > 0 {
			p, d.resets = d.resets[0], d.resets[1:]
			return p, nil, true
		}
		if len(d.ready) == 0 {
			d.work.Wait()
			continue
		}
		c, d.ready = d.ready[0], d.ready[1:]
		c.queued = false
		if p, ok := c.take(); ok {
			d.enqueue(c) // to its end: every connection in turn
			return p, c, true
		}
	}
	return p, nil, false
}

// sent says that the data of the last packet of c is not needed any more.
func (d *Device) sent(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.sending = false
	c.cond.Broadcast()
}

// detach lets go of the guest: what it sent is still delivered, for nothing more will come.
func (d *Device) detach(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.ended = true
	d.work.Broadcast()
	d.session, d.ready, d.resets = nil, nil, nil
	for _, c := range d.conns {
		d.drop(c)
		if c.state != connected {
			c.kill()
			continue
		}
		c.endOutput()
		c.endInput()
	}
}
