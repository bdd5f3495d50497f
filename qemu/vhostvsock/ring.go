package vhostvsock

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"
)

// maxRing is the largest number of descriptors taken; QEMU uses 128.
const maxRing = 1024

// maxChain bounds the bytes of one descriptor chain: a packet with its header, and as much again.
const maxChain = 2 * (headerSize + maxPayload)

// Flags of a descriptor.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

// noInterrupt is the flag of the available ring with which the driver asks not to be interrupted.
const noInterrupt = 1

// A ring is one split virtqueue. mu is held while guest memory is touched, so that nothing is unmapped meanwhile.
type ring struct {
	mu                sync.Mutex
	mem               memory
	num               uint16
	desc, avail, used []byte
	addr              [3]uint64 // of the three, for the front-end; they are looked up again in a new memory table
	last, usedIdx     uint16
	told              uint16 // usedIdx when the driver was last told
	started, disabled bool
	kick, call        *os.File
}

// A chain is one descriptor chain that was taken from the available ring: its pieces of guest memory, in order.
type chain struct {
	head  uint16
	parts [][]byte
	size  int
}

// pop takes the next chain, all of whose descriptors must be device-writable or none; nil when there is none.
func (r *ring) pop(writable bool) (*chain, error) {
	if !r.started || r.disabled {
		return nil, nil
	}
	idx := load16(r.avail, 2)
	if idx == r.last {
		return nil, nil
	}
	if idx-r.last > r.num {
		return nil, fmt.Errorf("available index %d is %d ahead in a ring of %d", idx, idx-r.last, r.num)
	}
	head := load16(r.avail, 4+2*int(r.last%r.num))
	c, err := r.walk(head, writable)
	if err != nil {
		return nil, fmt.Errorf("descriptor chain %d: %w", head, err)
	}
	r.last++
	return c, nil
}

func (r *ring) walk(head uint16, writable bool) (*chain, error) {
	c := &chain{head: head}
	for i, n := head, uint16(0); ; n++ {
		if i >= r.num {
			return nil, fmt.Errorf("descriptor %d in a table of %d", i, r.num)
		}
		if n >= r.num {
			return nil, errors.New("is a loop")
		}
		var d [16]byte // once: the guest may change the table under us
		copy(d[:], r.desc[16*int(i):])
		addr, size, flags, next := le.Uint64(d[:]), le.Uint32(d[8:]), le.Uint16(d[12:]), le.Uint16(d[14:])
		if flags&descIndirect != 0 {
			return nil, errors.New("indirect, which was not offered")
		}
		if (flags&descWrite != 0) != writable {
			return nil, fmt.Errorf("descriptor %d is device-writable: %t, want %t", i, !writable, writable)
		}
		if size > uint32(maxChain-c.size) {
			return nil, fmt.Errorf("more than %d bytes", maxChain)
		}
		if size > 0 {
			b, err := r.mem.guest(addr, uint64(size))
			if err != nil {
				return nil, err
			}
			c.parts = append(c.parts, b)
			c.size += int(size)
		}
		if flags&descNext == 0 {
			return c, nil
		}
		i = next
	}
}

// read copies the chain out of guest memory, into buf if it is large enough.
func (c *chain) read(buf []byte) []byte {
	buf = buf[:0]
	for _, b := range c.parts {
		buf = append(buf, b...)
	}
	return buf
}

// write copies p into the chain, which is large enough.
func (c *chain) write(p ...[]byte) {
	parts := c.parts
	for _, b := range p {
		for len(b) > 0 {
			n := copy(parts[0], b)
			b = b[n:]
			if parts[0] = parts[0][n:]; len(parts[0]) == 0 {
				parts = parts[1:]
			}
		}
	}
}

// push gives a chain back, n bytes of it written.
func (r *ring) push(c *chain, n int) {
	e := r.used[4+8*int(r.usedIdx%r.num):]
	le.PutUint32(e, uint32(c.head))
	le.PutUint32(e[4:], uint32(n))
	r.usedIdx++
	// One store of flags (none) and index, behind the element; and a full barrier before interrupt reads the flags.
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&r.used[0])), uint32(r.usedIdx)<<16)
}

// interrupt tells the driver that chains came back, unless it does not want to know.
func (r *ring) interrupt() {
	r.told = r.usedIdx
	if r.call != nil && load16(r.avail, 0)&noInterrupt == 0 {
		// An eventfd that is full has woken its reader already.
		_, _ = r.call.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// resolve looks the three parts of the ring up in the memory table.
func (r *ring) resolve() (err error) {
	r.desc, r.avail, r.used = nil, nil, nil
	n := uint64(r.num)
	if n == 0 {
		return errors.New("ring without a size")
	}
	// The driver must align so (virtio 1.2, §2.7); unaligned atomics would not be atomic.
	if r.addr[0]%16 != 0 || r.addr[1]%2 != 0 || r.addr[2]%4 != 0 {
		return fmt.Errorf("ring at %#x is not aligned", r.addr)
	}
	desc, err1 := r.mem.user(r.addr[0], 16*n)
	avail, err2 := r.mem.user(r.addr[1], 4+2*n)
	used, err3 := r.mem.user(r.addr[2], 4+8*n)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	// The base of a region is the front-end's word: what counts is where it is mapped here.
	if uintptr(unsafe.Pointer(&used[0]))%4 != 0 || uintptr(unsafe.Pointer(&avail[0]))%2 != 0 {
		return fmt.Errorf("ring at %#x is not aligned where it is mapped", r.addr)
	}
	r.desc, r.avail, r.used = desc, avail, used
	return nil
}

// load16 reads a 16-bit number that the guest writes at the same time. There are no 16-bit atomics: the aligned word
// around it is read, which lies in the same page.
func load16(b []byte, off int) uint16 {
	_ = b[off+1]
	p := unsafe.Pointer(&b[off])
	w := atomic.LoadUint32((*uint32)(unsafe.Pointer(uintptr(p) &^ 3)))
	return uint16(w >> (8 * (uintptr(p) & 3)))
}
