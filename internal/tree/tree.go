// Package tree unpacks archives of strangers to a directory, and to nothing outside of it.
//
// A [Tree] takes archives one over the other, as the layers of an image are. Paths resolve inside it as they would after chroot, device
// nodes and the like are refused, setuid is cleared, and everything is bounded: entries, bytes, names, depth. What is there may be used
// only after Seal, and after whoever gave the bytes has said that they were the right ones: the tree cannot know.
package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// What was wrong with an archive.
var (
	ErrFormat = errors.New("malformed")
	ErrUnsafe = errors.New("unsafe archive entry")
	ErrTooBig = errors.New("over the limit")
)

// Limits bound what one tree may hold. Zero fields take the defaults.
type Limits struct {
	Bytes   int64 // uncompressed bytes of all archives, and of all files; default 64 GiB
	Entries int   // archive entries of all archives; default 1 Mi
	Name    int   // bytes of a path; default 4096
	Depth   int   // components of a path; default 128
	Chown   bool  // keep the archive's owners; needs root. Otherwise all is the caller's
}

func (l Limits) withDefaults() Limits {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	if l.Bytes <= 0 {
		l.Bytes = 64 << 30
	}
	set(&l.Entries, 1<<20)
	set(&l.Name, 4096)
	set(&l.Depth, 128)
	return l
}

// budget is what may still be unpacked.
type budget struct {
	bytes   int64 // of uncompressed archive
	content int64 // of files; sparse ones are larger than their archive
	entries int
}

// bufSize is how much of a file is written at a time, bytes.
const bufSize = 256 << 10

const maxLinks = 40 // symbolic links followed in one path, as the kernel has it

// A Tree is a root file system in the making. All operations go through an [os.Root], and
// on paths that hold no symbolic link: parents that are links are resolved here, inside
// the tree, as they would be after chroot (an absolute link starts at the tree's root, and
// ".." stops there). So a Debian /lib → usr/lib works, and os.Root refuses whatever this
// resolver might get wrong.
type Tree struct {
	root   *os.Root
	lim    Limits
	budget budget
	buf    []byte

	// made holds what the current layer made, "a/b/c" with all parents, because
	// whiteouts apply to lower layers only.
	made map[string]struct{}
	// dirs are modes and times of directories, set at the end: a directory that is
	// read-only, or gets files later, keeps what its entry said.
	dirs map[string]dirMeta

	// The parent of the last entry: archives list a directory's files together.
	lastName, lastPath string
	last               *os.Root
}

type dirMeta struct {
	mode  fs.FileMode
	mtime time.Time // zero: not said
}

// Open makes a tree of dir, which must exist and be empty.
func Open(dir string, lim Limits) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	lim = lim.withDefaults()
	return &Tree{
		root:   root,
		lim:    lim,
		budget: budget{lim.Bytes, lim.Bytes, lim.Entries},
		buf:    make([]byte, bufSize),
		dirs:   map[string]dirMeta{".": {mode: 0o755}},
	}, nil
}

// Close lets go of the directory.
func (t *Tree) Close() {
	t.forget()
	t.root.Close()
}

// Seal gives directories their modes and times, the deepest first: a parent may forbid
// what its children still need.
func (t *Tree) Seal() error {
	t.forget()
	for _, p := range slices.Backward(slices.Sorted(maps.Keys(t.dirs))) {
		if fi, err := t.root.Lstat(p); err != nil || !fi.IsDir() {
			continue // replaced or whited out since
		}
		m := t.dirs[p]
		if !m.mtime.IsZero() {
			if err := t.root.Chtimes(p, m.mtime, m.mtime); err != nil {
				return err
			}
		}
		if err := t.root.Chmod(p, m.mode); err != nil {
			return err
		}
	}
	return nil
}

// Charge is r with its bytes counted against the tree's limit: what an archive has behind its end, too.
func (t *Tree) Charge(r io.Reader) io.Reader { return &chargedReader{r, &t.budget} }

type chargedReader struct {
	r io.Reader
	b *budget
}

func (c *chargedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.b.bytes -= int64(n); c.b.bytes < 0 {
		return 0, fmt.Errorf("%w: it unpacks to more bytes than the limit allows", ErrTooBig)
	}
	return n, err
}

// Tar unpacks an archive, one layer, over what is there: whiteouts hide what earlier ones left. r should be [Tree.Charge]d; it is read up
// to the archive's end and no further.
func (t *Tree) Tar(r io.Reader) error {
	t.made = map[string]struct{}{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: tar: %w", ErrFormat, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if t.budget.entries--; t.budget.entries < 0 {
			return fmt.Errorf("%w: there are more than %d archive entries", ErrTooBig, t.lim.Entries)
		}
		if err := t.put(h, tr, true); err != nil {
			return fmt.Errorf("entry %.300q: %w", h.Name, err)
		}
	}
}

