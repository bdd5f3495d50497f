package bench

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"sync"
)

// Content is what the files of an image hold.
type Content string

const (
	Random  Content = "random"  // does not compress
	Text    Content = "text"    // words by Zipf's law, which gzip makes a third of
	Pattern Content = "pattern" // one random block again and again, for images that are large and quick to make
)

// reader gives n bytes, the same for the same seed.
func (c Content) reader(seed uint64, n int64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	src := rand.NewChaCha8(key)
	switch c {
	case Text:
		return io.LimitReader(&textReader{src: src}, n)
	case Pattern:
		block := make([]byte, 64<<10)
		src.Read(block)
		return io.LimitReader(&patternReader{block: block}, n)
	}
	return io.LimitReader(src, n)
}

type patternReader struct {
	block []byte
	off   int
}

func (p *patternReader) Read(b []byte) (n int, err error) {
	n = copy(b, p.block[p.off:])
	p.off = (p.off + n) % len(p.block)
	return n, nil
}

// letters are in the order of how often they come.
const letters = "etaoinshrdlucmfwypvbgkqjxz"

// vocabulary is the same for all texts: 4,096 words, the first the most common.
func vocabulary() (words [4096]string) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range words {
		b := make([]byte, 2+r.IntN(8))
		for j := range b {
			b[j] = letters[min(r.IntN(len(letters)), r.IntN(len(letters)))]
		}
		words[i] = string(b)
	}
	return words
}

// running is the vocabulary in running text, by Zipf's law. Drawing from it is many times as fast as from the law. It is made when it is
// needed: every command of ampoule would wait for it otherwise.
var running = sync.OnceValue(func() *[1 << 16]string {
	var words [1 << 16]string
	vocabulary := vocabulary()
	zipf := rand.NewZipf(rand.New(rand.NewPCG(3, 4)), 1.2, 4, uint64(len(vocabulary)-1))
	for i := range words {
		words[i] = vocabulary[zipf.Uint64()]
	}
	return &words
})

type textReader struct {
	src  rand.Source
	draw uint64 // random bits
	left int    // bits that draw still has
	line []byte
	rest []byte // of the line, unread
}

func (t *textReader) word() string {
	if t.left == 0 {
		t.draw, t.left = t.src.Uint64(), 64
	}
	w := running()[t.draw&0xffff]
	t.draw >>= 16
	t.left -= 16
	return w
}

func (t *textReader) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if len(t.rest) == 0 {
			t.line = t.line[:0]
			for len(t.line) < 70 {
				t.line = append(append(t.line, t.word()...), ' ')
			}
			t.line[len(t.line)-1] = '\n'
			t.rest = t.line
		}
		m := copy(b[n:], t.rest)
		t.rest = t.rest[m:]
		n += m
	}
	return n, nil
}
