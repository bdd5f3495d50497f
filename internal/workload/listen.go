package workload

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A Service answers the program at an address of the sandbox's own network. The address is bound before the program starts, so
// that the program finds it and cannot take it, and by root, so that any port can be one.
type Service struct {
	// Addr is an IPv4 address or ::1, and a port, like 127.0.0.1:8006. One that is not loopback's becomes the sandbox's own, so that a program
	// which connects to it is answered here, whatever is at that address elsewhere. (An IPv6 address would take its time to be usable.)
	Addr string

	// Serve runs in a goroutine of its own and must return soon after its listener is closed, which Run does when the program has
	// ended.
	Serve func(net.Listener)
}

const (
	backlog     = 64  // how many connections may wait for PID 1, of each service
	maxServices = 128 // the kernel passes 253 descriptors in one message
)

func checkServices(all []Service) error {
	if len(all) > maxServices {
		return fmt.Errorf("sandbox: %d services, at most %d", len(all), maxServices)
	}
	for _, s := range all {
		a, err := netip.ParseAddrPort(s.Addr)
		own := a.Addr().Is4() && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
		if err != nil || !own && a.Addr() != netip.IPv6Loopback() || a.Port() == 0 {
			return fmt.Errorf("sandbox: listen at %q: want an IPv4 address or ::1, and a port, as in 127.0.0.1:8006", s.Addr)
		}
		if s.Serve == nil {
			return fmt.Errorf("sandbox: nobody serves %s", s.Addr)
		}
	}
	return nil
}

// passListeners opens the listeners in the network namespace that the program will have, where only this process can, and gives
// them to PID 1, which is outside and serves them. The program gets no descriptor of them.
func passListeners(o *order) error {
	if len(o.Listen) == 0 {
		return nil
	}
	defer unix.Close(passFD)
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	own := map[netip.Addr]bool{}
	for i, at := range o.Listen {
		addr, err := netip.ParseAddrPort(at)
		if err != nil {
			return err
		}
		if !addr.Addr().IsLoopback() && !own[addr.Addr()] {
			own[addr.Addr()] = true
			if err := addAddress(i, addr.Addr()); err != nil {
				return fmt.Errorf("take the address %s: %w", addr.Addr(), err)
			}
		}
		fd, err := listen(addr)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		fds = append(fds, fd)
	}
	return unix.Sendmsg(passFD, []byte{0}, unix.UnixRights(fds...), nil, 0)
}

// addAddress gives the loopback device, the only one, another address, and no network around it.
func addAddress(i int, a netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq(fmt.Sprintf("lo:%d", i))
	if err != nil {
		return err
	}
	v4 := a.As4()
	if err := lo.SetInet4Addr(v4[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, lo); err != nil {
		return err
	}
	if err := lo.SetInet4Addr([]byte{255, 255, 255, 255}); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, lo)
}

func listen(addr netip.AddrPort) (int, error) {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(addr.Port())})
	if addr.Addr().Is4() {
		to.(*unix.SockaddrInet4).Addr = addr.Addr().As4()
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.Bind(fd, to), unix.Listen(fd, backlog)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// serving is what goes on while the program runs. A nil one is none.
type serving struct {
	passed chan passed
	served chan struct{}
}

type passed struct {
	all []net.Listener
	err error
}

// serve waits for the stub's listeners and serves them. If they cannot be had, the program must not run without: kill ends
// it.
func (p *pipes) serve(s Spec, kill func() error) *serving {
	if p.pass.r == nil {
		return nil
	}
	v := &serving{make(chan passed, 1), make(chan struct{})}
	go func() {
		defer close(v.served)
		all, err := receive(p.pass.r, len(s.Services))
		v.passed <- passed{all, err}
		switch {
		case err == nil:
			var serving sync.WaitGroup
			for i, l := range all {
				serving.Go(func() { s.Services[i].Serve(l) })
			}
			serving.Wait()
		case !errors.Is(err, errNotPassed):
			kill()
		}
	}()
	return v
}

// end closes the listeners and waits for who serves them. The stub must be gone: then it has passed the listeners, or the
// other end of the pair is closed. An error is why there were no listeners; that the stub said nothing is none, for it
// has then said elsewhere why it ended.
func (v *serving) end() error {
	if v == nil {
		return nil
	}
	got := <-v.passed
	for _, l := range got.all {
		l.Close()
	}
	<-v.served
	if errors.Is(got.err, errNotPassed) {
		return nil
	}
	return got.err
}

var errNotPassed = errors.New("no listener was passed")

// receive takes n listeners, in the order in which they were asked for.
func receive(f *os.File, n int) (all []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			all = nil
		}
	}()
	oob := make([]byte, unix.CmsgSpace(4*n))
	read, oobn, flags, _, err := unix.Recvmsg(int(f.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		read, oobn, flags, _, err = unix.Recvmsg(int(f.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("listeners of the sandbox: %w", err)
	}
	if read == 0 {
		return nil, errNotPassed
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 || flags&unix.MSG_CTRUNC != 0 {
		return nil, fmt.Errorf("listeners of the sandbox: %d control messages, flags %#x: %w", len(messages), flags, errors.Join(err, unix.EBADMSG))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, fmt.Errorf("listeners of the sandbox: %w", err)
	}
	for _, fd := range fds {
		socket := os.NewFile(uintptr(fd), "listener")
		l, failed := net.FileListener(socket)
		socket.Close() // the listener has its own copy
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("listener of the sandbox: %w", failed))
			continue
		}
		all = append(all, l)
	}
	if err == nil && len(all) != n {
		err = fmt.Errorf("listeners of the sandbox: %d descriptors, want %d: %w", len(all), n, unix.EBADMSG)
	}
	return all, err
}
