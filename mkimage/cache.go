package mkimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// buildVersion enters the cache key: raise it when the code that builds kernels comes to give other bytes.
const buildVersion = "1"

// The files of a cached kernel, in CACHE/kernel/KEY.
const (
	cachedConfig = "config"
	cachedInfo   = "kernel.json"
)

// cacheKey is the SHA-256 over everything that enters a kernel. what is the profile, or names another use.
func cacheKey(what, sourceSHA256 string, t toolchain) string {
	var files []kernelconfig.File
	for _, f := range append(kernelconfig.Fragments(true), kernelconfig.Required()) {
		files = append(files, kernelconfig.File{Name: f.Name, Text: settingsOnly(f.Text)})
	}
	files = append(files, kernelconfig.Patches()...)
	files = append(files, kernelconfig.Provider()...)
	files = append(files, kernelconfig.ProviderLines()...)
	files = append(files, kernelconfig.File{Name: "date", Text: []byte(kernelconfig.Pin.Date.UTC().String())})
	h := sha256.New()
	add := func(s string) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	for _, s := range []string{"ampoule kernel", buildVersion, what, sourceSHA256, t.gcc, t.ld} {
		add(s)
	}
	for _, f := range files {
		add(f.Name)
		add(string(f.Text))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// settingsOnly is a fragment without what explains it: another comment makes no other kernel.
func settingsOnly(fragment []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(fragment) {
		if s := bytes.TrimSpace(line); onLine.Match(s) || offLine.Match(s) {
			kept = append(append(kept, s...), '\n')
		}
	}
	return kept
}

// kernel returns the kernel of o's profile, from the cache or new.
func (o Options) kernel(ctx context.Context) (*built, error) {
	t, err := findToolchain(ctx)
	if err != nil {
		return nil, err
	}
	s := o.sources()
	// The digest of the pinned source is known without the source: a cached kernel needs neither it nor an archive.
	if o.KernelSource == "" && !o.Fresh {
		if k, err := o.cached(cacheKey(o.Profile, s.pin.SHA256, t)); k != nil || err != nil {
			return k, err
		}
	}
	src, err := s.find(ctx, o.simulation())
	if err != nil {
		return nil, err
	}
	if o.Fresh {
		return o.buildFresh(ctx, src, t)
	}
	return o.buildCached(ctx, src, t)
}

func (o Options) buildFresh(ctx context.Context, src source, t toolchain) (*built, error) {
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.Cache, "fresh-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return o.buildIn(ctx, dir, src, t)
}

func (o Options) buildIn(ctx context.Context, dir string, src source, t toolchain) (k *built, err error) {
	p := newProgress(o.Progress, o.Profile+" kernel")
	defer func() { p.end(err) }()
	b := &kernelBuild{dir: dir, src: src, tools: t, progress: p}
	k, err = b.run(ctx, o.simulation())
	if err != nil {
		return nil, fmt.Errorf("%s kernel: %w", o.Profile, err)
	}
	k.CacheKey = cacheKey(o.Profile, src.sha256, t)
	return k, nil
}

// buildCached builds in the cache, one build at a time, and leaves tree and objects there until both profiles are made.
func (o Options) buildCached(ctx context.Context, src source, t toolchain) (*built, error) {
	key := cacheKey(o.Profile, src.sha256, t)
	if k, err := o.cached(key); k != nil || err != nil {
		return k, err
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if k, err := o.cached(key); k != nil || err != nil {
		return k, err // somebody else has just built it
	}
	work := filepath.Join(o.Cache, "work")
	dir := filepath.Join(work, cacheKey("work", src.sha256, t)[:16])
	if err := removeOthers(work, filepath.Base(dir)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	k, err := o.buildIn(ctx, dir, src, t)
	if err != nil {
		return nil, err
	}
	if err := o.publish(key, k); err != nil {
		return nil, err
	}
	for _, p := range []string{cmdline.Production, cmdline.Simulation} {
		if other, err := o.cached(cacheKey(p, src.sha256, t)); other == nil || err != nil {
			return k, err
		}
	}
	return k, os.RemoveAll(dir)
}

// removeOthers deletes the work directories of builds that were never finished and that nobody will continue.
func removeOthers(work, keep string) error {
	entries, err := os.ReadDir(work)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != keep {
			err = errors.Join(err, os.RemoveAll(filepath.Join(work, e.Name())))
		}
	}
	return err
}

// cached reads a kernel from the cache; nil when there is none. What does not match its own record counts as none.
func (o Options) cached(key string) (*built, error) {
	dir := filepath.Join(o.Cache, "kernel", key)
	k := &built{path: filepath.Join(dir, KernelFile)}
	err := readJSON(filepath.Join(dir, cachedInfo), &k.KernelInfo)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		k.image, err = os.ReadFile(k.path)
	}
	if err == nil {
		k.config, err = os.ReadFile(filepath.Join(dir, cachedConfig))
	}
	if err != nil || k.CacheKey != key || hexSum(k.image) != k.SHA256 || hexSum(k.config) != k.ConfigSHA256 {
		fmt.Fprintf(o.Progress, "kernel: %s is damaged; building it again\n", dir)
		return nil, os.RemoveAll(dir)
	}
	return k, nil
}

// publish makes the kernel visible in the cache, whole or not at all.
func (o Options) publish(key string, k *built) error {
	parent := filepath.Join(o.Cache, "kernel")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, ".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	record, err := json.MarshalIndent(k.KernelInfo, "", "  ")
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{KernelFile: k.image, cachedConfig: k.config, cachedInfo: record} {
		if err := os.WriteFile(filepath.Join(tmp, name), data, 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	dir := filepath.Join(parent, key)
	k.path = filepath.Join(dir, KernelFile)
	return os.Rename(tmp, dir)
}

// lock takes the cache's one build lock. The kernel of the machine releases it when the process ends, however it ends.
func (o Options) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(o.Cache, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { f.Close() }, nil
	}
	fmt.Fprintf(o.Progress, "kernel: another build is running; waiting for %s\n", f.Name())
	got := make(chan error, 1)
	go func() {
		for {
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
				got <- err
				return
			}
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { <-got; f.Close() }() // flock cannot be interrupted: give it back once it comes
		return nil, context.Cause(ctx)
	}
}
