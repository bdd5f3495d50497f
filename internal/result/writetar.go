package result

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Where things are in a result. ResultsDir holds the workload's own output.
const (
	ResultsDir   = "results"
	StdoutName   = "log/stdout"
	StderrName   = "log/stderr"
	BootLogName  = "log/boot.txt" // the private log, with error texts
	TimelineName = "timeline.ndjson"
)

// Bounds of a result, so that a workload cannot make PID 1 run out of memory while it lists the tree.
const (
	maxEntries = 1 << 18 // files, directories and links
	maxName    = 4096    // bytes of a path, and of a link's target
)

// ErrLimit is in the chain of WriteTar's error when the tree does not fit. Nothing was written then.
var ErrLimit = errors.New("over the limit")

// File is a member of a result that PID 1 itself provides.
type File struct {
	Name string
	Data []byte
}

// WriteTar writes the tree dir under prefix, then extra, as a tar that depends on names and contents alone: sorted,
// mtime 0, uid and gid 0, mode 0755 or 0644. An empty dir means extra alone. The tree is a workload's: it is opened
// through os.Root, so that no link leads out; links are written as links; sockets, pipes and devices are errors.
// The whole of dir may take up to limit bytes (each entry counts 512 on top) and is measured before the first
// byte is written. The tree must not change meanwhile.
func WriteTar(w io.Writer, dir, prefix string, limit int64, extra []File) error {
	t := tar.NewWriter(w)
	if dir != "" {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return fmt.Errorf("results: %w", err)
		}
		defer root.Close()
		list := lister{root: root, limit: limit}
		if err := list.dir("."); err != nil {
			return fmt.Errorf("results: %w", err)
		}
		if err := t.WriteHeader(header(prefix+"/", tar.TypeDir, 0o755)); err != nil {
			return fmt.Errorf("results: %w", err)
		}
		for _, e := range list.entries {
			if err := e.write(t, root, prefix); err != nil {
				return fmt.Errorf("results: %w", err)
			}
		}
	}
	sorted := slices.SortedFunc(slices.Values(extra), func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	for _, f := range sorted {
		h := header(f.Name, tar.TypeReg, 0o644)
		h.Size = int64(len(f.Data))
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if _, err := t.Write(f.Data); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return t.Close()
}

func header(name string, kind byte, mode int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: kind, Mode: mode, ModTime: time.Unix(0, 0)}
}

// entry is one file, directory or link of the tree.
type entry struct {
	name   string // relative to the root
	mode   fs.FileMode
	size   int64
	target string
}

// lister measures a tree in the order in which it is written: parents first, siblings by name.
type lister struct {
	root    *os.Root
	limit   int64
	total   int64
	entries []entry
}

func (l *lister) dir(name string) error {
	f, err := l.root.Open(name)
	if err != nil {
		return err
	}
	// At most one entry more than there may be: a directory of millions must not fill the memory.
	names, err := f.Readdirnames(maxEntries + 1 - len(l.entries))
	f.Close()
	if err != nil && err != io.EOF {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		e := entry{name: path.Join(name, n)}
		fi, err := l.root.Lstat(e.name)
		if err != nil {
			return err
		}
		e.mode = fi.Mode()
		switch e.mode.Type() {
		case 0:
			e.size = fi.Size()
		case fs.ModeDir:
		case fs.ModeSymlink:
			if e.target, err = l.root.Readlink(e.name); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%q is a socket, pipe or device (%v)", e.name, e.mode.Type())
		}
		l.entries = append(l.entries, e)
		l.total += 512 + e.size
		switch {
		case len(e.name) > maxName:
			return fmt.Errorf("%.80q…: a path of %d bytes, at most %d", e.name, len(e.name), maxName)
		case len(l.entries) > maxEntries:
			return fmt.Errorf("%w of %d files", ErrLimit, maxEntries)
		case l.total > l.limit || l.total < 0:
			return fmt.Errorf("%w of %d bytes (results.limit_bytes in the manifest) at %q", ErrLimit, l.limit, e.name)
		}
		if e.mode.IsDir() {
			if err := l.dir(e.name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e entry) write(t *tar.Writer, root *os.Root, prefix string) error {
	h := header(path.Join(prefix, e.name), tar.TypeReg, 0o644)
	switch {
	case e.mode.IsDir():
		h.Name, h.Typeflag, h.Mode = h.Name+"/", tar.TypeDir, 0o755
		return t.WriteHeader(h)
	case e.mode.Type() == fs.ModeSymlink:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.target, 0o777
		return t.WriteHeader(h)
	case e.mode&0o111 != 0:
		h.Mode = 0o755
	}
	h.Size = e.size
	// Neither a link nor a pipe can be here unless the tree changed; then fail rather than hang or go elsewhere.
	f, err := root.OpenFile(e.name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return err
	} else if !fi.Mode().IsRegular() || fi.Size() != e.size {
		return fmt.Errorf("%q changed while it was packed", e.name)
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", e.name, err)
	}
	if n, err := io.Copy(t, io.LimitReader(f, e.size)); err != nil {
		return fmt.Errorf("%q: %w", e.name, err)
	} else if n != e.size {
		return fmt.Errorf("%q changed while it was packed", e.name)
	}
	return nil
}

// clean reports whether a name from a tar is a plain relative path: what WriteTar writes, and nothing else.
func clean(name string) bool {
	return name != "" && name != "." && len(name) <= maxName && !strings.ContainsRune(name, 0) &&
		!path.IsAbs(name) && path.Clean(name) == name && name != ".." && !strings.HasPrefix(name, "../")
}
