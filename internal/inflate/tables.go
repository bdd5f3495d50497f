package inflate

import "math/bits"

const (
	litBits  = 11
	litMask  = 1<<litBits - 1
	distBits = 8
	distMask = 1<<distBits - 1
	maxCode  = 15

	litSymbols  = 288
	distSymbols = 32

	// How many entries complete codes need at most, the tables of longer codes included. A code that wants more is not complete, and is
	// refused before.
	litEntries  = 2342
	distEntries = 402
)

// The flags of an entry.
const (
	isLiteral = 1 << 12
	isOther   = 1 << 13 // none of literal, length and distance
	isLong    = 1 << 14 // a code longer than the first table's: the rest is looked up
	isEnd     = 1 << 15 // of the block
)

// tables are the codes of one block.
type tables struct {
	lit  [litEntries]uint32
	dist [distEntries]uint32
}

var (
	lengthBase = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthMore = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase   = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097,
		6145, 8193, 12289, 16385, 24577}
	distMore = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	order    = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// litMeaning is the entry of a symbol without the bits of its code.
func litMeaning(symbol int) uint32 {
	switch {
	case symbol < 256:
		return uint32(symbol)<<16 | isLiteral
	case symbol == 256:
		return isOther | isEnd
	case symbol-257 < len(lengthBase):
		return uint32(lengthBase[symbol-257])<<16 | uint32(lengthMore[symbol-257])
	}
	return isOther // has a code in fixed blocks, and may not be used
}

func distMeaning(symbol int) uint32 {
	if symbol < len(distBase) {
		return uint32(distBase[symbol])<<16 | uint32(distMore[symbol])
	}
	return isOther
}

func (t *tables) fixed() {
	var lengths [litSymbols]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	build(t.lit[:], litBits, lengths[:], litMeaning)
	var five [distSymbols]uint8
	for i := range five {
		five[i] = 5
	}
	build(t.dist[:], distBits, five[:], distMeaning)
}

// dynamic reads the codes of a block.
func (r *Reader) dynamic() error {
	h, err := r.take(14)
	if err != nil {
		return err
	}
	nlit, ndist, ncode := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	if nlit > 286 {
		return ErrCorrupt
	}
	var codes [19]uint8
	for _, at := range order[:ncode] {
		n, err := r.take(3)
		if err != nil {
			return err
		}
		codes[at] = uint8(n)
	}
	var table [1 << 7]uint32
	if !build(table[:], 7, codes[:], func(symbol int) uint32 { return uint32(symbol) << 16 }) {
		return ErrCorrupt
	}
	var lengths [286 + 32]uint8
	for i := 0; i < nlit+ndist; {
		if err := r.need(7); err != nil && r.n == 0 {
			return err
		}
		e := table[r.bits&(1<<7-1)]
		if e&isOther != 0 {
			return ErrCorrupt
		}
		if _, err := r.take(uint(e & 63)); err != nil {
			return err
		}
		symbol := e >> 16
		if symbol < 16 {
			lengths[i] = uint8(symbol)
			i++
			continue
		}
		var value uint8
		base, more := uint32(3), uint(2)
		switch symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value = lengths[i-1]
		case 17:
			more = 3
		case 18:
			base, more = 11, 7
		}
		n, err := r.take(more)
		if err != nil {
			return err
		}
		n += base
		if i+int(n) > nlit+ndist {
			return ErrCorrupt
		}
		for range n {
			lengths[i] = value
			i++
		}
	}
	if lengths[256] == 0 { // the block would never end
		return ErrCorrupt
	}
	if !build(r.lit[:], litBits, lengths[:nlit], litMeaning) || !build(r.dist[:], distBits, lengths[nlit:nlit+ndist], distMeaning) {
		return ErrCorrupt
	}
	return nil
}

// build makes the table of a canonical code from the lengths of its symbols' codes, 0 for none. The first 2^root entries are looked up by
// the next root bits; behind them are tables for what longer codes have more. It reports false for lengths that are no code: too many, or
// too few, but for one of a single symbol, or none, whose other entries are isOther.
func build(table []uint32, root uint, lengths []uint8, meaning func(symbol int) uint32) bool {
	var count [maxCode + 1]int
	for _, l := range lengths {
		count[l]++
	}
	used := len(lengths) - count[0]
	count[0] = 0
	var next [maxCode + 2]uint32 // the first code of each length
	left := 1
	for l := 1; l <= maxCode; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return false
		}
		next[l+1] = (next[l] + uint32(count[l])) << 1
	}
	if left > 0 && !(used == 0 || used == 1 && count[1] == 1) {
		return false
	}
	first := table[:1<<root]
	for i := range first {
		first[i] = isOther
	}
	// In the order of their codes, so that the codes with a common beginning are together.
	var at [maxCode + 2]int
	for l := 1; l <= maxCode; l++ {
		at[l+1] = at[l] + count[l]
	}
	var sorted [litSymbols]uint16
	for s, l := range lengths {
		if l != 0 {
			sorted[at[l]] = uint16(s)
			at[l]++
		}
	}
	free := 1 << root
	for _, s := range sorted[:used] {
		l := uint(lengths[s])
		code := next[l]
		next[l]++
		reversed := uint(bits.Reverse32(code) >> (32 - l)) // codes come with their first bit lowest
		m := meaning(int(s))
		e := m&^0xff | uint32(l)<<8&0xf00 | (m&0xff + uint32(l))
		if l <= root {
			for i := reversed; i < 1<<root; i += 1 << l {
				first[i] = e
			}
			count[l]--
			continue
		}
		head := &first[reversed&(1<<root-1)]
		if *head&isLong == 0 {
			// As wide as the codes that begin so need: until those that are left fill it.
			width := l - root
			for room := 1<<width - count[l]; room > 0 && root+width < maxCode; {
				width++
				room = room<<1 - count[root+width]
			}
			if free+1<<width > len(table) {
				return false
			}
			*head = isOther | isLong | uint32(width)<<8 | uint32(free)<<16
			for i := range 1 << width {
				table[free+i] = isOther
			}
			free += 1 << width
		}
		width := uint(*head >> 8 & 15)
		sub := table[*head>>16:][:1<<width]
		for i := reversed >> root; i < 1<<width; i += 1 << (l - root) {
			sub[i] = e
		}
		count[l]--
	}
	return true
}
