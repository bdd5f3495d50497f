//go:build !guest

package image

import (
	"bytes"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// sealedImage is a v1.Image of sealed layers, a plain config and a fixed manifest.
type sealedImage struct {
	config   []byte
	manifest []byte
	layers   []*sealedLayer
}

func (s *sealedImage) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (s *sealedImage) Size() (int64, error)                { return int64(len(s.manifest)), nil }
func (s *sealedImage) RawManifest() ([]byte, error)        { return s.manifest, nil }
func (s *sealedImage) RawConfigFile() ([]byte, error)      { return s.config, nil }

func (s *sealedImage) Digest() (v1.Hash, error)     { return hashOf(s.manifest), nil }
func (s *sealedImage) ConfigName() (v1.Hash, error) { return hashOf(s.config), nil }

func (s *sealedImage) Manifest() (*v1.Manifest, error) {
	return v1.ParseManifest(bytes.NewReader(s.manifest))
}

func (s *sealedImage) ConfigFile() (*v1.ConfigFile, error) {
	return v1.ParseConfigFile(bytes.NewReader(s.config))
}

func (s *sealedImage) Layers() ([]v1.Layer, error) {
	layers := make([]v1.Layer, len(s.layers))
	for n, l := range s.layers {
		layers[n] = l
	}
	return layers, nil
}

func (s *sealedImage) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	for _, l := range s.layers {
		if l.desc.Digest == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("the image has no layer %s", h)
}

func (s *sealedImage) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	for _, l := range s.layers {
		if l.diffID == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("the image has no layer with diff-ID %s", h)
}

func hashOf(b []byte) v1.Hash {
	h, _ := v1.NewHash(digestOf(b)) // the form is ours, so it parses
	return h
}
