// Package inflate reads gzip (RFC 1952) and the deflate format in it (RFC 1951), faster than other pure Go does: for layers of images,
// of which inflating is the slowest part.
//
// It decodes with tables of 11 bits from a buffer of 64, several symbols between two refills, straight into the window. Whatever uses it
// checks a digest of the output, so that a fault here can make a good layer fail, and not a bad one pass.
package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// What was wrong with the input. A cut one is io.ErrUnexpectedEOF.
var (
	ErrHeader   = errors.New("inflate: not gzip")
	ErrCorrupt  = errors.New("inflate: corrupt deflate data")
	ErrChecksum = errors.New("inflate: wrong checksum or length")
)

const (
	windowSize = 32 << 10
	maxMatch   = 258
	// Room behind what is decoded: a match and the words that copying it may write too much.
	outSlack = maxMatch + 16
	outSize  = windowSize + 256<<10 + outSlack
	// Before less than margin bytes of input are left there is more read; behind its end is room for what refills may read too much.
	margin  = 16
	inSlack = 32
	inSize  = 128 << 10
)

// A Reader is the uncompressed content of all members of a gzip file, one behind the other. Errors stay.
type Reader struct {
	src io.Reader
	err error // what Read gives when start has come to w

	in       []byte // inSize+inSlack bytes
	pos, end int    // bytes up to pos are in bits
	eof      bool   // src has no more: behind end there are zeros
	bits     uint64
	n        uint // how many of bits count

	out      []byte // outSize bytes; up to windowSize of it is history
	start, w int    // not yet read; decoded
	summed   int    // up to where sum and size have it

	state func(*Reader) error // what comes next in the input
	last  bool                // the block is its member's last
	raw   int                 // bytes left of a stored block
	sum   uint32
	size  uint32

	tables
}

// NewReader reads nothing yet: what is wrong with a header is said by Read. Its memory is about 450 KiB.
func NewReader(src io.Reader) *Reader {
	r := &Reader{in: make([]byte, inSize+inSlack), out: make([]byte, outSize)}
	r.Reset(src)
	return r
}

// Reset begins anew with another source.
func (r *Reader) Reset(src io.Reader) {
	*r = Reader{src: src, in: r.in, out: r.out, state: (*Reader).firstHeader}
}

func (r *Reader) Read(p []byte) (int, error) {
	for r.start == r.w {
		if r.err != nil {
			return 0, r.err
		}
		r.slide()
		for r.err == nil && r.w < len(r.out)-outSlack {
			r.err = r.state(r)
		}
		r.digest()
	}
	n := copy(p, r.out[r.start:r.w])
	r.start += n
	return n, nil
}

// slide makes room, all having been read: the last of it is history.
func (r *Reader) slide() {
	if r.w < len(r.out)-outSlack {
		return
	}
	copy(r.out, r.out[r.w-windowSize:r.w])
	r.w, r.start, r.summed = windowSize, windowSize, windowSize
}

func (r *Reader) digest() {
	fresh := r.out[r.summed:r.w]
	r.sum = crc32.Update(r.sum, crc32.IEEETable, fresh)
	r.size += uint32(len(fresh))
	r.summed = r.w
}

// more reads input. It is called with fewer than margin bytes left, and leaves at least that many, or the end of the source.
func (r *Reader) more() error {
	if r.eof {
		return io.ErrUnexpectedEOF // what was decoded last came from behind the end
	}
	keep := min(r.pos, 8) // what is in bits may be given back
	copy(r.in, r.in[r.pos-keep:r.end])
	r.end -= r.pos - keep
	r.pos = keep
	for idle := 0; r.end-r.pos < margin && !r.eof; {
		n, err := r.src.Read(r.in[r.end:inSize])
		r.end += n
		if idle++; n > 0 {
			idle = 0
		}
		switch {
		case err == io.EOF:
			r.eof = true
			clear(r.in[r.end : r.end+inSlack])
		case err != nil:
			return err
		case idle > 100:
			return io.ErrNoProgress
		}
	}
	return nil
}

