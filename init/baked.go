package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/source"
)

// baked is what the build put into the initramfs beside /init. It is part of the image, and so of its measurement.
type baked struct {
	line     string // of a UKI, the command line that it was built with; "" for an image that measures what it is started with
	manifest []byte // nil: none
}

// read takes the files of the initramfs before it is left.
func (b *baked) read(dir string) error {
	line, err := readBounded(filepath.Join(dir, "cmdline"), 4<<10)
	if err != nil {
		return err
	}
	b.line = string(line)
	b.manifest, err = readBounded(filepath.Join(dir, "manifest.json"), source.MaxSize)
	return err
}

// readBounded returns nil for a file that is not there.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", path, limit)
	}
	return b, err
}

// own returns the command line that counts: of a UKI its own, and then an error if the machine was started with another.
// The owner of a machine may start a UKI with a line of his own where firmware does not forbid it; what the kernel made of
// it is done, but nothing of ours is.
func (b *baked) own(started string) (string, error) {
	if b.line == "" {
		return started, nil
	}
	if started = strings.TrimSuffix(started, "\n"); started != b.line {
		return b.line, fmt.Errorf("this image was started with the command line %q and was built with %q: start it without one", started, b.line)
	}
	return b.line, nil
}

// fetch is fetchManifest, for images that have a manifest as well.
func (b *baked) fetch(ctx context.Context, s cmdline.Source) ([]byte, error) {
	switch {
	case s.Kind != cmdline.Image:
		return fetchManifest(ctx, s)
	case b.manifest == nil:
		return nil, errors.New("manifest source image: the image has none; build it with --bake")
	}
	return b.manifest, nil
}
