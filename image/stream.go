package image

import (
	"context"
	"crypto/cipher"
	"fmt"
	"io"
	"runtime/debug"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

// What pulls may hold of blobs and archives at a time. Together with what decompressors need this is all of their memory, whatever the size
// and number of images.
const (
	chunkSize = 256 << 10 // bytes

	aheadChunks = 32 // of blobs, and as many of archives, of layers whose turn has not come: 8 and 8 MiB, for all images
	ownChunks   = 8  // of the blob, and as many of the archive, of the layer that is being unpacked: 2 and 2 MiB for each image
	atOnce      = 3  // images that are unpacked at once

	aheadLayers = 4 // of an image are on the wire at once, the one being unpacked included
)

// Buffers are the memory of pulls. Images that are pulled with the same Buffers share it: a few of them at a time, and of the layers that
// are not yet due as much in advance as there is room for.
type Buffers struct {
	blobs, archives chan *chunk        // free chunks for layers ahead
	turns           chan struct{}      // places for images
	decoders        chan *zstd.Decoder // that are not in use
	wide            chan struct{}      // one place for a decoder with a large window
}

// NewBuffers makes room for pulls: at most about 28 MiB, with zstd 10 MiB more for each of three images, and 32 MiB while a layer is read
// that was compressed with so large a window. What is not needed is not taken.
func NewBuffers() *Buffers {
	return &Buffers{
		blobs:    newChunks(aheadChunks),
		archives: newChunks(aheadChunks),
		turns:    make(chan struct{}, atOnce),
		decoders: make(chan *zstd.Decoder, atOnce),
		wide:     make(chan struct{}, 1),
	}
}

// A chunk is a piece of a stream, read by several goroutines at once and written by none. Its memory is made at its first use.
type chunk struct {
	buf  []byte // chunkSize bytes
	data []byte
	refs atomic.Int32
	home chan *chunk // has room for all that come from it
}

func newChunks(n int) chan *chunk {
	home := make(chan *chunk, n)
	for range n {
		home <- &chunk{home: home}
	}
	return home
}

// fill reads the chunk full. Unlike io.ReadFull it passes on r's own error, so that a stream cut short differs from one that ends.
func (c *chunk) fill(r io.Reader) (err error) {
	if c.buf == nil {
		c.buf = make([]byte, chunkSize)
	}
	n := 0
	for n < len(c.buf) && err == nil {
		var m int
		m, err = r.Read(c.buf[n:])
		n += m
	}
	c.data = c.buf[:n]
	return err
}

// done gives the chunk back when the last of its readers has said so.
func (c *chunk) done() {
	if c.refs.Add(-1) == 0 {
		c.home <- c
	}
}

// A digester hashes chunks in a goroutine of its own, beside whatever else is done with them.
type digester struct {
	in  chan *chunk
	sum chan []byte
}

// A summer adds up what is written to it.
type summer interface {
	io.Writer
	Sum(b []byte) []byte
}

func newDigester(h summer, room int) *digester {
	d := &digester{in: make(chan *chunk, room), sum: make(chan []byte, 1)}
	in := d.in
	go func() {
		for c := range in {
			h.Write(c.data)
			c.done()
		}
		d.sum <- h.Sum(nil)
	}()
	return d
}

// finish gives the digest of what was sent. It must be called, for the goroutine to end; a second call gives nil.
func (d *digester) finish() []byte {
	if d.in == nil {
		return nil
	}
	close(d.in)
	d.in = nil
	return <-d.sum
}

// A stream is chunks on their way from one goroutine, which verifies the whole when it has seen the last, to a reader. The reader's end of
// file means that the bytes were the right ones.
type stream struct {
	chunks chan *chunk // with room for all that there can be, so that only want of memory makes the writer wait
	err    error       // nil: the end, and verified. Set before chunks is closed
	died   any         // likewise: what the writer panicked with

	// The reader's.
	cur    *chunk
	rest   []byte
	failed error // err, once it has been read
}

// write runs f, which sends the stream's chunks and returns its verdict, in a goroutine.
func (s *stream) write(f func() error) {
	go func() {
		defer close(s.chunks)
		defer carry(&s.died)
		s.err = f()
	}()
}

// carry is deferred by a goroutine that reads what strangers wrote. It keeps a panic for whoever waits for the
// goroutine, which panics in its place: there it can be recovered, while here it would end the program.
func carry(died *any) {
	if p := recover(); p != nil {
		*died = fmt.Sprintf("%v\n%s", p, debug.Stack())
	}
}

// send hands a filled chunk to the reader and to who hashes it.
func (s *stream) send(c *chunk, d *digester) {
	c.refs.Store(2)
	d.in <- c
	s.chunks <- c
}

// next makes rest non-empty, or says why there is no more.
func (s *stream) next() error {
	if len(s.rest) > 0 {
		return nil
	}
	if s.cur != nil {
		s.cur.done()
		s.cur = nil
	}
	c, ok := <-s.chunks
	switch {
	case ok:
		s.cur, s.rest = c, c.data
		return nil
	case s.died != nil:
		panic(s.died)
	case s.err != nil:
		s.failed = s.err
		return s.err
	}
	return io.EOF
}

func (s *stream) Read(b []byte) (int, error) {
	if err := s.next(); err != nil {
		return 0, err
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// drain reads to the end without a copy. It returns nil if the whole was right.
func (s *stream) drain() error {
	for {
		s.rest = nil
		if err := s.next(); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// close waits for the writer, which must have been told to end, and gives back the chunks.
func (s *stream) close() {
	if s.cur != nil {
		s.cur.done()
		s.cur, s.rest = nil, nil
	}
	for c := range s.chunks {
		c.done()
	}
}

// deciphered is a stream under AES-CTR. It deciphers into the reader's memory: the ciphertext is being hashed at the same time.
type deciphered struct {
	*stream
	ctr cipher.Stream
}

func (d *deciphered) Read(b []byte) (int, error) {
	if err := d.next(); err != nil {
		return 0, err
	}
	n := min(len(b), len(d.rest))
	d.ctr.XORKeyStream(b[:n], d.rest[:n])
	d.rest = d.rest[n:]
	return n, nil
}

// A store is where a layer takes free chunks: from what all layers ahead share and, once it is due, from what its image has for the layer
// that is being unpacked. So the layer whose turn it is never waits for others.
type store struct {
	ahead, own chan *chunk
	due        <-chan struct{} // closed when the layer's turn has come
}

// take waits for a free chunk.
func (s store) take(ctx context.Context) (*chunk, error) {
	select {
	case <-s.due:
		select {
		case c := <-s.own: // first: what is ahead is for those who have nothing else
			return c, nil
		default:
		}
	default:
		select {
		case c := <-s.ahead:
			return c, nil
		case <-s.due:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	select {
	case c := <-s.own:
		return c, nil
	case c := <-s.ahead:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// newStream has room for all chunks that a store can give.
func newStream() *stream { return &stream{chunks: make(chan *chunk, aheadChunks+ownChunks)} }

// newStreamDigester is for the chunks of one stream.
func newStreamDigester(h summer) *digester { return newDigester(h, aheadChunks+ownChunks) }