// need makes at least n bits count, n at most 48.
func (r *Reader) need(n uint) error {
	for r.n < n {
		if r.pos >= r.end {
			if err := r.more(); err != nil {
				return err
			}
			if r.pos >= r.end {
				return io.ErrUnexpectedEOF
			}
		}
		r.bits |= uint64(r.in[r.pos]) << (r.n & 63)
		r.pos++
		r.n += 8
	}
	return nil
}

func (r *Reader) take(n uint) (uint32, error) {
	if err := r.need(n); err != nil {
		return 0, err
	}
	v := uint32(r.bits & (1<<n - 1))
	r.bits >>= n
	r.n -= n
	return v, nil
}

// align gives up the rest of a byte, and back whole bytes that were taken in advance. It fails if bits came from behind the end.
func (r *Reader) align() error {
	r.bits >>= r.n & 7
	r.n &^= 7
	r.pos -= int(r.n / 8)
	r.bits, r.n = 0, 0
	if r.pos > r.end {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (r *Reader) firstHeader() error {
	if err := r.header(); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// header reads a member's header, or says io.EOF.
func (r *Reader) header() error {
	if r.pos >= r.end {
		if err := r.atEnd(); err != nil {
			return err
		}
	}
	head, err := r.take(32)
	if err != nil {
		return err
	}
	flags := head >> 24
	if head&0xffffff != 0x088b1f || flags&0xe0 != 0 {
		return ErrHeader
	}
	if err := r.skip(6); err != nil { // time, level, system
		return err
	}
	if flags&4 != 0 { // extra field
		n, err := r.take(16)
		if err != nil {
			return err
		}
		if err := r.skip(int(n)); err != nil {
			return err
		}
	}
	for _, text := range []uint32{8, 16} { // name, comment
		for c := uint32(1); flags&text != 0 && c != 0; {
			if c, err = r.take(8); err != nil {
				return err
			}
		}
	}
	if flags&2 != 0 { // CRC of the header
		if err := r.skip(2); err != nil {
			return err
		}
	}
	r.digest()
	r.sum, r.size = 0, 0
	r.state = (*Reader).block
	return nil
}

// atEnd is io.EOF if there is no more input.
func (r *Reader) atEnd() error {
	if !r.eof {
		if err := r.more(); err != nil {
			return err
		}
	}
	if r.pos >= r.end {
		return io.EOF
	}
	return nil
}

func (r *Reader) skip(bytes int) error {
	for range bytes {
		if _, err := r.take(8); err != nil {
			return err
		}
	}
	return nil
}

// block reads the header of a block.
func (r *Reader) block() error {
	if r.last {
		return r.trailer()
	}
	h, err := r.take(3)
	if err != nil {
		return err
	}
	r.last = h&1 != 0
	switch h >> 1 {
	case 0:
		if err := r.align(); err != nil {
			return err
		}
		n, err := r.take(32)
		if err != nil {
			return err
		}
		if n&0xffff != ^n>>16 {
			return ErrCorrupt
		}
		r.raw = int(n & 0xffff)
		r.state = (*Reader).stored
	case 1:
		r.fixed()
		r.state = (*Reader).symbols
	case 2:
		if err := r.dynamic(); err != nil {
			return err
		}
		r.state = (*Reader).symbols
	default:
		return ErrCorrupt
	}
	return nil
}

// trailer ends a member.
func (r *Reader) trailer() error {
	if err := r.align(); err != nil {
		return err
	}
	sum, err := r.take(32)
	if err != nil {
		return err
	}
	size, err := r.take(32)
	if err != nil {
		return err
	}
	r.digest()
	if sum != r.sum || size != r.size {
		return ErrChecksum
	}
	r.last = false
	r.state = (*Reader).header
	return nil
}

// stored copies a block that is not compressed. Its bytes are in in: bits was emptied before it.
func (r *Reader) stored() error {
	for r.raw > 0 && r.w < len(r.out)-outSlack {
		if r.pos >= r.end {
			if err := r.more(); err != nil {
				return err
			}
			if r.pos >= r.end {
				return io.ErrUnexpectedEOF
			}
		}
		n := copy(r.out[r.w:len(r.out)-outSlack], r.in[r.pos:min(r.end, r.pos+r.raw)])
		r.w += n
		r.pos += n
		r.raw -= n
	}
	if r.raw == 0 {
		r.state = (*Reader).block
	}
	return nil
}

// symbols decodes until the block or the room in out ends.
//
// An entry of the tables has, from its lowest bit: 8 bits of how many bits to take, extra ones included; 4 bits of how many of them are the
// code; flags; and from bit 16 a literal, the base of a length or distance, or where in the table a longer code goes on.
func (r *Reader) symbols() error {
	in, out := r.in, r.out
	pos, w, bits, n := r.pos, r.w, r.bits, r.n
	room := len(out) - outSlack
	limit := r.end - margin + 1 // where more input is wanted
	safe := w                   // what was decoded from input alone
	lit, dist := &r.lit, &r.dist
	var err error
loop:
	for w < room {
		for pos >= limit {
			if r.eof { // zeros follow, and are no input
				if pos-int(n>>3) > r.end {
					break loop
				}
				safe = w
				break
			}
			r.pos = pos
			if err = r.more(); err != nil {
				break loop
			}
			pos, limit = r.pos, r.end-margin+1
		}
		// Now 56 bits at least.
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56

		e := lit[bits&litMask]
		if e&isLiteral != 0 {
			// Up to three literals of the first table, 33 bits: a length code of 20 bits still has its bits.
			bits >>= e & 63
			n -= uint(e & 63)
			out[w] = byte(e >> 16)
			w++
			if e = lit[bits&litMask]; e&isLiteral != 0 {
				bits >>= e & 63
				n -= uint(e & 63)
				out[w] = byte(e >> 16)
				w++
				if e = lit[bits&litMask]; e&isLiteral != 0 {
					bits >>= e & 63
					n -= uint(e & 63)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
		}
		if e&isOther != 0 {
			if e&isLong != 0 {
				e = lit[e>>16+uint32(bits>>litBits)&(1<<(e>>8&15)-1)]
			}
			if e&isLiteral != 0 {
				bits >>= e & 63
				n -= uint(e & 63)
				out[w] = byte(e >> 16)
				w++
				continue
			}
			if e&isEnd != 0 {
				bits >>= e & 63
				n -= uint(e & 63)
				r.state = (*Reader).block
				break loop
			}
			if e&isOther != 0 {
				err = ErrCorrupt
				break loop
			}
		}
		length := int(e>>16) + int(bits&(1<<(e&63)-1)>>(e>>8&15))
		bits >>= e & 63
		n -= uint(e & 63)

		if n < 28 {
			bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
			pos += int((63 - n) >> 3)
			n |= 56
		}
		d := dist[bits&distMask]
		if d&isOther != 0 {
			if d&isLong != 0 {
				d = dist[d>>16+uint32(bits>>distBits)&(1<<(d>>8&15)-1)]
			}
			if d&isOther != 0 {
				err = ErrCorrupt
				break loop
			}
		}
		from := w - int(d>>16) - int(bits&(1<<(d&63)-1)>>(d>>8&15))
		bits >>= d & 63
		n -= uint(d & 63)
		if from < 0 { // before the first byte
			err = ErrCorrupt
			break loop
		}
		end := w + length
		if w-from >= 8 {
			// Words, up to seven bytes too many.
			for {
				binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
				w += 8
				from += 8
				if w >= end {
					break
				}
			}
		} else {
			for w < end { // each time twice as much
				w += copy(out[w:end], out[from:w])
			}
		}
		w = end
	}
	if r.eof && pos-int(n>>3) > r.end {
		w, err = safe, io.ErrUnexpectedEOF
	}
	r.pos, r.w, r.bits, r.n = pos, w, bits, n
	return err
}
