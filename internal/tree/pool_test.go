package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

// TestPool: of trees that are unpacked at once, as many have room as the pool has for their files.
func TestPool(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1000}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	pool := NewPool(3999)
	var fit, full atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		dir := t.TempDir()
		all.Go(func() {
			tr, err := Open(dir, Limits{Bytes: 1 << 20, Pool: pool})
			if err != nil {
				t.Error(err)
				return
			}
			defer tr.Close()
			switch err := tr.Tar(tr.Charge(bytes.NewReader(b.Bytes()))); {
			case err == nil:
				fit.Add(1)
			case errors.Is(err, ErrTooBig):
				full.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if fit.Load() != 3 || full.Load() != 5 {
		t.Errorf("%d trees fit and %d did not, want 3 and 5", fit.Load(), full.Load())
	}
}
