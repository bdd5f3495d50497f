package demo

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestMediaTypes: an image is OCI's throughout, or other tools refuse it.
func TestMediaTypes(t *testing.T) {
	img, err := Image(map[string]string{"algo": "text"}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.MediaType != types.OCIManifestSchema1 || m.Config.MediaType != types.OCIConfigJSON || m.Layers[0].MediaType != types.OCILayerZStd {
		t.Errorf("%s with %s and %s", m.MediaType, m.Config.MediaType, m.Layers[0].MediaType)
	}
}
