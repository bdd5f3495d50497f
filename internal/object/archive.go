package object

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/inflate"
	"github.com/ampoule-vm/ampoule/internal/tree"
)

const (
	// maxWindow bounds what a zstd frame may make the decoder hold, bytes.
	maxWindow = 64 << 20

	tarMagic = 257 // where a tar says "ustar"
)

// unarchive unpacks the archive in spool, of which there must be nothing else, to dir. Which kind it is, its first bytes say: names come
// from strangers.
func unarchive(ctx context.Context, dir string, spool *os.File, size int64, lim tree.Limits) error {
	if err := os.Remove(spool.Name()); err != nil { // from here on it dies with its descriptor
		return err
	}
	t, err := tree.Open(dir, lim)
	if err != nil {
		return err
	}
	defer t.Close()
	magic := make([]byte, 4)
	if _, err := spool.ReadAt(magic, 0); err != nil && err != io.EOF {
		return err
	}
	if bytes.Equal(magic, []byte("PK\x03\x04")) || bytes.Equal(magic, []byte("PK\x05\x06")) {
		err = t.Zip(contextReader{ctx, spool}, size)
	} else {
		err = tarball(ctx, t, spool, magic)
	}
	if err != nil {
		return err
	}
	return t.Seal()
}

func tarball(ctx context.Context, t *tree.Tree, spool *os.File, magic []byte) error {
	var r io.Reader = &drainReader{ctx: ctx, file: spool}
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		r = inflate.NewReader(r)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return fmt.Errorf("%w: zstd: %w", ErrFormat, err)
		}
		defer z.Close()
		r = z
	}
	b := bufio.NewReaderSize(t.Charge(r), 64<<10)
	head, err := b.Peek(tarMagic + 5)
	switch {
	case err != nil && err != io.EOF:
		return fmt.Errorf("%w: %w", ErrFormat, err)
	case err != nil || string(head[tarMagic:]) != "ustar":
		return fmt.Errorf("%w: it is no zip, tar, tar.gz or tar.zst; leave out decompress to have it as a file", ErrFormat)
	}
	if err := t.Tar(b); err != nil {
		return err
	}
	// To the end, so that what is compressed is known to be whole.
	if _, err := io.Copy(io.Discard, b); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx  context.Context
	file *os.File
}

func (c contextReader) ReadAt(b []byte, off int64) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.file.ReadAt(b, off)
}

// drainReader reads a spool from its start and gives back what it has read: in a tmpfs the archive shrinks as its files grow.
type drainReader struct {
	ctx         context.Context
	file        *os.File
	off, freed  int64
	keepForever bool // the file system cannot punch holes
}

func (d *drainReader) Read(b []byte) (int, error) {
	n, err := contextReader{d.ctx, d.file}.ReadAt(b, d.off)
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
