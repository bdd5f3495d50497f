package qemu

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	linuxvsock "github.com/mdlayher/vsock"
)

// guests is a listener of the kernel's vsock to which guests have connected.
type guests struct {
	net.Listener
	conns []net.Conn
}

func (g *guests) Accept() (net.Conn, error) {
	if len(g.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := g.conns[0]
	g.conns = g.conns[1:]
	return c, nil
}

type guestConn struct {
	net.Conn
	cid    uint32
	closed bool
}

func (c *guestConn) RemoteAddr() net.Addr { return &linuxvsock.Addr{ContextID: c.cid, Port: 1} }
func (c *guestConn) Close() error         { c.closed = true; return nil }

func TestOtherGuestsOfTheKernelAreDropped(t *testing.T) {
	other, ours := &guestConn{cid: 3}, &guestConn{cid: 4}
	l := &onlyFrom{&guests{conns: []net.Conn{other, ours}}, 4}
	if c, err := l.Accept(); c != net.Conn(ours) || err != nil || !other.closed || ours.closed {
		t.Errorf("accepted %v, %v", c, err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestKernelVsockThatIsNotThereIsAnError(t *testing.T) {
	dir := t.TempDir()
	if _, err := openKernelVsock(filepath.Join(dir, "no"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openKernelVsock(file, nil); err == nil {
		t.Error("a file is taken for the device")
	}
}

func TestOurOwnVsockReachesOurListeners(t *testing.T) {
	tmp(t)
	v, err := openUserVsock([]uint32{1024, 1025})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := v.dial(1026); err == nil || c != nil {
		t.Errorf("a port where nobody listens: %v, %v", c, err)
	}
	guest, err := v.dial(1025)
	if err != nil {
		t.Fatal(err)
	}
	l := v.listener(1025)
	if l.Addr().String() != "host:1025" || l.Addr().Network() != "vsock" {
		t.Errorf("address %s", l.Addr())
	}
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	host.Write([]byte("hello"))
	host.Close()
	if b, err := io.ReadAll(guest); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	guest.Close()
	if err := v.close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
