package mkimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// ErrNotServed says that the archive no longer has the pinned source of the kernel, without which there is no production
// kernel.
var ErrNotServed = errors.New("the archive no longer serves")

// An archive serves source packages. Debian's is apt.
type archive interface {
	// versions lists what is served, newest first. An archive that knows no such package returns none.
	versions(ctx context.Context, pkg string) ([]string, error)
	// download writes the tarball of that name out of the package to w.
	download(ctx context.Context, pkg, version, tarball string, w io.Writer) error
}

// sources finds the kernel's source.
type sources struct {
	pin      kernelconfig.Source
	given    string // KERNEL_SOURCE; "" for none
	system   string // where the installed package would have put the tarball
	dir      string // of the cache
	archive  archive
	progress io.Writer
}

func (o Options) sources() sources {
	return sources{
		pin:      kernelconfig.Pin,
		given:    o.KernelSource,
		system:   filepath.Join("/usr/src", kernelconfig.Pin.File),
		dir:      filepath.Join(o.Cache, "source"),
		archive:  apt{tmp: filepath.Join(o.Cache, "source")},
		progress: o.Progress,
	}
}

// source is a tarball whose digest was just computed.
type source struct {
	path    string
	version string // of the package; "" when unknown
	sha256  string
	label   string
}

// find returns the source to build from. Without simulation that is the pinned one or an error.
func (s sources) find(ctx context.Context, simulation bool) (source, error) {
	if s.given != "" {
		return s.takeGiven(simulation)
	}
	for _, path := range []string{s.cached(s.pin.Version), s.system} {
		sum, _, err := sumFile(path)
		if err == nil && sum == s.pin.SHA256 {
			return source{path, s.pin.Version, sum, Pinned}, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return source{}, err
		}
	}
	served, err := s.archive.versions(ctx, s.pin.Package)
	if err != nil {
		return source{}, err
	}
	if len(served) == 0 {
		return source{}, fmt.Errorf("the package lists know no %s: run `apt-get update` with Debian's security "+
			"archive enabled, or set KERNEL_SOURCE= to the path of %s (sha256 %s)",
			s.pin.Package, s.pin.File, s.pin.SHA256)
	}
	for _, v := range served {
		if v == s.pin.Version {
			return s.fetch(ctx, v)
		}
	}
	if !simulation {
		return source{}, fmt.Errorf("%w %s %s, which a production kernel is built from: run "+
			"`apt-get update` in case the lists are old, or set KERNEL_SOURCE= to the path of its %s (sha256 %s)",
			ErrNotServed, s.pin.Package, s.pin.Version, s.pin.File, s.pin.SHA256)
	}
	newest := served[0]
	fmt.Fprintf(s.progress, "kernel: the archive no longer serves %s %s; taking %s, unpinned\n", s.pin.Package, s.pin.Version, newest)
	path := s.cached(newest)
	if sum, _, err := sumFile(path); err == nil {
		return source{path, newest, sum, Unpinned}, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return source{}, err
	}
	return s.fetch(ctx, newest)
}

func (s sources) takeGiven(simulation bool) (source, error) {
	sum, _, err := sumFile(s.given)
	switch {
	case err != nil:
		return source{}, fmt.Errorf("KERNEL_SOURCE: %w", err)
	case sum == s.pin.SHA256:
		return source{s.given, s.pin.Version, sum, Pinned}, nil
	case simulation:
		return source{s.given, "", sum, Unpinned}, nil
	}
	return source{}, fmt.Errorf("KERNEL_SOURCE=%s has sha256 %s; a production kernel is built from %s of %s %s only, which has %s",
		s.given, sum, s.pin.File, s.pin.Package, s.pin.Version, s.pin.SHA256)
}

func (s sources) cached(version string) string {
	return filepath.Join(s.dir, s.pin.Package+"_"+version+".tar.xz")
}

// fetch downloads one version into the cache. Other bytes under the pinned version are refused in every profile: that
// is not an archive that moved on.
func (s sources) fetch(ctx context.Context, version string) (source, error) {
	fmt.Fprintf(s.progress, "kernel: downloading %s %s\n", s.pin.Package, version)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return source{}, err
	}
	tmp, err := os.CreateTemp(s.dir, ".download-*")
	if err != nil {
		return source{}, err
	}
	defer os.Remove(tmp.Name())
	err = s.archive.download(ctx, s.pin.Package, version, s.pin.File, tmp)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return source{}, fmt.Errorf("download %s %s: %w", s.pin.Package, version, err)
	}
	sum, _, err := sumFile(tmp.Name())
	if err != nil {
		return source{}, err
	}
	src := source{s.cached(version), version, sum, Unpinned}
	if version == s.pin.Version {
		if sum != s.pin.SHA256 {
			return source{}, fmt.Errorf("%s of %s %s has sha256 %s in this archive, want %s: do not use this archive",
				s.pin.File, s.pin.Package, version, sum, s.pin.SHA256)
		}
		src.label = Pinned
	}
	return src, os.Rename(tmp.Name(), src.path)
}

// series tells whether a package version belongs to the kernel series of the package, as 6.12.117-1 to linux-source-6.12.
func series(pkg, version string) bool {
	return strings.HasPrefix(version, strings.TrimPrefix(pkg, "linux-source-")+".")
}
