package image

import (
	"bufio"
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/ampoule-vm/ampoule/internal/inflate"
	"github.com/ampoule-vm/ampoule/internal/tree"
)

// What a zstd frame may make the decoder hold, bytes. `zstd -19` and the encoders of registries' tools need the first; with the second, of
// which there is one at a time, all but `zstd --ultra` and --long are read.
const (
	usualWindow = 8 << 20
	maxWindow   = 32 << 20
)

// A passage is one layer's way from the registry to the tree. Nothing of the tree may be used if it fails.
//
// Two goroutines run ahead of the reader, as far as there are chunks: one fetches the blob, and one turns it into the archive. Each hands its
// chunks to hashes that run beside the next stage, and ends well only if they hold.
type passage struct {
	layer   *Layer
	key     *layerKey // nil for a plain layer
	mem     *Buffers
	due     chan struct{} // closed when the layers below are done
	blob    *stream
	plain   *stream  // the archive; nil if that is the blob
	closers []func() // of the decompressor
}

// pools are an image's own chunks, for the layer that is due.
type pools struct{ blobs, archives chan *chunk }

func (i *Image) passages(keys []*layerKey) []*passage {
	var all []*passage
	for n := range i.Layers {
		p := &passage{layer: &i.Layers[n], key: keys[n], mem: i.mem, due: make(chan struct{}), blob: newStream()}
		if p.key != nil || p.layer.comp != raw {
			p.plain = newStream()
		}
		all = append(all, p)
	}
	return all
}

// start brings all layers on their way in the order in which they are due, as many at once as there are slots; who finishes one frees a slot.
func (i *Image) start(ctx context.Context, all []*passage, slots chan struct{}, progress func(int64)) {
	own := pools{newChunks(ownChunks), newChunks(ownChunks)}
	for _, p := range all {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done(): // what is started now ends at once
		}
		b := &blob{stream: p.blob, layer: p.layer, reg: i.reg, store: store{i.mem.blobs, own.blobs, p.due}, progress: progress}
		p.blob.write(func() error { return b.run(ctx, p.key) })
		p.begin(ctx, own)
	}
}

