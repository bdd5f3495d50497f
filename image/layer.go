package image

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime/debug"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/tree"
)

// maxWindow bounds what a zstd frame may make the decoder hold, bytes. It is what
// `zstd -19` needs eightfold; `zstd --ultra --long=31` is refused.
const maxWindow = 64 << 20

// layerReader is the uncompressed tar of one layer. The blob has been verified before;
// what can be known only at the end, verify checks.
type layerReader struct {
	layer  *Layer
	key    *layerKey
	blob   *pump     // plaintext blob, hashed on the way
	tar    *pump     // uncompressed, hashed on the way; nil if that is the same thing
	closer io.Closer // of the decompressor, or nil
	in     io.Reader
	sum    hash.Hash
	diff   hash.Hash
}

// open starts decryption and decompression, each in a goroutine that close ends.
func (l *Layer) open(ctx context.Context, blob *os.File, k *layerKey, t *tree.Tree) (*layerReader, error) {
	lr := &layerReader{layer: l, key: k, sum: sha256.New()}
	var src io.Reader = &drainReader{ctx: ctx, file: blob}
	if k != nil {
		block, err := aes.NewCipher(k.sym[:])
		if err != nil {
			return nil, err
		}
		src = cipher.StreamReader{S: cipher.NewCTR(block, k.nonce[:]), R: src}
	}
	lr.blob = newPump(src, lr.sum)

	var plain io.Reader
	switch l.comp {
	case raw:
		lr.in, lr.diff = t.Charge(lr.blob), lr.sum
		return lr, nil
	case gzipped:
		z, err := gzip.NewReader(lr.blob)
		if err != nil {
			lr.blob.close()
			return nil, fmt.Errorf("%w: gzip: %w", ErrFormat, err)
		}
		plain = z
	case zstded:
		z, err := zstd.NewReader(lr.blob, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			lr.blob.close()
			return nil, fmt.Errorf("%w: zstd: %w", ErrFormat, err)
		}
		plain, lr.closer = z, z.IOReadCloser()
	}
	lr.diff = sha256.New()
	lr.tar = newPump(plain, lr.diff)
	lr.in = t.Charge(lr.tar)
	return lr, nil
}

func (r *layerReader) Read(p []byte) (int, error) { return r.in.Read(p) }

// verify reads to the end and compares. Nothing of the layer may be used if it fails.
func (r *layerReader) verify() error {
	if _, err := io.Copy(io.Discard, r.in); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, err := io.Copy(io.Discard, r.blob); err != nil { // decompressors read to EOF; make it certain
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	// Both pumps are at EOF, so their goroutines have let go of the hashes.
	if got := formatDigest(r.sum.Sum(nil)); r.key != nil && got != r.key.digest {
		return fmt.Errorf("%w: the layer decrypts to %s, its key packet says %s", ErrDigest, got, r.key.digest)
	}
	if got := formatDigest(r.diff.Sum(nil)); got != r.layer.DiffID {
		return fmt.Errorf("%w: the layer is %s, the config says %s", ErrDiffID, got, r.layer.DiffID)
	}
	return nil
}

func (r *layerReader) close() {
	// The lower one first: the upper one may be waiting for it.
	r.blob.close()
	if r.tar != nil {
		r.tar.close()
	}
	if r.closer != nil {
		r.closer.Close()
	}
}

// pump reads ahead in a goroutine and hashes what it read, so that decryption,
// decompression and writing files share the processors.
type pump struct {
	full chan []byte
	free chan []byte
	stop chan struct{}
	err  error // set before full is closed
	died any   // likewise: what src panicked with
	cur  []byte
	rest []byte
}

// carry is deferred by a goroutine that reads what strangers wrote. It keeps a panic for whoever waits for the
// goroutine, which panics in its place: there it can be recovered, while here it would end the program.
func carry(died *any) {
	if p := recover(); p != nil {
		*died = fmt.Sprintf("%v\n%s", p, debug.Stack())
	}
}

func newPump(src io.Reader, sum hash.Hash) *pump {
	p := &pump{full: make(chan []byte, 2), free: make(chan []byte, 4), stop: make(chan struct{})}
	for range 4 {
		p.free <- make([]byte, chunkSize/4)
	}
	go func() {
		defer close(p.full)
		defer carry(&p.died)
		for {
			var b []byte
			select {
			case b = <-p.free:
			case <-p.stop:
				p.err = os.ErrClosed
				return
			}
			n, err := fill(src, b)
			sum.Write(b[:n])
			if n > 0 {
				select {
				case p.full <- b[:n]:
				case <-p.stop:
					p.err = os.ErrClosed
					return
				}
			}
			if err != nil {
				p.err = err
				return
			}
		}
	}()
	return p
}

func (p *pump) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.cur != nil {
			p.free <- p.cur[:cap(p.cur)] // never blocks: as many places as buffers
			p.cur = nil
		}
		next, ok := <-p.full
		if !ok {
			if p.died != nil {
				panic(p.died)
			}
			return 0, p.err
		}
		p.cur, p.rest = next, next
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// close ends the goroutine and waits for it.
func (p *pump) close() {
	close(p.stop)
	for range p.full {
	}
}

// drainReader reads a spool from its start and gives back what it has read: in a tmpfs
// the ciphertext shrinks as the plaintext grows.
type drainReader struct {
	ctx         context.Context
	file        *os.File
	off, freed  int64
	keepForever bool // the file system cannot punch holes
}

func (d *drainReader) Read(b []byte) (int, error) {
	if err := d.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := d.file.ReadAt(b, d.off)
	d.off += int64(n)
	if span := d.off - d.freed; span >= 4<<20 && !d.keepForever {
		d.keepForever = unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, d.freed, span) != nil
		d.freed = d.off
	}
	if n > 0 {
		err = nil
	}
	return n, err
}

// fill reads until b is full or r fails. Unlike io.ReadFull it passes on r's own error,
// so that a stream cut short differs from one that ends.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}
