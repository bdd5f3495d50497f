package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// layered is what a tree knows of the layer at hand, because whiteouts apply to lower layers only. Paths are kept as hashes: an image may
// have a million. The seed is random, so nobody can choose two that collide; that it happens among a million has odds of 1 to 30 million,
// and a whiteout may then spare a file.
type layered struct {
	seed  maphash.Seed
	used  bool // something has been unpacked
	lower bool // there are lower layers
	// made are paths that this layer made in directories of lower ones, or went through; all of them have their parents here, too.
	made hashes
	// wholly are directories in which nothing is from lower layers.
	wholly hashes
}

// begin begins a layer.
func (t *Tree) begin() error {
	t.lower, t.used = t.used, true
	t.made, t.wholly = hashes{}, hashes{}
	return t.forget()
}

func (l *layered) hash(full string) uint64 { return maphash.String(l.seed, full) }

func (l *layered) isMade(full string) bool { return l.made.has(l.hash(full)) }

func (l *layered) whole(dir string) bool { return !l.lower || l.wholly.has(l.hash(dir)) }

func (l *layered) noteWhole(dir string) {
	if l.lower {
		l.wholly.add(l.hash(dir))
	}
}

// note records that this layer made full, and so holds its parents.
func (l *layered) note(full string) {
	if !l.lower {
		return
	}
	for full != "." && l.made.add(l.hash(full)) {
		full = path.Dir(full)
	}
}

// whiteout hides what lower layers have: one name, or all of dir. The name behind the
// prefix is checked like any other: ".wh..." must not mean the parent directory.
func (t *Tree) whiteout(h *tar.Header, dir, base string) error {
	if h.Typeflag != tar.TypeReg {
		return fmt.Errorf("%w: a whiteout that is not a plain file", ErrUnsafe)
	}
	name := strings.TrimPrefix(base, whiteout)
	if base != opaque && (name == "" || name == "." || name == ".." || strings.HasPrefix(name, whiteout)) {
		return fmt.Errorf("%w: a whiteout of no proper name", ErrUnsafe)
	}
	f, err := t.parent(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing there to hide
	}
	if err != nil || f.ours {
		return err
	}
	f.stale = true
	if base == opaque {
		err = t.empty(f.fd, f.at, t.removeLower)
		t.noteWhole(f.at)
		f.ours = true
		return err
	}
	return t.removeLower(f, name)
}

// removeLower removes what was there before this layer.
func (t *Tree) removeLower(f *folder, base string) error {
	full := path.Join(f.at, base)
	if !t.isMade(full) {
		return t.remove(f, base)
	}
	if t.whole(full) {
		return nil
	}
	fd, err := openIn(f.fd, base)
	switch err {
	case nil:
		defer unix.Close(fd)
		t.noteWhole(full) // done once: no archive can make it cost more than there is
		return t.empty(fd, full, t.removeLower)
	case unix.ENOTDIR, unix.ENOENT:
		return nil
	}
	return os.NewSyscallError("openat", err)
}

// empty removes what is in a directory, each by remove, and leaves its time as it was.
func (t *Tree) empty(fd int, at string, remove func(*folder, string) error) error {
	was, err := timesOf(fd)
	if err != nil {
		return err
	}
	again, err := openIn(fd, ".") // with an offset of its own
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	d := os.NewFile(uintptr(again), at)
	defer d.Close()
	f := &folder{fd: fd, at: at, touched: true}
	for {
		names, err := d.Readdirnames(1000)
		for _, n := range names {
			if err := remove(f, n); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	return setTimes(fd, "", was)
}

// remove removes base and all below it; a link goes, not what it points to. No handle is below it.
func (t *Tree) remove(f *folder, base string) error {
	if err := f.touch(); err != nil {
		return err
	}
	switch err := unix.Unlinkat(f.fd, base, 0); err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR:
	default:
		return os.NewSyscallError("unlinkat", err)
	}
	fd, err := openIn(f.fd, base)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	defer unix.Close(fd)
	if err := t.empty(fd, path.Join(f.at, base), t.remove); err != nil {
		return err
	}
	return os.NewSyscallError("unlinkat", unix.Unlinkat(f.fd, base, unix.AT_REMOVEDIR))
}