// begin makes the archive, if it is not the blob. gzip is slow and needs no memory, so that it need not wait for the layer's turn.
func (p *passage) begin(ctx context.Context, own pools) {
	if p.plain == nil {
		return
	}
	p.plain.write(func() error {
		if p.layer.comp != gzipped {
			select {
			case <-p.due:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return p.archive(ctx, store{p.mem.archives, own.archives, p.due})
	})
}

// unpack applies the archive to the tree as it comes, and checks what only its end can show. It must be called once, when the layers below
// are done; an error leaves goroutines that end with their context.
func (p *passage) unpack(t *tree.Tree) error {
	close(p.due)
	if p.plain == nil && p.layer.Digest != p.layer.DiffID && p.layer.DiffID != "" { // one and the same digest
		return fmt.Errorf("%w: the layer is %s, the config says %s", ErrDiffID, p.layer.Digest, p.layer.DiffID)
	}
	archive := t.Charge(cmp.Or(p.plain, p.blob))
	var err error
	if p.layer.File != "" {
		err = t.File(p.layer.File, 0o644, time.Unix(0, 0), archive)
	} else {
		err = t.Tar(archive)
	}
	if err == nil {
		return p.verify(archive)
	}
	if errors.Is(err, ErrFormat) && !errors.Is(err, ErrTooBig) {
		// Bytes that are not what the image says explain any complaint of the parsers above them, and are the graver news.
		if wrong := p.verify(archive); wrong != nil && !errors.Is(wrong, ErrFormat) {
			err = errors.Join(wrong, err)
		}
	}
	return err
}

// verify reads to the end of archive and blob, and gives their verdicts. What is behind the archive's own end counts against the limits.
func (p *passage) verify(archive io.Reader) error {
	if p.plain == nil {
		return p.blob.drain()
	}
	_, err := io.Copy(io.Discard, archive)
	if err != nil && !errors.Is(err, ErrFormat) {
		return err
	}
	// The archive has ended, so nobody else reads the blob. Decompressors stop at the end of their format, or where it is broken.
	if wrong := p.blob.drain(); wrong != nil {
		return wrong
	}
	return err
}

// close waits for everything that has been started: it has ended, or its context has. A second call does nothing.
func (p *passage) close() {
	if p.plain != nil {
		p.plain.close()
	}
	p.blob.close()
	for _, f := range p.closers {
		f()
	}
	p.closers = nil
}

// archive decrypts and decompresses the blob, as far as the layer needs it.
func (p *passage) archive(ctx context.Context, from store) error {
	l, k := p.layer, p.key
	var src io.Reader = p.blob
	if k != nil {
		block, err := aes.NewCipher(k.sym[:])
		if err != nil {
			return err
		}
		src = &deciphered{p.blob, cipher.NewCTR(block, k.nonce[:])}
	}
	var compressed *readHash
	if k != nil && l.comp != raw && !k.fixed {
		compressed = &readHash{src, sha256.New()}
		src = compressed
	}
	plain, err := p.decompress(ctx, src)
	if err != nil {
		return err
	}
	diff := newStreamDigester(sha256.New())
	defer diff.finish()
	if err := copyChunks(ctx, p.plain, plain, from, diff); err != nil {
		return err
	}
	got := formatDigest(diff.finish())
	digest := got
	if compressed != nil {
		if digest, err = compressed.rest(); err != nil {
			return err
		}
	}
	if k != nil && digest != k.digest && (l.comp == raw || compressed != nil) {
		return fmt.Errorf("%w: the layer decrypts to %s, its key packet says %s", ErrDigest, digest, k.digest)
	}
	// An artifact has no diff-IDs: what the archive is follows from the blob, whose digest holds.
	if got != l.DiffID && l.DiffID != "" {
		return fmt.Errorf("%w: the layer is %s, the config says %s", ErrDiffID, got, l.DiffID)
	}
	return nil
}

func (p *passage) decompress(ctx context.Context, src io.Reader) (io.Reader, error) {
	switch p.layer.comp {
	case gzipped:
		return &checkedFormat{p, "gzip", inflate.NewReader(src)}, nil
	case zstded:
		z, err := p.zstd(ctx, bufio.NewReaderSize(src, chunkSize/2))
		return &checkedFormat{p, "zstd", z}, p.fault("zstd", err)
	}
	return src, nil
}

func (p *passage) zstd(ctx context.Context, in *bufio.Reader) (io.Reader, error) {
	var h zstd.Header
	first, err := in.Peek(zstd.HeaderMaxSize)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if err := h.Decode(first); err != nil {
		return nil, err
	}
	if h.WindowSize > usualWindow {
		select {
		case p.mem.wide <- struct{}{}:
			p.closers = append(p.closers, func() { <-p.mem.wide })
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		z, err := newZstd(in, maxWindow)
		if err == nil {
			p.closers = append([]func(){z.Close}, p.closers...)
		}
		return z, err
	}
	// Decoders are kept: each has a window of its own, which would be garbage after every layer.
	var z *zstd.Decoder
	select {
	case z = <-p.mem.decoders:
		err = z.Reset(in)
	default:
		z, err = newZstd(in, usualWindow)
	}
	if err == nil {
		p.closers = append(p.closers, func() {
			if z.Reset(nil) == nil {
				p.mem.decoders <- z // has room for one of each image that is unpacked
			}
		})
	}
	return z, err
}

func newZstd(in io.Reader, window uint64) (*zstd.Decoder, error) {
	return zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
}

// fault tells a decompressor's own error from that of the blob which it reads.
func (p *passage) fault(format string, err error) error {
	if err == nil || err == io.EOF || p.blob.failed != nil {
		return cmp.Or(p.blob.failed, err)
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("%w: zstd with a window over %d MiB; compress without --ultra and --long", ErrTooBig, maxWindow>>20)
	}
	return fmt.Errorf("%w: %s: %w", ErrFormat, format, err)
}

// checkedFormat is a decompressor that blames whom it should.
type checkedFormat struct {
	*passage
	format string
	r      io.Reader
}

func (c *checkedFormat) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	return n, c.fault(c.format, err)
}

// readHash hashes what is read through it: the compressed plaintext, where HMAC and key packet leave a bit of it open.
type readHash struct {
	r   io.Reader
	sum hash.Hash
}

// rest reads to the end and gives the digest of the whole.
func (s *readHash) rest() (string, error) {
	_, err := io.Copy(io.Discard, s)
	return formatDigest(s.sum.Sum(nil)), err
}

func (s *readHash) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	return n, err
}

// copyChunks sends all of r, hashed on the way.
func copyChunks(ctx context.Context, to *stream, r io.Reader, from store, d *digester) error {
	for {
		c, err := from.take(ctx)
		if err != nil {
			return err
		}
		err = c.fill(r)
		if len(c.data) > 0 {
			to.send(c, d)
		} else {
			c.home <- c
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