// File puts one file into the tree, by the rules for an archive's, with all that r has. A name that is there already is refused
// (fs.ErrExist). mode keeps its permissions, parents are made. A zero mtime is now.
func (t *Tree) File(name string, mode fs.FileMode, mtime time.Time, r io.Reader) error {
	if mtime.IsZero() {
		mtime = time.Now()
	}
	if t.budget.entries--; t.budget.entries < 0 {
		return fmt.Errorf("%w: there are more than %d files", ErrTooBig, t.lim.Entries)
	}
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(mode.Perm()), ModTime: mtime, Size: -1}
	if err := t.once(h, r); err != nil {
		return fmt.Errorf("file %.300q: %w", name, err)
	}
	return nil
}

// once puts what is no layer's: it replaces nothing.
func (t *Tree) once(h *tar.Header, r io.Reader) error {
	t.made = map[string]struct{}{}
	return t.put(h, r, false)
}

func (t *Tree) put(h *tar.Header, r io.Reader, layer bool) error {
	parts, err := t.split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is not a directory", ErrUnsafe)
		}
		return t.meta(".", h)
	}
	dir, base := strings.Join(parts[:len(parts)-1], "/"), parts[len(parts)-1]
	if layer {
		for _, p := range parts[:len(parts)-1] {
			if strings.HasPrefix(p, whiteout) {
				return fmt.Errorf("%w: a directory has a whiteout's name", ErrUnsafe)
			}
		}
		if strings.HasPrefix(base, whiteout) {
			return t.whiteout(h, dir, base)
		}
	}
	parent, at, err := t.parent(dir)
	if err != nil {
		return err
	}
	full := path.Join(at, base)

	old, err := parent.Lstat(base)
	exists := err == nil
	if exists && !(old.IsDir() && h.Typeflag == tar.TypeDir) {
		if !layer {
			return fmt.Errorf("%w: %w", ErrUnsafe, fs.ErrExist)
		}
		if h.Typeflag == tar.TypeLink {
			if target, err := t.linkTarget(h.Linkname); err == nil && target == full {
				return fmt.Errorf("%w: a hard link to itself", ErrUnsafe)
			}
		}
		if err := t.remove(full); err != nil {
			return err
		}
		if parent, _, err = t.parent(dir); err != nil {
			return err
		}
		exists = false
	}

	switch h.Typeflag {
	case tar.TypeDir:
		if !exists {
			if err := parent.Mkdir(base, 0o700); err != nil {
				return err
			}
		}
		err = t.meta(full, h)
	case tar.TypeReg, tar.TypeGNUSparse:
		err = t.file(parent, base, h, r)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > t.lim.Name || strings.ContainsRune(h.Linkname, 0) {
			return fmt.Errorf("%w: symbolic link to a name of %d bytes", ErrUnsafe, len(h.Linkname))
		}
		if !layer && !staysInside(at, h.Linkname) {
			return fmt.Errorf("%w: symbolic link to %.300q, outside the archive", ErrUnsafe, h.Linkname)
		}
		if err = parent.Symlink(h.Linkname, base); err == nil {
			err = t.chown(parent, base, h)
		}
	case tar.TypeLink:
		var target string
		if target, err = t.linkTarget(h.Linkname); err == nil {
			err = t.root.Link(target, full)
		}
	default:
		err = fmt.Errorf("%w: type %q; device nodes, FIFOs and sockets are not unpacked", ErrUnsafe, h.Typeflag)
	}
	if err != nil {
		return err
	}
	t.note(full)
	return nil
}

// split cleans an archive name to its components. A leading slash is the tree's root.
func (t *Tree) split(name string) ([]string, error) {
	if len(name) > t.lim.Name {
		return nil, fmt.Errorf("%w: a name of %d bytes, at most %d are unpacked", ErrTooBig, len(name), t.lim.Name)
	}
	if name == "" || strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("%w: empty name, or a NUL in it", ErrUnsafe)
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return nil, fmt.Errorf("%w: .. in a name", ErrUnsafe)
		case len(p) > 255:
			return nil, fmt.Errorf("%w: a name component of %d bytes", ErrTooBig, len(p))
		}
		parts = append(parts, p)
	}
	if len(parts) > t.lim.Depth {
		return nil, fmt.Errorf("%w: %d directories deep, at most %d are unpacked", ErrTooBig, len(parts), t.lim.Depth)
	}
	return parts, nil
}

// parent opens the directory that dir names, making what is missing, and says where in
// the tree it really is. The handle is valid until the next call.
func (t *Tree) parent(dir string) (*os.Root, string, error) {
	if t.last != nil && t.lastName == dir {
		return t.last, t.lastPath, nil
	}
	at, err := t.resolve(dir, true)
	if err != nil {
		return nil, "", err
	}
	r, err := t.root.OpenRoot(at)
	if err != nil {
		return nil, "", err
	}
	t.forget()
	t.last, t.lastName, t.lastPath = r, dir, at
	return r, at, nil
}

func (t *Tree) forget() {
	if t.last != nil {
		t.last.Close()
		t.last = nil
	}
}

