package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The bounds of Spec.Files: how many, and their bytes together.
const (
	maxFileCount = 256
	maxFileBytes = 8 << 20
)

// A File is laid into the sandbox before the program starts. Its bytes may be a secret: they go to the stub through a
// pipe, and from there into a file system in memory that holds nothing else.
type File struct {
	Path string // absolute and clean; not below a folder that the sandbox lays out itself, or above one
	Data Secret // the caller's, who zeroes it after Run
}

// Secret is bytes that no log and no error shows.
type Secret []byte

const secret = "[secret]"

func (Secret) String() string               { return secret }
func (Secret) GoString() string             { return secret }
func (Secret) LogValue() slog.Value         { return slog.StringValue(secret) }
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + secret + `"`), nil }

// fileOrder is a File on its way to the stub, the one place where its bytes are JSON.
type fileOrder struct {
	Path string
	Data []byte
}

func checkFiles(files []File) error {
	if len(files) > maxFileCount {
		return fmt.Errorf("%w: %d files, at most %d", ErrProgram, len(files), maxFileCount)
	}
	total := 0
	for i, f := range files {
		total += len(f.Data)
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" || strings.Contains(f.Path, "\x00") {
			return fmt.Errorf("%w: file %q: want an absolute path without dot components", ErrProgram, f.Path)
		}
		for _, dir := range []string{datasetsDir, resultsDir, "/dev", "/proc", "/sys"} {
			if below(f.Path, dir) || below(dir, f.Path) {
				return fmt.Errorf("%w: file %q: %s is the sandbox's own", ErrProgram, f.Path, dir)
			}
		}
		for _, other := range files[:i] {
			if below(f.Path, other.Path) || below(other.Path, f.Path) {
				return fmt.Errorf("%w: file %q: %q is in its way", ErrProgram, f.Path, other.Path)
			}
		}
	}
	if total > maxFileBytes {
		return fmt.Errorf("%w: files of %d bytes, at most %d", ErrProgram, total, maxFileBytes)
	}
	return nil
}

func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// layFiles writes the files into a tmpfs of their own and binds each to its place. What the overlay gets of one is an
// empty file: the bytes are neither in the image nor in the scratch, and nobody can write to them.
func layFiles(r *os.Root, o *order) error {
	if len(o.Files) == 0 {
		return nil
	}
	from := filepath.Join(o.Scratch, "files")
	if err := os.Mkdir(from, 0o700); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", maxFileBytes+maxFileCount*os.Getpagesize(), 2*maxFileCount)
	if err := unix.Mount("files", from, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	for i, f := range o.Files {
		source := filepath.Join(from, strconv.Itoa(i))
		err := os.WriteFile(source, f.Data, 0o400)
		if err = errors.Join(err, os.Chown(source, o.UID, o.GID)); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
		clear(f.Data)
		to, err := placeFor(r, f.Path)
		if err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
		if err := bind(source, to, unix.MS_RDONLY|unix.MS_NOEXEC); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	return nil
}

// placeFor makes an empty file to mount on and returns where it is now.
func placeFor(r *os.Root, name string) (string, error) {
	dir := path.Dir(name)
	if dir != "/" {
		if _, err := inside(r, dir); err != nil {
			return "", err
		}
	}
	at := strings.TrimPrefix(name, "/")
	switch fi, err := r.Lstat(at); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", err
	case fi.IsDir():
		return "", asProgram(errors.New("is a folder in the image"))
	default: // a mount must not go where a link points
		if err := r.Remove(at); err != nil {
			return "", err
		}
	}
	f, err := r.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return "", err
	}
	return filepath.Join(r.Name(), at), f.Close()
}
