package result

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// ExtractTar unpacks a result into dir, which must be new or empty, and reads r to its end, because only there is a
// sealed result known to be whole. Names that are absolute or lead upwards, anything but files, directories and
// links, and names that come twice end it with an error, and what was unpacked is removed again; so do more than
// limit bytes of files. A workload may have made links that lead out of the tree: those are left out, named in the
// error, and the rest stays.
func ExtractTar(r io.Reader, dir string, limit int64) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("unpack the result: %w", err)
	}
	if there, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("unpack the result: %w", err)
	} else if len(there) > 0 {
		return fmt.Errorf("unpack the result: %s is not empty; name another directory", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack the result: %w", err)
	}
	defer root.Close()
	x := extractor{root: root, left: limit, limit: limit}
	if err := x.all(r); err != nil {
		err = fmt.Errorf("unpack the result: %w", err)
		return errors.Join(err, x.undo())
	}
	return x.makeLinks()
}

type extractor struct {
	root        *os.Root
	left, limit int64
	entries     int
	top         []string // what to remove after an error
	links       []*tar.Header
}

func (x *extractor) all(r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if x.entries++; x.entries > maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		if err := x.entry(h, t); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
	return drain(r)
}

// drain reads what follows the end of the tar: zeros, up to 1 MiB of them.
func drain(r io.Reader) error {
	b := make([]byte, 4096)
	for total := 0; total <= 1<<20; {
		n, err := r.Read(b)
		if len(bytes.Trim(b[:n], "\x00")) > 0 {
			return errors.New("bytes after the end of the tar")
		}
		if total += n; err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
	return errors.New("more than 1 MiB of zeros after the end of the tar")
}

func (x *extractor) entry(h *tar.Header, body io.Reader) error {
	name := h.Name
	if h.Typeflag == tar.TypeDir {
		name = strings.TrimSuffix(name, "/")
	}
	if !clean(name) {
		return errors.New("is not a plain relative path")
	}
	if first, _, _ := strings.Cut(name, "/"); len(x.top) == 0 || x.top[len(x.top)-1] != first {
		x.top = append(x.top, first)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if name == path.Base(name) {
			return x.root.Mkdir(name, 0o755)
		}
		return x.root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		return x.file(name, h, body)
	case tar.TypeSymlink:
		// Made at the end, so that no file is ever written through a link.
		x.links = append(x.links, h)
		return nil
	}
	return fmt.Errorf("is of type %q; want files, directories and links", h.Typeflag)
}

func (x *extractor) file(name string, h *tar.Header, body io.Reader) error {
	if x.left -= h.Size; x.left < 0 {
		return fmt.Errorf("%w of %d bytes", ErrLimit, x.limit)
	}
	if d := path.Dir(name); d != "." {
		if err := x.root.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	mode := os.FileMode(0o644)
	if h.Mode&0o111 != 0 {
		mode = 0o755
	}
	f, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, body); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// makeLinks makes the links, after every directory that one of them lies in: so all of those are real directories,
// which is what inside relies on.
func (x *extractor) makeLinks() error {
	var errs []error
	for _, h := range x.links {
		if d := path.Dir(h.Name); d != "." {
			if err := x.root.MkdirAll(d, 0o755); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, h := range x.links {
		if !inside(h.Name, h.Linkname) {
			errs = append(errs, fmt.Errorf("%.200q was left out: a link to %.200q may lead out of the result", h.Name, h.Linkname))
		} else if err := x.root.Symlink(h.Linkname, h.Name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// inside reports whether a link at name to target stays within the tree whatever other links do. It may go up only
// at its start, where the directories above name are real ones; "there/../.." could go through a link to anywhere.
func inside(name, target string) bool {
	if target == "" || len(target) > maxName || path.IsAbs(target) {
		return false
	}
	depth, down := strings.Count(name, "/"), false
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == ".." && (down || depth == 0):
			return false
		case part == "..":
			depth--
		case part != "." && part != "":
			down = true
		}
	}
	return true
}

func (x *extractor) undo() error {
	var errs []error
	for _, name := range x.top {
		errs = append(errs, x.root.RemoveAll(name))
	}
	return errors.Join(errs...)
}
