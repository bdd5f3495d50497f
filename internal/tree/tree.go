// Package tree unpacks archives of strangers to a directory, and to nothing outside of it.
//
// A [Tree] takes archives one over the other, as the layers of an image are. Paths resolve inside it as they would after chroot. Device
// nodes, FIFOs and sockets are refused, setuid and setgid are cleared, extended attributes are dropped or kept by policy, and everything is
// bounded: entries, bytes, names, depth, and how much comes of how little. What is there may be used only after Seal, and after whoever
// gave the bytes has said that they were the right ones: the tree cannot know. It needs Linux 5.8 or newer.
//
// The memory that a tree takes does not depend on what the archives hold, but for 11 to 21 bytes per entry that a layer puts into
// directories of lower ones, and per entry of a zip.
package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What was wrong with an archive.
var (
	ErrFormat = errors.New("malformed")
	ErrUnsafe = errors.New("unsafe archive entry")
	ErrTooBig = errors.New("over the limit")
)

// A Tree is a root file system in the making. Everything is done to a name without a slash in a directory that is open ([folder]), and
// directories are opened without following a link: parents that are links are resolved here, inside the tree, as they would be after chroot
// (an absolute link starts at the tree's root, and ".." stops there). So a Debian /lib → usr/lib works.
type Tree struct {
	top    *folder
	lim    Limits
	budget budget
	buf    []byte

	topMode uint32 // kept back until Seal: nobody else looks into what is not sealed
	// later are modes that would lock out an owner who is not root. Root has none, whatever the archives say.
	later      map[string]uint32
	privileged bool
	// sure are permissions that have been seen to survive the umask.
	sure uint32

	layered
	last *folder // the parent of the last entry: archives list a directory's files together
}

// Open makes a tree of dir, which must exist and be empty. Until Seal it is open to the caller only.
func Open(dir string, lim Limits) (*Tree, error) {
	fd, err := unix.Open(dir, openDir, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	lim = lim.withDefaults()
	t := &Tree{
		top:        &folder{fd: fd, at: "."},
		lim:        lim,
		budget:     budget{bytes: lim.Bytes, content: lim.Bytes, entries: lim.Entries},
		buf:        make([]byte, bufSize),
		topMode:    0o755,
		later:      map[string]uint32{},
		privileged: os.Geteuid() == 0,
		layered:    layered{seed: maphash.MakeSeed()},
	}
	if err := unix.Fchmod(fd, 0o700); err != nil { // without the setgid bit, too, which directories would inherit
		t.Close()
		return nil, &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	return t, nil
}

// Close lets go of the directory.
func (t *Tree) Close() {
	t.forget()
	unix.Close(t.top.fd)
}

// Seal gives directories the modes that were in the way, the deepest first: a parent may forbid what its children still need.
func (t *Tree) Seal() error {
	if err := t.forget(); err != nil {
		return err
	}
	for _, p := range slices.Backward(slices.Sorted(maps.Keys(t.later))) {
		f, err := t.open(p, false)
		if err != nil {
			continue // replaced or whited out since
		}
		if f.at == p { // and not what a link has in its place
			err = unix.Fchmod(f.fd, t.later[p])
		}
		unix.Close(f.fd)
		if err != nil {
			return os.NewSyscallError("fchmod", err)
		}
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(t.top.fd, t.topMode))
}

// Tar unpacks an archive, one layer, over what is there: whiteouts hide what earlier ones left. Ustar, PAX and GNU archives are read, sparse
// files of all their forms included. r should be [Tree.Charge]d; it is read up to the archive's end and no further.
func (t *Tree) Tar(r io.Reader) error {
	if err := t.begin(); err != nil {
		return err
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return t.forget()
		}
		if err != nil {
			return fmt.Errorf("%w: tar: %w", ErrFormat, err)
		}
		if err := t.enter(); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := t.put(h, tr, true); err != nil {
			return fmt.Errorf("entry %.300q: %w", h.Name, err)
		}
	}
}

// File puts one file into the tree, by the rules for an archive's, with all that r has. A name that is there already is refused
// (fs.ErrExist). mode keeps its permissions, parents are made. A zero mtime is now.
func (t *Tree) File(name string, mode fs.FileMode, mtime time.Time, r io.Reader) error {
	t.used, t.lower = true, false
	if mtime.IsZero() {
		mtime = time.Now()
	}
	err := t.enter()
	if err == nil {
		err = t.put(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(mode.Perm()), ModTime: mtime, Size: -1}, r, false)
	}
	if err != nil {
		return fmt.Errorf("file %.300q: %w", name, err)
	}
	return nil
}

// put makes what h says. A layer's entries replace what is there, and may be whiteouts; others do neither, and their links stay inside.
func (t *Tree) put(h *tar.Header, r io.Reader, layer bool) error {
	parts, err := t.split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is not a directory", ErrUnsafe)
		}
		return t.rootMeta(h)
	}
	dir, base := strings.Join(parts[:len(parts)-1], "/"), parts[len(parts)-1]
	if layer {
		if strings.HasPrefix(dir, whiteout) || strings.Contains(dir, "/"+whiteout) {
			return fmt.Errorf("%w: a directory has a whiteout's name", ErrUnsafe)
		}
		if strings.HasPrefix(base, whiteout) {
			return t.whiteout(h, dir, base)
		}
	}
	parent, err := t.parent(dir, true)
	if err != nil {
		return err
	}
	if err := parent.touch(); err != nil {
		return err
	}
	err = t.make(parent, base, h, r, layer)
	if errors.Is(err, errThere) {
		if !layer {
			return fmt.Errorf("%w: %w", ErrUnsafe, fs.ErrExist)
		}
		parent.stale = true
		if err := t.remove(parent, base); err != nil {
			return err
		}
		err = t.make(parent, base, h, r, layer)
	}
	if err != nil {
		return err
	}
	if parent.ours {
		t.note(parent.at)
	} else {
		t.note(path.Join(parent.at, base))
	}
	return nil
}

