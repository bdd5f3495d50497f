package mkimage

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

func TestCacheKeyFeelsEverything(t *testing.T) {
	tools := toolchain{gcc: "gcc 12", ld: "ld 2.40"}
	seen := map[string]string{}
	for what, key := range map[string]string{
		"production":       cacheKey(cmdline.Production, "aa", tools),
		"simulation":       cacheKey(cmdline.Simulation, "aa", tools),
		"another source":   cacheKey(cmdline.Production, "ab", tools),
		"another compiler": cacheKey(cmdline.Production, "aa", toolchain{gcc: "gcc 13", ld: "ld 2.40"}),
		"another linker":   cacheKey(cmdline.Production, "aa", toolchain{gcc: "gcc 12", ld: "ld 2.41"}),
		"shifted fields":   cacheKey(cmdline.Production, "aa", toolchain{gcc: "gcc 12l", ld: "d 2.40"}),
	} {
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s share a key", what, other)
		}
		seen[key] = what
	}
}

func cachedKernel(key string) *built {
	image, config := []byte("a kernel"), []byte("CONFIG_A=y\n")
	return &built{image: image, config: config, KernelInfo: KernelInfo{
		Version: "6.12.0-ampoule", Label: Pinned, SHA256: hexSum(image), Size: int64(len(image)), ConfigSHA256: hexSum(config), CacheKey: key}}
}

func TestCacheGivesBackWhatItGot(t *testing.T) {
	o := Options{Cache: t.TempDir(), Progress: io.Discard}
	if k, err := o.cached("k1"); k != nil || err != nil {
		t.Fatalf("an empty cache gave %v, %v", k, err)
	}
	want := cachedKernel("k1")
	if err := o.publish("k1", want); err != nil {
		t.Fatal(err)
	}
	got, err := o.cached("k1")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(built{})); d != "" {
		t.Error(d)
	}
	if left, _ := filepath.Glob(filepath.Join(o.Cache, "kernel/.new-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestADamagedKernelIsBuiltAgain(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"image":          func(t *testing.T, dir string) { write(t, filepath.Join(dir, KernelFile), "b kernel") },
		"configuration":  func(t *testing.T, dir string) { write(t, filepath.Join(dir, cachedConfig), "") },
		"record":         func(t *testing.T, dir string) { write(t, filepath.Join(dir, cachedInfo), "{}{}") },
		"missing image":  func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, KernelFile)) },
		"key of another": func(t *testing.T, dir string) { os.Rename(dir, dir+"x"); os.Rename(dir+"y", dir) },
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Cache: t.TempDir(), Progress: io.Discard}
			for _, key := range []string{"k1", "k1y"} {
				if err := o.publish(key, cachedKernel(key)); err != nil {
					t.Fatal(err)
				}
			}
			damage(t, filepath.Join(o.Cache, "kernel/k1"))
			if k, err := o.cached("k1"); k != nil || err != nil {
				t.Errorf("got %+v, %v", k, err)
			}
			if _, err := os.Stat(filepath.Join(o.Cache, "kernel/k1")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the damaged kernel is still there: %v", err)
			}
		})
	}
}

func TestOneBuildAtATime(t *testing.T) {
	o := Options{Cache: t.TempDir(), Progress: io.Discard}
	unlock, err := o.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gaveUp := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gaveUp)
	if _, err := o.lock(ctx); !errors.Is(err, gaveUp) {
		t.Errorf("a second lock: %v", err)
	}
	got := make(chan error)
	go func() {
		unlock, err := o.lock(t.Context())
		if err == nil {
			unlock()
		}
		got <- err
	}()
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestOldWorkIsRemoved(t *testing.T) {
	work := filepath.Join(t.TempDir(), "work")
	if err := removeOthers(work, "new"); err != nil {
		t.Errorf("without any: %v", err)
	}
	write(t, filepath.Join(work, "old/tree/Makefile"), "")
	keep := write(t, filepath.Join(work, "new/tree/Makefile"), "")
	if err := removeOthers(work, "new"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(work, "old")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Errorf("the new one: %v", err)
	}
}

func TestObjectsOfAKilledBuildAreNotTrusted(t *testing.T) {
	b := &kernelBuild{dir: t.TempDir()}
	object := write(t, filepath.Join(b.objects(), "init/main.o"), "half")
	if err := b.discardUnsafe(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(object); err != nil {
		t.Errorf("after an orderly end: %v", err)
	}
	write(t, filepath.Join(b.objects(), unsafeMark), "")
	if err := b.discardUnsafe(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(object); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a kill: %v", err)
	}
}
