// Package vhostvsock gives a QEMU guest AF_VSOCK without /dev/vhost-vsock and without root.
//
// It is the back-end of QEMU's vhost-user-vsock-pci: QEMU hands over the guest's memory and two rings through a Unix
// socket, and connections end in this process. The guest is hostile: whatever it writes into rings and packets can end
// its own connections or its own device, and holds at most a bounded amount of memory here.
package vhostvsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds of what one guest can hold here.
const (
	maxConns  = 64  // connections, those included that are being drained
	maxResets = 256 // answers to packets of no connection; further ones are not answered
	maxSocket = 107 // bytes of a Unix socket's path
)

// firstPort is where host ports of connections to the guest begin; below are those that a guest may dial.
const firstPort = 1 << 30

// A Config says how to make a Device.
type Config struct {
	CID    uint64 // of the guest: 3 to 2^32-2
	Socket string // where QEMU connects; it must not exist, and is removed by Close
	// Dial opens the host's end of a connection from the guest; an error refuses it. It must return soon. Connections
	// that can be half-closed (CloseWrite, CloseRead) give the guest the same.
	Dial func(port uint32) (net.Conn, error)
}

// A Device is the vsock device of one guest.
type Device struct {
	cfg Config
	l   *net.UnixListener
	wg  sync.WaitGroup

	mu      sync.Mutex
	work    sync.Cond // ready, resets or session changed
	closed  bool
	session *session
	conns   map[key]*conn
	all     map[*conn]struct{} // conns, and those that are gone and still being drained
	ready   []*conn            // what has something for the guest
	resets  []packet
	port    uint32
	fails   chan error
}

// ErrClosed is returned by Dial after Close.
var ErrClosed = errors.New("vsock device is closed")

// Listen makes a Device that waits for QEMU. One QEMU is served at a time.
func Listen(cfg Config) (*Device, error) {
	if cfg.CID < 3 || cfg.CID >= 1<<32-1 {
		return nil, fmt.Errorf("vsock CID %d: want 3 to %d", cfg.CID, uint32(1<<32-2))
	}
	if len(cfg.Socket) > maxSocket {
		return nil, fmt.Errorf("vhost socket %s: path of %d bytes, at most %d; set TMPDIR to a shorter one", cfg.Socket, len(cfg.Socket), maxSocket)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("vhost socket: %w", err)
	}
	d := &Device{cfg: cfg, l: l, conns: map[key]*conn{}, all: map[*conn]struct{}{}, port: firstPort, fails: make(chan error, 1)}
	d.work.L = &d.mu
	if err := os.Chmod(cfg.Socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	d.wg.Go(d.accept)
	return d, nil
}

func (d *Device) accept() {
	for {
		u, err := d.l.AcceptUnix()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				d.failed(fmt.Errorf("vhost socket: %w", err))
			}
			return
		}
		s := newSession(d, u)
		d.mu.Lock()
		if d.closed {
			d.mu.Unlock()
			u.Close()
			return
		}
		d.session = s
		d.mu.Unlock()
		if err := s.run(); err != nil {
			d.failed(err)
		}
	}
}

func (d *Device) failed(err error) {
	select {
	case d.fails <- err:
	default: // the first one tells enough
	}
}

// Fails gives the reason when the device stops working under a QEMU that has not left.
func (d *Device) Fails() <-chan error { return d.fails }

// Close ends every connection and waits until nothing of the device is left.
func (d *Device) Close() error {
	d.mu.Lock()
	d.closed = true
	s := d.session
	for c := range d.all {
		d.drop(c)
		c.kill()
	}
	d.mu.Unlock()
	err := d.l.Close()
	if s != nil {
		s.fail(ErrClosed)
	}
	d.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Dial connects to a port of the guest. It waits for the guest's driver until ctx ends.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	c, err := d.request(port, ours)
	if err != nil {
		return nil, errors.Join(err, ours.Close(), theirs.Close())
	}
	select {
	case <-c.ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && c.dead {
		err = errors.New("refused")
	}
	if err != nil {
		if !c.gone {
			d.reset(c)
		}
		return nil, errors.Join(fmt.Errorf("vsock %d port %d: %w", d.cfg.CID, port, err), theirs.Close())
	}
	return theirs, nil
}

func (d *Device) request(port uint32, host net.Conn) (*conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return nil, ErrClosed
	case len(d.all) >= maxConns:
		return nil, fmt.Errorf("vsock %d port %d: %d connections are open", d.cfg.CID, port, len(d.all))
	}
	k := key{guest: port, host: d.port}
	for d.conns[k] != nil {
		d.port++
		k.host = d.port | firstPort
	}
	d.port = (k.host + 1) | firstPort
	c := d.add(k, requesting)
	c.host, c.ready, c.owesRequest = host, make(chan struct{}), true
	d.enqueue(c)
	return c, nil
}

// Pair is a connection of this process with itself that can be half-closed.
func Pair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	a, err1 := fileConn(fds[0])
	b, err2 := fileConn(fds[1])
	if err := errors.Join(err1, err2); err != nil {
		for _, c := range []*net.UnixConn{a, b} {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return a, b, nil
}

func fileConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socketpair")
	defer f.Close() // FileConn duplicates it
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}
