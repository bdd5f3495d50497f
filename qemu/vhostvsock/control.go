package vhostvsock

import (
	"errors"
	"fmt"
	"os"
)

// Requests of a front-end (QEMU's docs/interop/vhost-user).
const (
	getFeatures         = 1
	setFeatures         = 2
	setOwner            = 3
	resetOwner          = 4
	setMemTable         = 5
	setVringNum         = 8
	setVringAddr        = 9
	setVringBase        = 10
	getVringBase        = 11
	setVringKick        = 12
	setVringCall        = 13
	setVringErr         = 14
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	setVringEnable      = 18
	getConfig           = 24
)

const (
	features         = 1<<32 | 1<<30 // virtio 1, protocol features
	protocolFeatures = 1<<3 | 1<<9   // replies on request, configuration space
)

// act carries out one request. The reply is nil for those that have none.
func (s *session) act(m *message) (reply []byte, err error) {
	switch m.req {
	case getFeatures:
		return le.AppendUint64(nil, features), nil
	case getProtocolFeatures:
		return le.AppendUint64(nil, protocolFeatures), nil
	case setFeatures, setProtocolFeatures:
		v, err := m.u64()
		offered := uint64(features)
		if m.req == setProtocolFeatures {
			offered = protocolFeatures
		}
		if err == nil && v&^offered != 0 {
			err = fmt.Errorf("features %#x, offered were %#x", v, offered)
		}
		return nil, err
	case setOwner, resetOwner:
		return nil, nil
	case setMemTable:
		return nil, s.setMemory(m)
	case getConfig:
		return s.config(m)
	case setVringKick, setVringCall, setVringErr:
		return nil, s.setFile(m)
	case setVringNum, setVringBase, getVringBase, setVringEnable:
		return s.setRing(m)
	case setVringAddr:
		return nil, s.setAddr(m)
	}
	return nil, errors.New("is not known")
}

// config answers with the configuration space: the CID. le32 offset, size, flags, then the bytes.
func (s *session) config(m *message) ([]byte, error) {
	p := m.payload
	if len(p) < 12 {
		return nil, fmt.Errorf("payload of %d bytes", len(p))
	}
	off, size := le.Uint32(p), le.Uint32(p[4:])
	if int(size) != len(p)-12 || off > 8 || size > 8-off {
		return nil, fmt.Errorf("configuration space: %d bytes at %d of 8", size, off)
	}
	copy(p[12:], le.AppendUint64(nil, s.d.cfg.CID)[off:])
	return p, nil
}

// setFile takes the eventfd of a ring: for notifications of the guest, interrupts to it, or errors.
func (s *session) setFile(m *message) error {
	index, fd, err := m.vringFile()
	if err != nil {
		return err
	}
	var f *os.File // nil: no interrupts are wanted
	if fd >= 0 {
		if f, err = eventfd(fd); err != nil {
			return err
		}
	}
	switch {
	case m.req == setVringKick && f == nil:
		return errors.New("rings that are polled were not offered")
	case m.req == setVringKick:
		return s.setKick(index, f)
	case m.req == setVringErr:
		return closeFile(f) // what goes wrong ends the session
	}
	r := &s.rings[index]
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.call
	r.call = f
	return closeFile(old)
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

func (s *session) setRing(m *message) ([]byte, error) {
	index, n, err := m.vring()
	if err != nil {
		return nil, err
	}
	r := &s.rings[index]
	if m.req == getVringBase {
		if index == txRing {
			if err := s.drain(); err != nil {
				return nil, err
			}
		}
		return le.AppendUint32(le.AppendUint32(nil, uint32(index)), uint32(s.stop(r))), nil
	}
	if m.req == setVringEnable {
		r.mu.Lock()
		r.disabled = n == 0
		r.mu.Unlock()
		return nil, s.notified(index)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.started:
		err = errors.New("the ring is in use")
	case m.req == setVringBase && n < 1<<16:
		r.last = uint16(n)
	case m.req == setVringNum && n >= 1 && n <= maxRing && n&(n-1) == 0:
		r.num, r.desc = uint16(n), nil
	default:
		err = fmt.Errorf("ring value %d; rings have a power of two of descriptors, at most %d", n, maxRing)
	}
	return nil, err
}

func (s *session) setAddr(m *message) error {
	p := m.payload
	if len(p) != 40 {
		return fmt.Errorf("payload of %d bytes, want 40", len(p))
	}
	index, err := ringIndex(le.Uint32(p))
	if err != nil {
		return err
	}
	if flags := le.Uint32(p[4:]); flags != 0 {
		return fmt.Errorf("flags %#x: logging was not offered", flags)
	}
	r := &s.rings[index]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addr = [3]uint64{le.Uint64(p[8:]), le.Uint64(p[24:]), le.Uint64(p[16:])} // the wire has used before available
	if err := r.resolve(); err != nil {
		return err
	}
	r.usedIdx = load16(r.used, 2)
	return nil
}
