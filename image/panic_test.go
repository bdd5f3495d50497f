package image

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// panics gives up what f panicked with.
func panics(f func()) (with any) {
	defer func() { with = recover() }()
	f()
	return nil
}

type badReader struct{}

func (badReader) Read([]byte) (int, error) { panic("a decompressor's fault") }

// TestPanicsReachTheCaller: what panics in a goroutine of ours panics in the caller, which can recover it, as PID 1's
// steps do. In the goroutine it would end the program.
func TestPanicsReachTheCaller(t *testing.T) {
	t.Run("while decompressing", func(t *testing.T) {
		below, above := newStream(), newStream()
		from := store{own: newChunks(2 * ownChunks), due: due()}
		for s, r := range map[*stream]io.Reader{below: badReader{}, above: below} {
			s.write(func() error {
				d := newStreamDigester(sha256.New())
				defer d.finish()
				return copyChunks(t.Context(), s, r, from, d)
			})
		}
		if with := panics(func() { io.ReadAll(above) }); with == nil {
			t.Error("nothing panicked")
		}
		above.close()
		below.close()
	})
	t.Run("while fetching", func(t *testing.T) {
		s := newShelf(t)
		i, err := Resolve(t.Context(), s.image(t, "p", plain{tar: treetest.Tar(t, treetest.File("f", "1"))}), plainHTTP)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "root")
		if with := panics(func() { i.Unpack(t.Context(), dir, nil, Limits{}, func(int64) { panic("a caller's fault") }) }); with == nil {
			t.Error("nothing panicked")
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the image is there")
		}
	})
}

func due() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
