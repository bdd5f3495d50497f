package workload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// A format is what an algorithm's file looks like. Names are what Cocos goes by (wire/SPEC.md §6.4); what the file holds decides.
type format struct {
	name string      // for people
	mode fs.FileMode // that the file gets besides its own
	// named says whether a file of that name, and with these permissions, would be taken for the algorithm.
	named func(name string, mode fs.FileMode) bool
	check func(head []byte) error // the first bytes; nil: any
}

var programFormat = format{"executable", 0o555,
	func(name string, mode fs.FileMode) bool {
		if strings.HasSuffix(name, ".so") || strings.Contains(name, ".so.") {
			return false
		}
		return mode&0o111 != 0 || slices.ContainsFunc(usual, func(word string) bool { return strings.Contains(name, word) })
	},
	func(head []byte) error {
		if !bytes.HasPrefix(head, []byte("\x7fELF")) && !bytes.HasPrefix(head, []byte("#!")) {
			return errors.New("is neither an ELF program nor a script with #! at its start")
		}
		return nil
	}}

var scriptFormat = format{"Python script (*.py)", 0o444, func(name string, _ fs.FileMode) bool { return strings.HasSuffix(name, ".py") }, nil}

var moduleFormat = format{"WebAssembly module (*.wasm)", 0o444,
	func(name string, _ fs.FileMode) bool {
		return strings.HasSuffix(name, ".wasm") || strings.HasSuffix(name, ".wat")
	},
	func(head []byte) error {
		switch {
		case !bytes.HasPrefix(head, []byte("\x00asm")):
			return errors.New("is no WebAssembly module in binary form (of .wat, wat2wasm makes one)")
		case !bytes.HasPrefix(head, []byte("\x00asm\x01\x00\x00\x00")):
			return errors.New("is a WebAssembly component or of another version; want a core module for WASI preview 1, as --target wasm32-wasip1 makes")
		}
		return nil
	}}

// usual is what algorithms are called.
var usual = []string{"algorithm", "main", "run", "execute"}

// Folders that are not searched: those of a system at the root of the tree, and those of packages anywhere. What is there is found by its
// path, or by the entrypoint, alone.
var (
	systemDirs = []string{"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "media", "mnt", "proc", "run", "sbin", "sys",
		"tmp", "usr", "var"}
	packageDirs = []string{"site-packages", "dist-packages", "vendor", "venv", ".venv", "node_modules", "__pycache__", ".git"}
)

// maxHead is how much of a file is looked at, bytes.
const maxHead = 8

// find says which file of a tree is the algorithm: the one at path; else the only file that there is; else the one that the image's
// entrypoint or command names; else the only one that is of the format outside of systemDirs and packageDirs, or the only one of those
// whose name is usual. Where several are as good nobody guesses.
//
// The file gets the format's mode. Cocos saves it with mode 0700 and runs it as root; here nobody is root.
func find(r *os.Root, c *ImageConfig, at string, f *format) (string, error) {
	var err error
	if at == "" {
		if at, err = search(r, c, f); err != nil {
			return "", err
		}
	}
	if err := f.hold(r, at, f.mode); err != nil {
		return "", fmt.Errorf("algorithm: /%s %w", at, err)
	}
	return at, nil
}

func search(r *os.Root, c *ImageConfig, f *format) (string, error) {
	all, only, err := candidates(r, f)
	if err != nil || only != "" {
		return only, err
	}
	if named := entrypointFile(r, c, f); named != "" {
		return named, nil
	}
	if best := slices.DeleteFunc(slices.Clone(all), unusual); len(best) == 1 {
		all = best
	}
	switch len(all) {
	case 0:
		return "", fmt.Errorf("the algorithm has no %s outside of the system's folders; say where it is with algorithm.path", f.name)
	case 1:
		return all[0], nil
	}
	return "", fmt.Errorf("the algorithm has several files that could be the %s, such as %q; say which with algorithm.path", f.name, all[:min(len(all), 4)])
}

func unusual(name string) bool {
	base, _, _ := strings.Cut(strings.ToLower(path.Base(name)), ".")
	return base != "algo" && !slices.Contains(usual, base)
}

// candidates are the files that look like the algorithm, and the only regular file of the tree, if there is but one.
func candidates(r *os.Root, f *format) (all []string, only string, err error) {
	files := 0
	err = fs.WalkDir(r.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if files++; files == 1 {
			only = name
		}
		if hidden(name) {
			return nil
		}
		fi, err := e.Info()
		if err == nil && f.named(strings.ToLower(path.Base(name)), fi.Mode()) && (!f.runs() || f.hold(r, name, 0) == nil) {
			all = append(all, name)
		}
		return err
	})
	if files != 1 {
		only = ""
	}
	return all, only, err
}

// hidden says whether a file is in one of the folders that are not searched.
func hidden(name string) bool {
	parts := strings.Split(name, "/")
	for i, part := range parts[:len(parts)-1] {
		if i == 0 && slices.Contains(systemDirs, part) || slices.Contains(packageDirs, part) {
			return true
		}
	}
	return false
}

// entrypointFile is the file that an image's entrypoint and command run: the program itself, or the script or module that it is given.
func entrypointFile(r *os.Root, c *ImageConfig, f *format) string {
	for i, w := range append(slices.Clone(c.Entrypoint), c.Cmd...) {
		if f.runs() && (i > 0 || !strings.Contains(w, "/")) || !f.runs() && !f.named(strings.ToLower(path.Base(w)), 0) {
			continue
		}
		if !path.IsAbs(w) {
			w = path.Join("/", c.WorkingDir, w)
		}
		w = strings.TrimPrefix(path.Clean(w), "/")
		if fi, err := r.Stat(w); err == nil && fi.Mode().IsRegular() {
			return w
		}
	}
	return ""
}

// runs says whether the kernel runs such files by itself.
func (f *format) runs() bool { return f.mode&0o111 != 0 }

// hold checks that a file is there, and how it begins, and adds to its mode.
func (f *format) hold(r *os.Root, name string, mode fs.FileMode) error {
	file, err := r.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	head := make([]byte, maxHead)
	n, err := file.Read(head)
	if err != nil && err != io.EOF {
		return err // a folder, for one
	}
	if f.check != nil {
		if err := f.check(head[:n]); err != nil {
			return err
		}
	}
	if mode == 0 {
		return nil
	}
	fi, err := file.Stat()
	if err != nil {
		return err
	}
	return file.Chmod(fi.Mode().Perm() | mode)
}
