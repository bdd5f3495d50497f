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
	SaltName     = "salt" // 32 random bytes, the first member: without them the tar's digest tells nobody what is in it
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

// ErrEntry is in the chain of WriteTar's error when the tree has something that no result can hold. Nothing was written then.
var ErrEntry = errors.New("is not for a result")

// File is a member of a result that PID 1 itself provides.
type File struct {
	Name string
	Data []byte
}

// A Tree is a workload's results: the files below Dir, which are in the tar below ResultsDir. Its zero value has none.
type Tree struct {
	Dir     string
	Limit   int64 // bytes that all of it may take; each entry counts 512 on top of its size
	Consume bool  // each file is removed as it is written, so that memory never holds it twice
}

// WriteTar writes a salt, the tree and extra, as a tar that depends on those alone: sorted, mtime 0, uid and gid 0, mode 0755
// or 0644. The tree is a workload's: it is opened through os.Root, so that no link leads out; links are written as links;
// sockets, pipes and devices are errors. All of it is measured before the first byte is written. It must not change
// meanwhile, and what a consumed tree has lost when there is an error is lost.
func WriteTar(w io.Writer, salt [32]byte, results Tree, extra []File) error {
	var list lister
	var root *os.Root
	if results.Dir != "" {
		var err error
		if root, err = os.OpenRoot(results.Dir); err != nil {
			return fmt.Errorf("results: %w", err)
		}
		defer root.Close()
		list.root, list.limit = root, results.Limit
		if err := list.dir("."); err != nil {
			return fmt.Errorf("results: %w", err)
		}
	}
	t := tar.NewWriter(w)
	if err := writeFile(t, File{SaltName, salt[:]}); err != nil {
		return err
	}
	if root != nil {
		if err := t.WriteHeader(header(ResultsDir+"/", tar.TypeDir, 0o755)); err != nil {
			return fmt.Errorf("results: %w", err)
		}
	}
	for _, e := range list.entries {
		if err := e.write(t, root, results.Consume); err != nil {
			return fmt.Errorf("results: %w", err)
		}
	}
	for _, f := range slices.SortedFunc(slices.Values(extra), func(a, b File) int { return cmp.Compare(a.Name, b.Name) }) {
		if err := writeFile(t, f); err != nil {
			return err
		}
	}
	return t.Close()
}

func writeFile(t *tar.Writer, f File) error {
	h := header(f.Name, tar.TypeReg, 0o644)
	h.Size = int64(len(f.Data))
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	if _, err := t.Write(f.Data); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	return nil
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
			return fmt.Errorf("%q is a socket, pipe or device (%v): it %w", e.name, e.mode.Type(), ErrEntry)
		}
		l.entries = append(l.entries, e)
		l.total += 512 + e.size
		switch {
		case len(e.name) > maxName:
			return fmt.Errorf("%.80q… %w: a path of %d bytes, at most %d", e.name, ErrEntry, len(e.name), maxName)
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

func (e entry) write(t *tar.Writer, root *os.Root, consume bool) error {
	h := header(path.Join(ResultsDir, e.name), tar.TypeReg, 0o644)
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
	how := os.O_RDONLY
	if consume {
		how = os.O_RDWR
	}
	f, err := root.OpenFile(e.name, how|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != e.size {
		return fmt.Errorf("%q changed while it was packed", e.name)
	}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", e.name, err)
	}
	var r io.Reader = f
	if st, ok := fi.Sys().(*syscall.Stat_t); consume && ok && st.Nlink == 1 {
		r = &punching{f: f} // of a file with several names the last one punches
	}
	if n, err := io.Copy(t, io.LimitReader(r, e.size)); err != nil {
		return fmt.Errorf("%q: %w", e.name, err)
	} else if n != e.size {
		return fmt.Errorf("%q changed while it was packed", e.name)
	}
	if consume {
		return root.Remove(e.name)
	}
	return nil
}

// punchEvery is how much of a file is kept at most after it was read, bytes.
const punchEvery = 1 << 20

// punching gives the memory of a file back as it is read.
type punching struct {
	f            *os.File
	read, behind int64 // bytes that were read, and those that are gone
}

func (p *punching) Read(b []byte) (int, error) {
	n, err := p.f.Read(b)
	p.read += int64(n)
	if done := p.read - p.behind; done >= punchEvery {
		conn, failed := p.f.SyscallConn()
		if failed != nil {
			return n, failed
		}
		const punchHole, keepSize = 2, 1 // <linux/falloc.h>
		conn.Control(func(fd uintptr) {
			// A file system that cannot do it takes more memory, and removes the file at its end.
			_ = syscall.Fallocate(int(fd), punchHole|keepSize, p.behind, done)
		})
		p.behind = p.read
	}
	return n, err
}

// clean reports whether a name from a tar is a plain relative path: what WriteTar writes, and nothing else.
func clean(name string) bool {
	return name != "" && name != "." && len(name) <= maxName && !strings.ContainsRune(name, 0) &&
		!path.IsAbs(name) && path.Clean(name) == name && name != ".." && !strings.HasPrefix(name, "../")
}
