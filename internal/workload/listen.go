package workload

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// backlog is how many connections may wait for PID 1.
const backlog = 64

func checkListen(addr string) error {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !a.Addr().IsLoopback() || a.Addr().Is4In6() || a.Port() == 0 {
		return fmt.Errorf("sandbox: listen at %q: want a loopback address and a port, as in 127.0.0.1:8006", addr)
	}
	return nil
}

// passListener opens the listener in the network namespace that the program will have, where only this process can, and
// gives it to PID 1, which is outside and serves it. The program gets no descriptor of it.
func passListener(o *order) error {
	if o.Listen == "" {
		return nil
	}
	defer unix.Close(passFD)
	addr, err := netip.ParseAddrPort(o.Listen)
	if err != nil {
		return err
	}
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(addr.Port())})
	if addr.Addr().Is4() {
		to.(*unix.SockaddrInet4).Addr = addr.Addr().As4()
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, to), unix.Listen(fd, backlog)); err != nil {
		return fmt.Errorf("%s: %w", o.Listen, err)
	}
	return unix.Sendmsg(passFD, []byte{0}, unix.UnixRights(fd), nil, 0)
}

// serving is what goes on while the program runs. A nil one is none.
type serving struct {
	passed chan passed
	served chan struct{}
}

type passed struct {
	l   net.Listener
	err error
}

// serve waits for the stub's listener and serves it. If it cannot be had, the program must not run without: kill ends
// it.
func (p *pipes) serve(s Spec, kill func() error) *serving {
	if p.pass.r == nil {
		return nil
	}
	v := &serving{make(chan passed, 1), make(chan struct{})}
	go func() {
		defer close(v.served)
		l, err := receive(p.pass.r)
		v.passed <- passed{l, err}
		switch {
		case err == nil:
			s.Serve(l)
		case !errors.Is(err, errNotPassed):
			kill()
		}
	}()
	return v
}

// end closes the listener and waits for who serves it. The stub must be gone: then it has passed the listener, or the
// other end of the pair is closed. An error is why there was no listener; that the stub said nothing is none, for it
// has then said elsewhere why it ended.
func (v *serving) end() error {
	if v == nil {
		return nil
	}
	got := <-v.passed
	if got.l != nil {
		got.l.Close()
	}
	<-v.served
	if errors.Is(got.err, errNotPassed) {
		return nil
	}
	return got.err
}

var errNotPassed = errors.New("no listener was passed")

func receive(f *os.File) (net.Listener, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := unix.Recvmsg(int(f.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, oobn, flags, _, err = unix.Recvmsg(int(f.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("listener of the sandbox: %w", err)
	}
	if n == 0 {
		return nil, errNotPassed
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 || flags&unix.MSG_CTRUNC != 0 {
		return nil, fmt.Errorf("listener of the sandbox: %d control messages, flags %#x: %w", len(messages), flags, errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("listener of the sandbox: %d descriptors: %w", len(fds), errors.Join(err, unix.EBADMSG))
	}
	socket := os.NewFile(uintptr(fds[0]), "listener")
	defer socket.Close() // the listener has its own copy
	l, err := net.FileListener(socket)
	if err != nil {
		return nil, fmt.Errorf("listener of the sandbox: %w", err)
	}
	return l, nil
}
