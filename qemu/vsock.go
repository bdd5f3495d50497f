package qemu

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"

	linuxvsock "github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/qemu/vhostvsock"
)

// A vsock is the host's end of a VM's vsock.
type vsock interface {
	listener(port uint32) net.Listener
	// plug completes d and names the files that QEMU must inherit, from descriptor fd on.
	plug(d *Devices, fd int) []*os.File
	fails() <-chan error // says so when it stopped working under the VM
	close() error
}

// openVsock uses the kernel's vsock where this user may, and else our own. The kernel has one set of ports for all its
// guests, so a second VM at the same time gets our own as well.
func openVsock(ports []uint32) (vsock, error) {
	k, err := openKernelVsock("/dev/vhost-vsock", ports)
	if err == nil {
		return k, nil
	}
	v, err := openUserVsock(ports)
	if err != nil {
		return nil, err // not v: a nil *userVsock in the interface is not nil
	}
	return v, nil
}

// kernelVsock is /dev/vhost-vsock with a CID of our own.
type kernelVsock struct {
	dev       *os.File
	cid       uint32
	listeners map[uint32]net.Listener
}

const cidTries = 16

func openKernelVsock(path string, ports []uint32) (_ *kernelVsock, err error) {
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	k := &kernelVsock{dev: dev, listeners: map[uint32]net.Listener{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if err := k.chooseCID(); err != nil {
		return nil, err
	}
	for _, port := range ports {
		l, err := linuxvsock.ListenContextID(linuxvsock.Host, port, nil)
		if err != nil {
			return nil, err
		}
		k.listeners[port] = &onlyFrom{l, k.cid}
	}
	return k, nil
}

// chooseCID takes a random CID. The kernel says whether another guest has it; QEMU sets it again on the same file.
func (k *kernelVsock) chooseCID() error {
	for range cidTries {
		k.cid = 1<<16 + rand.Uint32N(1<<31)
		err := setCID(k.dev, uint64(k.cid))
		if !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
	return fmt.Errorf("vsock: no free CID in %d tries", cidTries)
}

func (k *kernelVsock) listener(port uint32) net.Listener { return k.listeners[port] }
func (k *kernelVsock) fails() <-chan error               { return nil }

func (k *kernelVsock) plug(d *Devices, fd int) []*os.File {
	d.VhostFD, d.CID = fd, uint64(k.cid)
	return []*os.File{k.dev}
}

func (k *kernelVsock) close() error {
	errs := []error{k.dev.Close()}
	for _, l := range k.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// onlyFrom drops connections of other guests, which share the host's ports.
type onlyFrom struct {
	net.Listener
	cid uint32
}

func (l *onlyFrom) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a, ok := c.RemoteAddr().(*linuxvsock.Addr); ok && a.ContextID == l.cid {
			return c, nil
		}
		_ = c.Close() // not our guest's: it hears nothing else
	}
}

// userVsock is our own device, which needs no privilege.
type userVsock struct {
	dir    tempDir
	dev    *vhostvsock.Device
	queues map[uint32]*queue
	socket string
}

// userCID is the guest's own idea of its address; it is alone with us, so any will do.
const userCID = 3

func openUserVsock(ports []uint32) (*userVsock, error) {
	dir, err := newTempDir()
	if err != nil {
		return nil, err
	}
	v := &userVsock{dir: dir, queues: map[uint32]*queue{}, socket: dir.file("vsock")}
	for _, p := range ports {
		v.queues[p] = newQueue(p)
	}
	v.dev, err = vhostvsock.Listen(vhostvsock.Config{CID: userCID, Socket: v.socket, Dial: v.dial})
	if err != nil {
		return nil, errors.Join(err, dir.remove())
	}
	return v, nil
}

// dial opens the host's end of a connection from the guest.
func (v *userVsock) dial(port uint32) (net.Conn, error) {
	q := v.queues[port]
	if q == nil {
		return nil, fmt.Errorf("vsock port %d: nobody listens", port)
	}
	ours, theirs, err := vhostvsock.Pair()
	if err != nil {
		return nil, err
	}
	if !q.deliver(theirs) {
		return nil, errors.Join(fmt.Errorf("vsock port %d: too many connections", port), ours.Close(), theirs.Close())
	}
	return ours, nil
}

func (v *userVsock) listener(port uint32) net.Listener { return v.queues[port] }
func (v *userVsock) fails() <-chan error               { return v.dev.Fails() }

func (v *userVsock) plug(d *Devices, _ int) []*os.File {
	d.VhostSocket = v.socket
	return nil
}

func (v *userVsock) close() error {
	errs := []error{v.dev.Close()}
	for _, q := range v.queues {
		q.Close()
		q.drop()
	}
	return errors.Join(append(errs, v.dir.remove())...)
}
