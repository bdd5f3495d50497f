package debian

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestFetch fetches the small program xz of two suites, of which one at least is not this machine's.
func TestFetch(t *testing.T) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			cache := t.TempDir()
			// As an interrupted call leaves it.
			if err := os.MkdirAll(filepath.Join(cache, suite+"-x.partial", "root"), 0o700); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			roots, errs := make([]*Root, 2), make([]error, 2)
			for n := range roots {
				wg.Go(func() { roots[n], errs[n] = Fetch(t.Context(), cache, suite, []string{"xz-utils"}, io.Discard) })
			}
			wg.Wait()
			for n, err := range errs {
				if errors.Is(err, ErrNotServed) {
					t.Skip(err)
				} else if err != nil {
					t.Fatal(err)
				}
				if got := roots[n].Version("xz-utils"); got == "" {
					t.Errorf("the root does not know the version of xz-utils")
				}
				cmd := roots[n].Command(t.Context(), "xz", "--version")
				out, err := cmd.CombinedOutput()
				if err != nil || !strings.HasPrefix(string(out), "xz (XZ Utils)") {
					t.Errorf("%v: %v\n%s", cmd, err, out)
				}
				if !strings.HasPrefix(cmd.Path, cache) || !strings.HasPrefix(filepath.Base(cmd.Path), "ld-linux") {
					t.Errorf("ran %s, want the root's own loader", cmd.Path)
				}
				if _, err := roots[n].Command(t.Context(), "no-such-program").Output(); err == nil {
					t.Error("a program that is not there ran")
				}
			}
			// What is in the cache needs no archive.
			t.Setenv("PATH", "")
			if _, err := Fetch(t.Context(), cache, suite, []string{"xz-utils"}, io.Discard); err != nil {
				t.Errorf("from the cache: %v", err)
			}
			_, err := Fetch(t.Context(), cache, suite, []string{"tar"}, io.Discard)
			if !errors.Is(err, ErrNotServed) {
				t.Errorf("without apt: %v, want ErrNotServed", err)
			}
			left, _ := filepath.Glob(filepath.Join(cache, "*.partial", "apt"))
			if len(left) != 0 {
				t.Errorf("a failed fetch leaves %v", left)
			}
		})
	}
}

func TestFetchWhatIsNotThere(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip(err)
	}
	for _, c := range []struct{ name, suite, pkg string }{
		{"no such suite", "no-such-suite", "xz-utils"},
		{"no such package", "bookworm", "no-such-package"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cache := t.TempDir()
			root, err := Fetch(t.Context(), cache, c.suite, []string{c.pkg}, io.Discard)
			if !errors.Is(err, ErrNotServed) {
				t.Fatalf("%v, %v, want ErrNotServed", root, err)
			}
			if left, _ := filepath.Glob(filepath.Join(cache, c.suite+"*[0-9a-f]")); len(left) != 0 {
				t.Errorf("leaves %v", left)
			}
		})
	}
}

func TestLockWaitsNoLongerThanItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}
