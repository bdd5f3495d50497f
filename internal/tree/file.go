package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// bufSize is how much of a file is written at a time, bytes.
const bufSize = 256 << 10

// block is how long a hole must be, bytes: what file systems give out.
const block = 4096

func (t *Tree) file(parent *folder, base string, h *tar.Header, r io.Reader) error {
	mode := uint32(h.Mode) & 0o777
	at := mode
	if t.lim.XAttrs != DropXAttrs {
		at = 0o600 // attributes need the right to write
	}
	fd, err := unix.Openat(parent.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, at)
	if err != nil {
		return there("openat", err)
	}
	err = t.fill(fd, mode, h, r)
	if cerr := unix.Close(fd); err == nil {
		err = os.NewSyscallError("close", cerr)
	}
	return err
}

func (t *Tree) fill(fd int, mode uint32, h *tar.Header, r io.Reader) error {
	if h.Size >= 0 { // otherwise it is not known before
		if err := t.contain(h.Size); err != nil {
			return err
		}
	}
	if err := t.copy(fd, r, h.Size, sparse(h)); err != nil {
		return err
	}
	if err := t.chown(fd, "", h); err != nil {
		return err
	}
	if t.lim.XAttrs != DropXAttrs {
		if err := t.setXAttrs(fd, h, false); err != nil {
			return err
		}
		if err := unix.Fchmod(fd, mode); err != nil {
			return os.NewSyscallError("fchmod", err)
		}
	} else if err := t.permit(fd, mode); err != nil {
		return err
	}
	return setTimes(fd, "", times(h))
}

// copy writes size bytes of r to a new file, or all there are if size is negative.
func (t *Tree) copy(fd int, r io.Reader, size int64, holes bool) error {
	var off int64
	for size < 0 || off < size {
		b := t.buf
		if size >= 0 {
			b = b[:min(int64(len(b)), size-off)]
		}
		n, err := readFull(r, b)
		if err != nil && err != io.EOF {
			return err
		}
		if n < len(b) && size >= 0 {
			return fmt.Errorf("%w: it ends after %d of %d bytes", ErrFormat, off+int64(n), size)
		}
		if size < 0 {
			if err := t.contain(int64(n)); err != nil {
				return err
			}
		}
		if err := write(fd, b[:n], off, holes); err != nil {
			return os.NewSyscallError("write", err)
		}
		off += int64(n)
		if err != nil {
			break
		}
	}
	if holes {
		return os.NewSyscallError("ftruncate", unix.Ftruncate(fd, off))
	}
	return nil
}

// readFull reads until b is full or r fails. Unlike io.ReadFull it passes on r's own error: a stream cut short is no stream that ends.
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// write writes b at off, or what of it is not zeros.
func write(fd int, b []byte, off int64, holes bool) error {
	for len(b) > 0 {
		piece := b
		if holes {
			n := run(b)
			if piece = b[:n]; bytes.Equal(piece, zeros[:n]) {
				b, off = b[n:], off+int64(n)
				continue
			}
		}
		n, err := unix.Pwrite(fd, piece, off)
		if err != nil && err != unix.EINTR {
			return err
		}
		b, off = b[max(n, 0):], off+int64(max(n, 0))
	}
	return nil
}

var zeros [block]byte

// run is how far b goes on as it begins: at most a block of zeros, or blocks that are none.
func run(b []byte) int {
	n := 0
	for n < len(b) {
		end := min(n+block, len(b))
		if bytes.Equal(b[n:end], zeros[:end-n]) {
			if n == 0 {
				return end
			}
			break
		}
		n = end
	}
	return n
}

// sparse says whether an entry has holes by any of the forms: old GNU's, and PAX 0.0 to 1.0.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// XAttrs says which extended attributes of an archive are kept (PAX records SCHILY.xattr.*).
type XAttrs int

const (
	// DropXAttrs keeps none. Those that matter to the kernel are authority that an image must not give: file capabilities
	// (security.capability), labels (security.*), ACLs (system.*), overlay's (trusted.*). A workload has no use for them, for it runs with
	// no_new_privs.
	DropXAttrs XAttrs = iota
	// UserXAttrs keeps those of files and directories in the user.* namespace, and still drops all others. A file system without them is
	// an error: tmpfs has them since Linux 6.6.
	UserXAttrs
)

// setXAttrs sets those of an entry. old says that there may be some of a lower layer.
func (t *Tree) setXAttrs(fd int, h *tar.Header, old bool) error {
	if t.lim.XAttrs != UserXAttrs {
		return nil
	}
	if old {
		if err := t.clearXAttrs(fd); err != nil {
			return err
		}
	}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || !strings.HasPrefix(name, "user.") {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(v), 0); err != nil {
			return fmt.Errorf("set extended attribute %.100q of %d bytes: %w", name, len(v), err)
		}
	}
	return nil
}

func (t *Tree) clearXAttrs(fd int) error {
	n, err := unix.Flistxattr(fd, t.buf[:64<<10]) // the kernel's limit
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("flistxattr", err)
	}
	for name := range strings.SplitSeq(string(t.buf[:n]), "\x00") {
		if strings.HasPrefix(name, "user.") {
			if err := unix.Fremovexattr(fd, name); err != nil {
				return os.NewSyscallError("fremovexattr", err)
			}
		}
	}
	return nil
}
