package tree

import (
	"fmt"
	"io"
	"sync/atomic"
)

// Limits bound what one tree may hold. Zero fields take the defaults.
type Limits struct {
	Bytes   int64  // uncompressed bytes of all archives, and of all files with their holes; default 64 GiB
	Entries int    // entries of all archives, and directories that none names; default 1 Mi
	Name    int    // bytes of a path; default 4096
	Depth   int    // components of a path; default 128
	Ratio   int    // uncompressed bytes to compressed ones ([Tree.Compressed]) behind the first 64 MiB; default 1100
	Chown   bool   // keep the archive's owners; needs root. Otherwise all is the caller's
	XAttrs  XAttrs // which extended attributes are kept; default none
	Pool    *Pool  // bounds the files of several trees together; nil: only Bytes does
}

// freeOfRatio is how much may come of nothing, bytes: little archives of zeros do no harm.
const freeOfRatio = 64 << 20

func (l Limits) withDefaults() Limits {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	if l.Bytes <= 0 {
		l.Bytes = 64 << 30
	}
	set(&l.Entries, 1<<20)
	set(&l.Name, 4096)
	set(&l.Depth, 128)
	set(&l.Ratio, 1100) // deflate makes at most 1032 of one, so that an image of zeros under gzip is still an image
	return l
}

// budget is what may still be unpacked.
type budget struct {
	bytes   int64 // of uncompressed archive
	content int64 // of files; sparse ones are larger than their archive
	pooled  int64 // taken of the limits' Pool
	entries int
	packed  atomic.Int64 // compressed bytes so far, or 0: nothing is compressed
}

// Compressed says that n more bytes of compressed archive have been read. It may be called by another goroutine than the one that reads,
// and should be called before what comes of these bytes is read.
func (t *Tree) Compressed(n int64) { t.budget.packed.Add(n) }

// Charge is r with its bytes counted against the tree's limits: what an archive has behind its end, too.
func (t *Tree) Charge(r io.Reader) io.Reader { return &chargedReader{r, t} }

type chargedReader struct {
	r io.Reader
	t *Tree
}

func (c *chargedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	b := &c.t.budget
	if b.bytes -= int64(n); b.bytes < 0 {
		return 0, fmt.Errorf("%w: it unpacks to more than %d bytes", ErrTooBig, c.t.lim.Bytes)
	}
	if packed := b.packed.Load(); packed > 0 {
		if err := c.t.proportionate(c.t.lim.Bytes-b.bytes, packed); err != nil {
			return 0, err
		}
	}
	return n, err
}

// proportionate says whether so many bytes may come of so few.
func (t *Tree) proportionate(unpacked, packed int64) error {
	if over := unpacked - freeOfRatio; over > 0 && over/int64(t.lim.Ratio) > packed {
		return fmt.Errorf("%w: %d bytes unpack to over %d times as many", ErrTooBig, packed, t.lim.Ratio)
	}
	return nil
}

// enter charges an entry.
func (t *Tree) enter() error {
	if t.budget.entries--; t.budget.entries < 0 {
		return fmt.Errorf("%w: there are more than %d entries", ErrTooBig, t.lim.Entries)
	}
	return nil
}

// contain charges what files hold.
func (t *Tree) contain(n int64) error {
	if t.budget.content -= n; n < 0 || t.budget.content < 0 {
		return fmt.Errorf("%w: the files have more than %d bytes", ErrTooBig, t.lim.Bytes)
	}
	t.budget.pooled += n
	return t.lim.Pool.take(n)
}