// resolve walks dir inside the tree to a path without symbolic links. With make, missing
// directories are made; without, they are fs.ErrNotExist.
func (t *Tree) resolve(dir string, make bool) (string, error) {
	at, links := ".", 0
	todo := strings.Split(dir, "/")
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		switch p {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // of "." it is "."
			continue
		}
		next := path.Join(at, p)
		fi, err := t.root.Lstat(next)
		switch {
		case err == nil && fi.IsDir():
			at = next
		case err == nil && fi.Mode().Type() == fs.ModeSymlink:
			if links++; links > maxLinks {
				return "", fmt.Errorf("%w: over %d symbolic links on the way", ErrUnsafe, maxLinks)
			}
			target, err := t.root.Readlink(next)
			if err != nil {
				return "", err
			}
			if strings.HasPrefix(target, "/") {
				at = "."
			}
			todo = append(strings.Split(target, "/"), todo...)
			if len(todo) > 4*t.lim.Depth {
				return "", fmt.Errorf("%w: symbolic links make the path too long", ErrUnsafe)
			}
		case err == nil:
			return "", fmt.Errorf("%w: %.200q on the way is not a directory", ErrUnsafe, next)
		case !os.IsNotExist(err) || !make:
			return "", err
		default:
			if strings.Count(next, "/") >= t.lim.Depth {
				return "", fmt.Errorf("%w: symbolic links lead over %d directories deep", ErrTooBig, t.lim.Depth)
			}
			if err := t.root.Mkdir(next, 0o700); err != nil {
				return "", err
			}
			t.dirs[next] = dirMeta{mode: 0o755}
			t.note(next)
			at = next
		}
	}
	return at, nil
}

// linkTarget finds what a hard link is to: a file or symbolic link already in the tree.
func (t *Tree) linkTarget(name string) (string, error) {
	parts, err := t.split(name)
	if err != nil {
		return "", fmt.Errorf("hard link to %.200q: %w", name, err)
	}
	if len(parts) == 0 {
		return "", fmt.Errorf("%w: hard link to the root", ErrUnsafe)
	}
	at, err := t.resolve(strings.Join(parts[:len(parts)-1], "/"), false)
	if err != nil {
		return "", fmt.Errorf("%w: hard link to %.200q: %w", ErrUnsafe, name, err)
	}
	target := path.Join(at, parts[len(parts)-1])
	fi, err := t.root.Lstat(target)
	if err != nil {
		return "", fmt.Errorf("%w: hard link to %.200q: %w", ErrUnsafe, name, err)
	}
	if m := fi.Mode().Type(); m != 0 && m != fs.ModeSymlink {
		return "", fmt.Errorf("%w: hard link to %.200q, which is no file", ErrUnsafe, name)
	}
	return target, nil
}

// contain charges what files hold.
func (t *Tree) contain(n int64) error {
	if t.budget.content -= n; t.budget.content < 0 {
		return fmt.Errorf("%w: the files have more than %d bytes", ErrTooBig, t.lim.Bytes)
	}
	return nil
}

// contentReader charges a file of unknown size as it is read.
type contentReader struct {
	r io.Reader
	t *Tree
}

func (c *contentReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if over := c.t.contain(int64(n)); over != nil {
		return 0, over
	}
	return n, err
}

func (t *Tree) file(parent *os.Root, base string, h *tar.Header, r io.Reader) error {
	if h.Size < 0 { // not known
		r = &contentReader{r, t}
	} else if err := t.contain(h.Size); err != nil {
		return err
	}
	f, err := parent.OpenFile(base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// Hiding the file's ReadFrom, which would copy in far smaller pieces.
	if n, err := io.CopyBuffer(struct{ io.Writer }{f}, r, t.buf); err != nil {
		return err
	} else if h.Size >= 0 && n != h.Size {
		return fmt.Errorf("%w: %d bytes of %d", ErrFormat, n, h.Size)
	}
	if t.lim.Chown {
		uid, gid, err := owner(h)
		if err != nil {
			return err
		}
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err := f.Chmod(h.FileInfo().Mode().Perm()); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	m := mtime(h)
	return parent.Chtimes(base, m, m)
}

// meta notes a directory's mode and time for seal, and sets its owner now.
func (t *Tree) meta(full string, h *tar.Header) error {
	m := h.FileInfo().Mode()
	t.dirs[full] = dirMeta{m.Perm() | m&fs.ModeSticky, mtime(h)}
	return t.chown(t.root, full, h)
}

func (t *Tree) chown(r *os.Root, name string, h *tar.Header) error {
	if !t.lim.Chown {
		return nil
	}
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	return r.Lchown(name, uid, gid)
}

func owner(h *tar.Header) (uid, gid int, err error) {
	// The last number is chown's "leave it".
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return 0, 0, fmt.Errorf("%w: owner %d:%d", ErrUnsafe, h.Uid, h.Gid)
	}
	return h.Uid, h.Gid, nil
}

func mtime(h *tar.Header) time.Time {
	if s := h.ModTime.Unix(); s < 0 || s > math.MaxUint32 {
		return epoch
	}
	return h.ModTime
}

// epoch stands in for times that a file system may refuse.
var epoch = time.Unix(0, 0)
