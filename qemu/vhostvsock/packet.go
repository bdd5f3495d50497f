package vhostvsock

import (
	"encoding/binary"
	"fmt"
)

var le = binary.LittleEndian

const (
	headerSize = 44       // struct virtio_vsock_hdr
	maxPayload = 64 << 10 // bytes in one packet, as Linux has it
	hostCID    = 2
	typeStream = 1
)

// Operations of a packet (virtio 1.2, §5.10.6).
const (
	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7
)

// Flags of opShutdown.
const (
	shutReceive = 1 // the sender takes no more
	shutSend    = 2 // the sender sends no more
)

// A key names a connection: the ports of its two ends.
type key struct{ guest, host uint32 }

// A packet is one decoded packet; data belongs to the buffer that it was read from.
type packet struct {
	key
	src, dst   uint64
	kind, op   uint16
	flags      uint32
	alloc, fwd uint32 // the sender's window, and how much of it was freed since the connection began; bytes
	data       []byte
}

// parsePacket reads what the guest sent.
func parsePacket(b []byte) (p packet, err error) {
	if len(b) < headerSize {
		return p, fmt.Errorf("packet: %d bytes, less than its header", len(b))
	}
	p = packet{
		src:   le.Uint64(b),
		dst:   le.Uint64(b[8:]),
		key:   key{guest: le.Uint32(b[16:]), host: le.Uint32(b[20:])},
		kind:  le.Uint16(b[28:]),
		op:    le.Uint16(b[30:]),
		flags: le.Uint32(b[32:]),
		alloc: le.Uint32(b[36:]),
		fwd:   le.Uint32(b[40:]),
	}
	n := le.Uint32(b[24:])
	if n > maxPayload || int(n) > len(b)-headerSize {
		return p, fmt.Errorf("packet: payload of %d bytes in a buffer of %d, at most %d", n, len(b)-headerSize, maxPayload)
	}
	p.data = b[headerSize : headerSize+int(n)]
	return p, nil
}

// header encodes p for the guest, with a payload of n bytes.
func (p *packet) header(n int) (h [headerSize]byte) {
	le.PutUint64(h[:], p.src)
	le.PutUint64(h[8:], p.dst)
	le.PutUint32(h[16:], p.host)
	le.PutUint32(h[20:], p.guest)
	le.PutUint32(h[24:], uint32(n))
	le.PutUint16(h[28:], p.kind)
	le.PutUint16(h[30:], p.op)
	le.PutUint32(h[32:], p.flags)
	le.PutUint32(h[36:], p.alloc)
	le.PutUint32(h[40:], p.fwd)
	return h
}
