package mkimage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

// Reproduced is what two builds agreed on.
type Reproduced struct {
	Production, Simulation File          // the kernels
	Took                   time.Duration // of it all
}

// Repro builds both kernels twice, in two directories of different depth, and returns an error if a byte differs. The
// first directory makes production and then, from its objects, simulation; the second goes the other way round: so it
// is also shown that an incremental build equals one from nothing. A kernel that is in the cache is compared as well.
// It takes about twice as long as a first build. o.Profile and o.Out are not used.
func Repro(ctx context.Context, o Options) (*Reproduced, error) {
	start := time.Now()
	o.Profile = cmdline.Production // the strict choice of source
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	t, err := findToolchain(ctx)
	if err != nil {
		return nil, err
	}
	src, err := o.sources().find(ctx, o.simulation())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp(o.Cache, "repro-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(root)

	sums := map[string]*built{}
	compare := func(k *built, where string) error {
		first := sums[k.CacheKey]
		if first == nil {
			sums[k.CacheKey] = k
			return nil
		}
		if first.SHA256 != k.SHA256 {
			return fmt.Errorf("%s: kernel %s has sha256 %s, the first one had %s", where, k.CacheKey[:16], k.SHA256, first.SHA256)
		}
		return nil
	}
	for _, round := range []struct {
		dir      string
		profiles []string
	}{
		{"a", []string{cmdline.Production, cmdline.Simulation}},
		{"b/in-another/directory", []string{cmdline.Simulation, cmdline.Production}},
	} {
		dir := filepath.Join(root, round.dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		for _, o.Profile = range round.profiles {
			k, err := o.buildIn(ctx, dir, src, t)
			if err != nil {
				return nil, err
			}
			if err := compare(k, dir); err != nil {
				return nil, err
			}
			if c, err := o.cached(k.CacheKey); err != nil {
				return nil, err
			} else if c != nil {
				if err := compare(c, "cache"); err != nil {
					return nil, err
				}
			}
		}
		if err := os.RemoveAll(dir); err != nil { // gigabytes
			return nil, err
		}
	}
	file := func(profile string) File {
		k := sums[cacheKey(profile, src.sha256, t)]
		return File{KernelFile, k.SHA256, k.Size}
	}
	return &Reproduced{file(cmdline.Production), file(cmdline.Simulation), time.Since(start)}, nil
}
