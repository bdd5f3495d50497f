package tree_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/tree"
)

// TestPythonSameAsUmoci compares what comes of the demo's image, which is made of Debian's packages.
func TestPythonSameAsUmoci(t *testing.T) {
	nothing := tree.SameAsUmoci(t, nil, func(string, time.Time) bool { return true }) // skips where Debian cannot be had
	if left, err := os.ReadDir(nothing); err != nil || len(left) != 0 {
		t.Fatalf("of no layers comes %v, %v", left, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	img, err := demo.PythonImage(t.Context(), filepath.Join(cache, "ampoule"), []byte("print(1)\n"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var archives [][]byte
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, b)
	}
	tree.SameAsUmoci(t, archives, func(string, time.Time) bool { return false })
}
