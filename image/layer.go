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

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ampoule-vm/ampoule/internal/tree"
)

// What a zstd frame may make the decoder hold, bytes. `zstd -19` and the encoders of registries' tools need the first; with the second, of
// which there is one at a time, all but `zstd --ultra` and --long are read.
const (
	usualWindow = 8 << 20
	maxWindow   = 32 << 20
)

// unpacking is one layer on its way from blob to tree. Nothing of the tree may be used if it fails.
type unpacking struct {
	layer  *Layer
	key    *layerKey // nil for a plain layer
	mem    *Buffers
	tree   *tree.Tree
	blob   *stream // verifies itself
	cancel func()  // ends blob

	plain   *stream  // the archive, which verifies itself too; nil if that is the blob
	closers []func() // of the decompressor
}

// run applies the blob to the tree as it comes, and checks what only its end can show.
func (u *unpacking) run(ctx context.Context) error {
	good := false
	defer func() {
		if !good { // or it panics
			u.cancel()
		}
		u.close()
	}()
	archive, err := u.open(ctx)
	if err == nil {
		archive = u.tree.Charge(archive)
		if err = u.tree.Tar(archive); err == nil {
			err = u.verify(archive)
		}
	}
	if err == nil {
		good = true
		return nil
	}
	if errors.Is(err, ErrFormat) && !errors.Is(err, ErrTooBig) {
		// Bytes that are not what the image says explain any complaint of the parsers above them, and are the graver news.
		if wrong := u.verify(archive); wrong != nil && !errors.Is(wrong, ErrFormat) {
			err = errors.Join(wrong, err)
		}
	}
	return err
}

// verify reads to the end of archive and blob, and gives their verdicts. What is behind the archive's own end counts against the limits.
func (u *unpacking) verify(archive io.Reader) error {
	if u.plain == nil {
		return u.blob.drain()
	}
	_, err := io.Copy(io.Discard, archive)
	if err != nil && !errors.Is(err, ErrFormat) {
		return err
	}
	// The archive has ended, so nobody else reads the blob. Decompressors stop at the end of their format, or where it is broken.
	if wrong := u.blob.drain(); wrong != nil {
		return wrong
	}
	return err
}

// close waits for everything that open has started: it has ended, or its context has.
func (u *unpacking) close() {
	if u.plain != nil {
		u.plain.close()
	}
	u.blob.close()
	for _, f := range u.closers {
		f()
	}
}

// open starts decryption and decompression, as far as the layer needs them.
func (u *unpacking) open(ctx context.Context) (io.Reader, error) {
	l, k := u.layer, u.key
	var src io.Reader = u.blob
	if k != nil {
		block, err := aes.NewCipher(k.sym[:])
		if err != nil {
			return nil, err
		}
		src = &deciphered{u.blob, cipher.NewCTR(block, k.nonce[:])}
	} else if l.comp == raw {
		if l.Digest != l.DiffID { // one and the same digest
			return nil, fmt.Errorf("%w: the layer is %s, the config says %s", ErrDiffID, l.Digest, l.DiffID)
		}
		return u.blob, nil
	}
	var compressed *summer
	if k != nil && l.comp != raw && !k.fixed {
		compressed = &summer{src, sha256.New()}
		src = compressed
	}
	archive, err := u.decompress(ctx, src)
	if err != nil {
		return nil, err
	}
	u.plain = &stream{chunks: make(chan *chunk, ownChunks)}
	u.plain.write(func() error {
		diff := newDigester(sha256.New(), ownChunks)
		defer diff.finish()
		err := copyChunks(ctx, u.plain, archive, diff)
		got := formatDigest(diff.finish())
		if err != nil {
			return err
		}
		digest := got
		if compressed != nil {
			if digest, err = compressed.rest(); err != nil {
				return err
			}
		}
		if k != nil && digest != k.digest && (l.comp == raw || compressed != nil) {
			return fmt.Errorf("%w: the layer decrypts to %s, its key packet says %s", ErrDigest, digest, k.digest)
		}
		if got != l.DiffID {
			return fmt.Errorf("%w: the layer is %s, the config says %s", ErrDiffID, got, l.DiffID)
		}
		return nil
	})
	return u.plain, nil
}

func (u *unpacking) decompress(ctx context.Context, src io.Reader) (io.Reader, error) {
	in := bufio.NewReaderSize(src, chunkSize/2) // the decompressors know this type and read from its buffer
	switch u.layer.comp {
	case gzipped:
		z, err := gzip.NewReader(in)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return u.checked("gzip", z), u.fault("gzip", err)
	case zstded:
		z, err := u.zstd(ctx, in)
		return u.checked("zstd", z), u.fault("zstd", err)
	}
	return src, nil
}

func (u *unpacking) zstd(ctx context.Context, in *bufio.Reader) (io.Reader, error) {
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
		case u.mem.wide <- struct{}{}:
			u.closers = append(u.closers, func() { <-u.mem.wide })
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		z, err := newZstd(in, maxWindow)
		if err == nil {
			u.closers = append([]func(){z.Close}, u.closers...)
		}
		return z, err
	}
	// Decoders are kept: each has a window of its own, which would be garbage after every layer.
	var z *zstd.Decoder
	select {
	case z = <-u.mem.decoders:
		err = z.Reset(in)
	default:
		z, err = newZstd(in, usualWindow)
	}
	if err == nil {
		u.closers = append(u.closers, func() {
			if z.Reset(nil) == nil {
				u.mem.decoders <- z // has room for one of each image that is unpacked
			}
		})
	}
	return z, err
}

func newZstd(in io.Reader, window uint64) (*zstd.Decoder, error) {
	return zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
}

// fault tells a decompressor's own error from that of the blob which it reads.
func (u *unpacking) fault(format string, err error) error {
	if err == nil || err == io.EOF || u.blob.failed != nil {
		return cmp.Or(u.blob.failed, err)
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("%w: zstd with a window over %d MiB; compress without --ultra and --long", ErrTooBig, maxWindow>>20)
	}
	return fmt.Errorf("%w: %s: %w", ErrFormat, format, err)
}

func (u *unpacking) checked(format string, r io.Reader) io.Reader {
	return &checkedFormat{u, format, r}
}

type checkedFormat struct {
	*unpacking
	format string
	r      io.Reader
}

func (c *checkedFormat) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	return n, c.fault(c.format, err)
}

// summer hashes what is read through it: the compressed plaintext, where HMAC and key packet leave a bit of it open.
type summer struct {
	r   io.Reader
	sum hash.Hash
}

// rest reads to the end and gives the digest of the whole.
func (s *summer) rest() (string, error) {
	_, err := io.Copy(io.Discard, s)
	return formatDigest(s.sum.Sum(nil)), err
}

func (s *summer) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	return n, err
}

// copyChunks sends all of r, hashed on the way.
func copyChunks(ctx context.Context, s *stream, r io.Reader, d *digester) error {
	own := newChunks(ownChunks)
	for {
		c, err := take(ctx, nil, own, nil)
		if err != nil {
			return err
		}
		err = c.fill(r)
		if len(c.data) > 0 {
			s.send(c, d)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
