package tree

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const maxLinks = 40 // symbolic links followed in one path, as the kernel has it

const openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// A folder is an open directory of the tree.
type folder struct {
	fd   int
	name string // as an archive named it
	at   string // where it is: a path from the root without symbolic links, "." for the root
	ours bool   // all that is in it is the current layer's
	// stale: something has been removed, which may be a link on the way that name took.
	stale bool

	// What is made or removed in a directory changes its time, which is not what an archive wants: it is kept, and put back.
	touched bool
	times   [2]unix.Timespec
}

// parent opens the directory that dir names, for entries to be made in, and with make those on the way that are missing. It is valid until
// the next call.
func (t *Tree) parent(dir string, make bool) (*folder, error) {
	if t.last != nil && t.last.name == dir && !t.last.stale {
		return t.last, nil
	}
	if err := t.forget(); err != nil {
		return nil, err
	}
	f, err := t.open(dir, make)
	if err != nil {
		return nil, err
	}
	f.ours = t.whole(f.at)
	t.last = f
	return f, nil
}

// touch must be called before f changes.
func (f *folder) touch() (err error) {
	if f.touched {
		return nil
	}
	if f.times, err = timesOf(f.fd); err != nil {
		return err
	}
	f.touched = true
	return nil
}

func timesOf(fd int) ([2]unix.Timespec, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return [2]unix.Timespec{st.Atim, st.Mtim}, os.NewSyscallError("fstat", err)
}

func (t *Tree) forget() error {
	f := t.last
	if f == nil {
		return nil
	}
	t.last = nil
	defer unix.Close(f.fd)
	if f.touched {
		return setTimes(f.fd, "", f.times)
	}
	return nil
}

// openIn opens a directory that is in another one, and follows no link: that is ENOTDIR.
func openIn(fd int, base string) (int, error) { return unix.Openat(fd, base, openDir, 0) }

// open opens the directory that dir names, as parent does, for the caller to close.
func (t *Tree) open(dir string, make bool) (*folder, error) {
	if dir == "" {
		fd, err := openIn(t.top.fd, ".")
		return &folder{fd: fd, name: dir, at: "."}, os.NewSyscallError("openat", err)
	}
	// Mostly there is no link on the way, and the kernel can do it at once. What it refuses is looked at in steps.
	how := unix.OpenHow{Flags: openDir, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	if fd, err := unix.Openat2(t.top.fd, dir, &how); err == nil {
		return &folder{fd: fd, name: dir, at: dir}, nil
	}
	w := walk{t: t, fd: t.top.fd, at: "."}
	if err := w.to(dir, make); err != nil {
		w.close()
		return nil, err
	}
	fd := w.fd
	if fd == t.top.fd {
		var err error
		if fd, err = openIn(fd, "."); err != nil {
			return nil, os.NewSyscallError("openat", err)
		}
	}
	return &folder{fd: fd, name: dir, at: w.at}, nil
}

// A walk goes through the tree a component at a time.
type walk struct {
	t  *Tree
	fd int
	at string
}

func (w *walk) close() {
	if w.fd != w.t.top.fd {
		unix.Close(w.fd)
	}
}

// enter goes to the directory fd, which is at.
func (w *walk) enter(fd int, at string) {
	w.close()
	w.fd, w.at = fd, at
}

// to follows dir. With make, missing directories are made; without, they are fs.ErrNotExist.
func (w *walk) to(dir string, make bool) error {
	links := 0
	todo := strings.Split(dir, "/")
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		switch p {
		case "", ".":
			continue
		case "..":
			if err := w.up(); err != nil {
				return err
			}
			continue
		}
		fd, err := openIn(w.fd, p)
		switch err {
		case nil:
			w.enter(fd, path.Join(w.at, p))
		case unix.ENOTDIR:
			target, err := w.readlink(p)
			if err != nil {
				return fmt.Errorf("%w: %.200q on the way is not a directory", ErrUnsafe, path.Join(w.at, p))
			}
			if links++; links > maxLinks {
				return fmt.Errorf("%w: over %d symbolic links on the way", ErrUnsafe, maxLinks)
			}
			if strings.HasPrefix(target, "/") {
				w.enter(w.t.top.fd, ".")
			}
			todo = append(strings.Split(target, "/"), todo...)
			if len(todo) > 4*w.t.lim.Depth {
				return fmt.Errorf("%w: symbolic links make the path too long", ErrUnsafe)
			}
		case unix.ENOENT:
			if !make {
				return fs.ErrNotExist
			}
			if err := w.mkdir(p); err != nil {
				return err
			}
		default:
			return os.NewSyscallError("openat", err)
		}
	}
	return nil
}

// up goes to the parent, which is known by its path: the directory itself is not asked.
func (w *walk) up() error {
	parts := strings.Split(w.at, "/")
	w.enter(w.t.top.fd, ".")
	for _, p := range parts[:len(parts)-1] {
		fd, err := openIn(w.fd, p)
		if err != nil {
			return os.NewSyscallError("openat", err)
		}
		w.enter(fd, path.Join(w.at, p))
	}
	return nil
}

func (w *walk) readlink(base string) (string, error) {
	b := make([]byte, w.t.lim.Name+1)
	n, err := unix.Readlinkat(w.fd, base, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// mkdir makes a directory that no entry has named, or not yet, and enters it.
func (w *walk) mkdir(base string) error {
	next := path.Join(w.at, base)
	if strings.Count(next, "/") >= w.t.lim.Depth {
		return fmt.Errorf("%w: symbolic links lead over %d directories deep", ErrTooBig, w.t.lim.Depth)
	}
	if err := w.t.enter(); err != nil {
		return err
	}
	was, err := timesOf(w.fd)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(w.fd, base, 0o755); err != nil {
		return os.NewSyscallError("mkdirat", err)
	}
	if err := setTimes(w.fd, "", was); err != nil {
		return err
	}
	fd, err := openIn(w.fd, base)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	w.enter(fd, next)
	delete(w.t.later, next)
	w.t.note(next)
	w.t.noteWhole(next)
	return w.t.permit(fd, 0o755)
}

// permit gives what has just been made with a mode that mode, of which the umask may have taken some.
func (t *Tree) permit(fd int, mode uint32) error {
	if mode&^t.sure == 0 {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&0o7777 == mode {
		t.sure |= mode
		return nil
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(fd, mode))
}
