package image

import (
	"errors"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// TestZerosAndBombs: a layer of zeros unpacks under gzip, which cannot make a bomb, and not under zstd, which can.
func TestZerosAndBombs(t *testing.T) {
	archive := treetest.Tar(t, treetest.File("zeros", string(make([]byte, 160<<20))))
	for mediaType, want := range map[string]error{ociLayer + "+gzip": nil, ociLayer + "+zstd": ErrTooBig} {
		s := newShelf(t)
		if _, err := unpack(t, s.image(t, "p", plain{archive, mediaType}), nil, Limits{}); !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", mediaType, err, want)
		}
	}
}