// errThere says that something of another kind has the name. Nothing has been made then.
var errThere = errors.New("there is something of this name")

// there is err, or errThere if that is what it means.
func there(op string, err error) error {
	if err == unix.EEXIST {
		return errThere
	}
	return os.NewSyscallError(op, err)
}

func (t *Tree) make(parent *folder, base string, h *tar.Header, r io.Reader, layer bool) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return t.directory(parent, base, h)
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.file(parent, base, h, r)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > t.lim.Name || strings.ContainsRune(h.Linkname, 0) {
			return fmt.Errorf("%w: symbolic link to a name of %d bytes", ErrUnsafe, len(h.Linkname))
		}
		if !layer && !staysInside(parent.at, h.Linkname) {
			return fmt.Errorf("%w: symbolic link to %.300q, outside the archive", ErrUnsafe, h.Linkname)
		}
		if err := unix.Symlinkat(h.Linkname, parent.fd, base); err != nil {
			return there("symlinkat", err)
		}
		if err := t.chown(parent.fd, base, h); err != nil {
			return err
		}
		return setTimes(parent.fd, base, times(h))
	case tar.TypeLink:
		return t.hardLink(parent, base, h.Linkname)
	}
	return fmt.Errorf("%w: type %q; device nodes, FIFOs and sockets are not unpacked", ErrUnsafe, h.Typeflag)
}

// hardLink links base to a file or symbolic link that is in the tree already, of this layer or a lower one.
func (t *Tree) hardLink(parent *folder, base, name string) error {
	parts, err := t.split(name)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", name, err)
	}
	if len(parts) == 0 {
		return fmt.Errorf("%w: hard link to the root", ErrUnsafe)
	}
	dir, target := strings.Join(parts[:len(parts)-1], "/"), parts[len(parts)-1]
	from := parent
	if parent.name != dir {
		if from, err = t.open(dir, false); err != nil {
			return fmt.Errorf("%w: hard link to %.200q: %w", ErrUnsafe, name, err)
		}
		defer unix.Close(from.fd)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from.fd, target, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%w: hard link to %.200q: %w", ErrUnsafe, name, err)
	}
	if m := st.Mode & unix.S_IFMT; m != unix.S_IFREG && m != unix.S_IFLNK {
		return fmt.Errorf("%w: hard link to %.200q, which is no file", ErrUnsafe, name)
	}
	if from.at == parent.at && target == base {
		return fmt.Errorf("%w: a hard link to itself", ErrUnsafe)
	}
	return there("linkat", unix.Linkat(from.fd, target, parent.fd, base, 0))
}

// directory makes a directory, or gives the one that is there a new mode, owner and time.
func (t *Tree) directory(parent *folder, base string, h *tar.Header) error {
	full := path.Join(parent.at, base)
	mode := uint32(h.Mode) & (0o777 | unix.S_ISVTX)
	err := unix.Mkdirat(parent.fd, base, mode|0o700)
	if err != nil && err != unix.EEXIST {
		return os.NewSyscallError("mkdirat", err)
	}
	d, operr := openIn(parent.fd, base)
	if operr == unix.ENOTDIR {
		return errThere
	}
	if operr != nil {
		return os.NewSyscallError("openat", operr)
	}
	defer unix.Close(d)
	if err == nil {
		t.noteWhole(full)
	}
	return t.meta(d, full, mode, h)
}

func (t *Tree) rootMeta(h *tar.Header) error {
	if err := t.forget(); err != nil {
		return err
	}
	t.topMode = uint32(h.Mode) & (0o777 | unix.S_ISVTX)
	return t.meta(t.top.fd, ".", 0o700, h)
}

func (t *Tree) meta(fd int, full string, mode uint32, h *tar.Header) error {
	if err := t.chown(fd, "", h); err != nil {
		return err
	}
	delete(t.later, full)
	if !t.privileged && mode&0o700 != 0o700 {
		t.later[full] = mode
		mode |= 0o700
	}
	if err := t.setXAttrs(fd, h, true); err != nil {
		return err
	}
	if err := os.NewSyscallError("fchmod", unix.Fchmod(fd, mode)); err != nil {
		return err
	}
	return setTimes(fd, "", times(h))
}

// chown sets the owner of base in the directory fd, or of fd itself.
func (t *Tree) chown(fd int, base string, h *tar.Header) error {
	if !t.lim.Chown {
		return nil
	}
	// The last number is chown's "leave it".
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d", ErrUnsafe, h.Uid, h.Gid)
	}
	return os.NewSyscallError("fchownat", unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH))
}

// times are access and modification time. The epoch stands in for what a file system may refuse.
func times(h *tar.Header) [2]unix.Timespec {
	var ts unix.Timespec
	if s := h.ModTime.Unix(); s >= 0 && s <= math.MaxUint32 {
		ts = unix.Timespec{Sec: s, Nsec: int64(h.ModTime.Nanosecond())}
	}
	return [2]unix.Timespec{ts, ts}
}

// setTimes sets those of base in the directory fd, or of fd itself.
func setTimes(fd int, base string, ts [2]unix.Timespec) error {
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH))
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
