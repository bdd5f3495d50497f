package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A Dataset is one unpacked dataset image.
type Dataset struct {
	Name     string // for errors, like "datasets[0]"
	Dir      string // where it is unpacked; gone afterwards
	Filename string // what the manifest calls it, one path component, or ""
}

// LayDatasets moves datasets to where the algorithm looks for them, below dir:
//
//   - with a file name and exactly one file: the file, at dir/<filename>, whatever it was called;
//   - with a file name and several: the whole tree, at dir/<filename>/;
//   - without: its top-level entries, directly in dir.
//
// Two datasets with the same name there are an error, and then nothing has moved. Everything becomes readable to
// everyone. dir must be on the file system that the datasets are on: nothing is copied.
func LayDatasets(dir string, sets []Dataset) error {
	type move struct{ from, to, name string }
	var moves []move
	for _, set := range sets {
		entries, err := layout(set)
		if err != nil {
			return fmt.Errorf("%s: %w", set.Name, err)
		}
		for _, e := range entries {
			m := move{e.from, filepath.Join(dir, e.name), set.Name}
			for _, other := range moves {
				if other.to == m.to {
					return fmt.Errorf("%s and %s both have %q; set filename of one of them", other.name, m.name, e.name)
				}
			}
			moves = append(moves, m)
		}
	}
	for _, m := range moves {
		if _, err := os.Lstat(m.to); err == nil {
			return fmt.Errorf("%s: %s is there already", m.name, m.to)
		}
		if err := readable(m.from); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if err := os.Rename(m.from, m.to); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	for _, set := range sets {
		if err := os.RemoveAll(set.Dir); err != nil {
			return fmt.Errorf("%s: %w", set.Name, err)
		}
	}
	return os.Chmod(dir, 0o755)
}

type placed struct{ from, name string }

// layout decides what of a dataset goes where.
func layout(set Dataset) ([]placed, error) {
	files, odd, err := content(set.Dir)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 && !odd {
		return nil, errors.New("the dataset has no files")
	}
	if name := set.Filename; name != "" {
		if name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
			return nil, fmt.Errorf("filename %q is not one name of at most 255 bytes", name)
		}
		if len(files) == 1 && !odd {
			return []placed{{files[0], name}}, nil
		}
		return []placed{{set.Dir, name}}, nil
	}
	entries, err := os.ReadDir(set.Dir)
	if err != nil {
		return nil, err
	}
	var all []placed
	for _, e := range entries {
		all = append(all, placed{filepath.Join(set.Dir, e.Name()), e.Name()})
	}
	return all, nil
}

// content finds up to two regular files, and whether there is anything that is neither file nor folder.
func content(dir string) (files []string, odd bool, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return nil
		case e.Type().IsRegular():
			files = append(files, path)
		default:
			odd = true
		}
		if len(files) > 1 {
			return fs.SkipAll
		}
		return nil
	})
	return files, odd, err
}

// readable lets everyone read files and enter folders. What a link points to is left alone.
func readable(path string) error {
	return filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !(e.IsDir() || e.Type().IsRegular()) {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		mode := fi.Mode().Perm() | 0o444
		if e.IsDir() {
			mode |= 0o111
		}
		return os.Chmod(path, mode)
	})
}
