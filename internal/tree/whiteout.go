package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

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
	at, err := t.resolve(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing there to hide
	}
	if err != nil {
		return err
	}
	if base == opaque {
		return t.removeLowerIn(at)
	}
	return t.removeLower(path.Join(at, name))
}

// removeLower removes what was there before this layer at full, a path without links.
func (t *Tree) removeLower(full string) error {
	if _, ours := t.made[full]; !ours {
		return t.remove(full)
	}
	if fi, err := t.root.Lstat(full); err != nil || !fi.IsDir() {
		return err
	}
	return t.removeLowerIn(full)
}

func (t *Tree) removeLowerIn(dir string) error {
	d, err := t.root.Open(dir)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1) // bounded by Limits.Entries
	d.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := t.removeLower(path.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}

// remove removes full and all below it; a link goes, not what it points to. Cached
// handles may lie below it.
func (t *Tree) remove(full string) error {
	t.forget()
	return t.root.RemoveAll(full)
}

// note records that this layer made full, and so holds its parents.
func (t *Tree) note(full string) {
	for full != "." {
		if _, known := t.made[full]; known {
			return
		}
		t.made[full] = struct{}{}
		full = path.Dir(full)
	}
}
