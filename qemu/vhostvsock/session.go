package vhostvsock

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The rings of a vsock device. QEMU keeps the third, of events, for itself.
const (
	rxRing = 0 // to the guest
	txRing = 1 // from the guest
)

// interruptEvery bounds how many packets of the guest are taken before it hears that their buffers are free.
const interruptEvery = 32

// A session is one front-end: from its connection to its end.
type session struct {
	d     *Device
	u     *net.UnixConn
	mem   memory // of both rings, changed with both locks held
	rings [2]ring
	wg    sync.WaitGroup

	room chan struct{} // the guest may have added buffers to rxRing
	done chan struct{}
	once sync.Once // err and done
	err  error

	txMu sync.Mutex // one drain at a time, so that packets stay in order
	buf  []byte     // of drain

	ended bool // under Device.mu
}

func newSession(d *Device, u *net.UnixConn) *session {
	return &session{d: d, u: u, room: make(chan struct{}, 1), done: make(chan struct{})}
}

// fail ends the session; the first error stays.
func (s *session) fail(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.done)
		s.u.Close()
	})
}

// run serves the front-end until it leaves, breaks the protocol, or the guest breaks its rings.
func (s *session) run() error {
	s.wg.Go(s.deliver)
	err := s.serve()
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		err = nil // a QEMU that was killed may not have read all that was said to it
	}
	s.fail(err)
	// A guest that says its last words and cuts the power leaves them in the ring.
	lastErr := s.drain()
	s.d.detach(s)
	for i := range s.rings {
		s.stop(&s.rings[i])
	}
	s.wg.Wait()
	s.mem.unmap()
	if s.err == nil {
		return lastErr
	}
	if errors.Is(s.err, ErrClosed) {
		return nil
	}
	return s.err
}

func (s *session) serve() error {
	for {
		m, err := readMessage(s.u)
		if err != nil {
			return err
		}
		reply, err := s.act(m)
		m.closeFiles()
		if reply == nil && m.needsReply() {
			failed := uint64(0)
			if err != nil {
				failed = 1
			}
			reply = le.AppendUint64(nil, failed)
		}
		if reply != nil {
			if werr := m.reply(s.u, reply); werr != nil {
				return errors.Join(err, werr)
			}
		}
		if err != nil {
			return fmt.Errorf("vhost-user %s: %w", m, err)
		}
	}
}

// setMemory exchanges the memory table under both rings.
func (s *session) setMemory(m *message) error {
	mem, err := parseMemory(m.payload, m.fds)
	if err != nil {
		return err
	}
	for i := range s.rings {
		s.rings[i].mu.Lock()
		defer s.rings[i].mu.Unlock()
	}
	old := s.mem
	s.mem = mem
	var errs []error
	for i := range s.rings {
		r := &s.rings[i]
		r.mem = mem
		if r.desc != nil {
			if err := r.resolve(); err != nil {
				r.started = false
				errs = append(errs, err)
			}
		}
	}
	old.unmap()
	return errors.Join(errs...)
}

// setKick starts a ring: from now on the guest may use it.
func (s *session) setKick(index int, f *os.File) error {
	r := &s.rings[index]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.desc == nil {
		return errors.Join(errors.New("ring is started before it has an address"), f.Close())
	}
	if r.kick != nil {
		r.kick.Close()
	}
	r.kick, r.started = f, true
	s.wg.Go(func() { s.listen(index, f) })
	return nil
}

// listen waits for the guest's notifications. Whatever came before it began is looked at first.
func (s *session) listen(index int, kick *os.File) {
	var b [8]byte
	for {
		if err := s.notified(index); err != nil {
			s.fail(err)
			return
		}
		if _, err := kick.Read(b[:]); err != nil {
			return // closed by stop or setKick
		}
	}
}

// notified acts on what a notification of the guest may mean.
func (s *session) notified(index int) error {
	if index == txRing {
		return s.drain()
	}
	select {
	case s.room <- struct{}{}:
	default:
	}
	return nil
}

// stop ends the use of a ring and returns the index at which it can go on.
func (s *session) stop(r *ring) uint16 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = false
	for _, f := range []**os.File{&r.kick, &r.call} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	return r.last
}

// drain takes what the guest has sent.
func (s *session) drain() error {
	s.txMu.Lock()
	defer s.txMu.Unlock()
	for n := 1; ; n++ {
		found, err := s.takePacket(n%interruptEvery == 0)
		if err != nil || !found {
			return err
		}
		p, bad := parsePacket(s.buf)
		s.d.handle(p, bad)
	}
}

func (s *session) takePacket(tell bool) (found bool, err error) {
	r := &s.rings[txRing]
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.pop(false)
	if err != nil {
		return false, fmt.Errorf("guest's transmit ring: %w", err)
	}
	if c == nil {
		if r.told != r.usedIdx {
			r.interrupt()
		}
		return false, nil
	}
	s.buf = c.read(s.buf)
	r.push(c, 0)
	if tell {
		r.interrupt()
	}
	return true, nil
}

// deliver is the only one that writes to the guest.
func (s *session) deliver() {
	for {
		p, c, ok := s.d.next(s)
		if !ok {
			return
		}
		err := s.put(&p)
		if c != nil {
			s.d.sent(c)
		}
		if err != nil {
			s.fail(err)
			return
		}
	}
}

// put writes one packet, in pieces if the guest's buffers are small, and waits for buffers.
func (s *session) put(p *packet) error {
	for rest := p.data; ; {
		n, err := s.fill(p, rest)
		if err != nil {
			return err
		}
		if n >= 0 {
			if rest = rest[n:]; len(rest) == 0 {
				return nil
			}
			continue
		}
		select {
		case <-s.room:
		case <-s.done:
			return nil
		}
	}
}

// fill writes as much of data as one buffer of the guest takes; -1 when there is none.
func (s *session) fill(p *packet, data []byte) (n int, err error) {
	r := &s.rings[rxRing]
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.pop(true)
	if err != nil {
		return 0, fmt.Errorf("guest's receive ring: %w", err)
	}
	if c == nil {
		r.interrupt()
		return -1, nil
	}
	if c.size <= headerSize {
		return 0, fmt.Errorf("guest's receive ring: buffer of %d bytes", c.size)
	}
	n = min(len(data), c.size-headerSize)
	h := p.header(n)
	c.write(h[:], data[:n])
	r.push(c, headerSize+n)
	if n == len(data) {
		r.interrupt()
	}
	return n, nil
}

// ringIndex reads a ring's number out of a message.
func ringIndex(n uint32) (int, error) {
	if n != rxRing && n != txRing {
		return 0, fmt.Errorf("ring %d of 2", n)
	}
	return int(n), nil
}

// eventfd makes a file of a descriptor, so that reading it waits without a thread and ends when it is closed.
func eventfd(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "eventfd"), nil
}
