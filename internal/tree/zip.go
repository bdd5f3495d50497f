package tree

import (
	"archive/tar"
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// maxDirectory bounds what a zip's central directory takes, bytes: it is held in memory, about fourfold. It has room for some 80,000 files.
const maxDirectory = 8 << 20

// Zip unpacks an archive (PKWARE APPNOTE 6.3.10, with zip64), which must be all of r, over what is there: stored and deflated files,
// directories, and symbolic links that stay inside the tree. The central directory says what the files are, their CRC-32 is verified.
// Encrypted entries are refused, and names that are there already, said twice, or have backslashes, and data that entries share.
func (t *Tree) Zip(r io.ReaderAt, size int64) error {
	guard := &directoryReader{r: r, left: maxDirectory + 128<<10} // beside the search for its end
	z, err := zip.NewReader(guard, size)
	if guard.left < 0 {
		return fmt.Errorf("%w: the zip's directory has over %d bytes", ErrTooBig, maxDirectory)
	}
	if err != nil {
		return fmt.Errorf("%w: zip: %w", ErrFormat, err)
	}
	guard.left = size + maxDirectory
	said := map[string]bool{}
	for _, f := range z.File {
		if t.budget.entries--; t.budget.entries < 0 {
			return fmt.Errorf("%w: there are more than %d archive entries", ErrTooBig, t.lim.Entries)
		}
		if err := t.zipped(f, said, &size); err != nil {
			return fmt.Errorf("entry %.300q: %w", f.Name, err)
		}
	}
	return nil
}

// directoryReader stops whoever reads far more than a directory should have.
type directoryReader struct {
	r    io.ReaderAt
	left int64
}

func (d *directoryReader) ReadAt(b []byte, off int64) (int, error) {
	if d.left -= int64(len(b)); d.left < 0 {
		return 0, errors.New("too many bytes")
	}
	return d.r.ReadAt(b, off)
}

func (t *Tree) zipped(f *zip.File, said map[string]bool, left *int64) error {
	const encrypted = 1 | 1<<6 | 1<<13
	switch {
	case f.Flags&encrypted != 0:
		return fmt.Errorf("%w: it is encrypted, which zip does too weakly; encrypt the archive as a whole", ErrUnsafe)
	case strings.Contains(f.Name, `\`):
		return fmt.Errorf("%w: a backslash in a name", ErrUnsafe)
	case f.Method != zip.Store && f.Method != zip.Deflate:
		return fmt.Errorf("%w: method %d; stored and deflated entries are unpacked", ErrFormat, f.Method)
	case f.CompressedSize64 > uint64(*left):
		return fmt.Errorf("%w: the entries have more data than the archive", ErrUnsafe)
	case f.UncompressedSize64 > uint64(t.lim.Bytes):
		return fmt.Errorf("%w: it has %d bytes, at most %d are unpacked", ErrTooBig, f.UncompressedSize64, t.lim.Bytes)
	}
	*left -= int64(f.CompressedSize64)
	name := path.Clean("/" + f.Name)
	if said[name] {
		return fmt.Errorf("%w: the archive has it twice", ErrUnsafe)
	}
	said[name] = true

	h := &tar.Header{Name: f.Name, Size: int64(f.UncompressedSize64), Mode: zipMode(f), ModTime: f.Modified}
	src, err := f.Open()
	if err != nil {
		return fmt.Errorf("%w: zip: %w", ErrFormat, err)
	}
	defer src.Close()
	switch m := f.Mode(); m.Type() {
	case 0:
		h.Typeflag = tar.TypeReg
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		if h.Size > int64(t.lim.Name) {
			return fmt.Errorf("%w: symbolic link to a name of %d bytes", ErrTooBig, h.Size)
		}
		to, err := io.ReadAll(src)
		if err != nil {
			return fmt.Errorf("%w: zip: %w", ErrFormat, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(to)
	default:
		return fmt.Errorf("%w: it is %v; device nodes, FIFOs and sockets are not unpacked", ErrUnsafe, m)
	}
	return t.once(h, formatReader{src})
}

// formatReader tells what is wrong with an archive from what is wrong with the disk.
type formatReader struct{ r io.Reader }

func (f formatReader) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: zip: %w", ErrFormat, err)
	}
	return n, err
}

// zipMode is the permissions of an entry. Those who have no idea of them say none, or let all write.
func zipMode(f *zip.File) int64 {
	const unix, macOS = 3, 19
	m := f.Mode().Perm()
	if by := f.CreatorVersion >> 8; by == unix || by == macOS {
		if m != 0 {
			return int64(m)
		}
		m = 0o666
		if f.Mode().IsDir() {
			m = 0o777
		}
	}
	return int64(m &^ 0o022)
}

// staysInside says whether a link in the directory at, a path without links, leads to a place in the tree: it is relative, and climbs only
// at its start and at most to the root. What it meets behind that are links that do as well.
func staysInside(at, target string) bool {
	if path.IsAbs(target) {
		return false
	}
	depth := 0
	if at != "." {
		depth = strings.Count(at, "/") + 1
	}
	climbing := true
	for p := range strings.SplitSeq(target, "/") {
		switch {
		case p == "" || p == ".":
		case p != "..":
			climbing = false
		case !climbing || depth == 0:
			return false
		default:
			depth--
		}
	}
	return true
}
