package workload

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// layAlgorithm puts a tree that is not the root to its place, read-only, and the links to what is run. They are links and not mounts, so that
// programs find what is beside the file: Python its modules, a loader the libraries at $ORIGIN.
func layAlgorithm(r *os.Root, o *order) error {
	if o.Algorithm != "" {
		to, err := inside(r, algorithmDir)
		if err != nil {
			return err
		}
		if err := bind(o.Algorithm, to, unix.MS_RDONLY); err != nil {
			return fmt.Errorf("%s: %w", algorithmDir, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Links)) {
		if o.Links[name] == name {
			continue // the image has it there
		}
		dir, err := inside(r, path.Dir(name))
		if err != nil {
			return err
		}
		if err := r.RemoveAll(strings.TrimPrefix(name, "/")); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.Symlink(o.Links[name], path.Join(dir, path.Base(name))); err != nil {
			return err
		}
	}
	return nil
}
