package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// temporary is how the name of a file begins that is not whole yet.
const temporary = ".new-"

// read gives a whole regular file of at most limit bytes. A symbolic link is followed as long as it stays inside the
// store.
func (s *Store) read(name string, limit int) ([]byte, error) {
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold a request up
	if err != nil {
		if errors.Is(err, syscall.ENOTDIR) {
			err = fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		return nil, err
	}
	defer f.Close()
	if i, err := f.Stat(); err != nil {
		return nil, err
	} else if !i.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		clear(b)
		return nil, fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, nil
}

// write replaces a file: a temporary one beside it is synced, then renamed, then the folder is synced. The caller
// holds mu.
func (s *Store) write(name string, b []byte) error {
	dir := path.Dir(name)
	if err := s.mkdirs(dir); err != nil {
		return err
	}
	if i, err := s.root.Lstat(name); err == nil && i.IsDir() {
		return fmt.Errorf("%s: is a folder", name)
	}
	tmp := path.Join(dir, temporary+rand.Text())
	if err := s.writeNew(tmp, b); err != nil {
		return errors.Join(err, s.root.Remove(tmp))
	}
	if err := s.root.Rename(tmp, name); err != nil {
		return errors.Join(err, s.root.Remove(tmp))
	}
	return s.sync(dir)
}

func (s *Store) writeNew(name string, b []byte) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// mkdirs makes a folder and those above it, and syncs every folder that got a new entry.
func (s *Store) mkdirs(dir string) error {
	if dir == "." {
		return nil
	}
	if err := s.mkdirs(path.Dir(dir)); err != nil {
		return err
	}
	if err := s.root.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return s.sync(path.Dir(dir))
}

func (s *Store) sync(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove takes a file away for good. The error wraps fs.ErrNotExist if there is none. The caller holds mu.
func (s *Store) remove(name string) error {
	if i, err := s.root.Lstat(name); errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	} else if err != nil {
		return err
	} else if i.IsDir() {
		return fmt.Errorf("%s: is a folder", name)
	}
	if err := s.root.Remove(name); err != nil {
		return err
	}
	return s.sync(path.Dir(name))
}

// sweep removes what a killed writer left. Only the holder of the lock writes, so nobody is at work on these files.
func (s *Store) sweep() error {
	return fs.WalkDir(s.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type().IsRegular() && strings.HasPrefix(d.Name(), temporary) {
			return s.root.Remove(name)
		}
		return nil
	})
}
