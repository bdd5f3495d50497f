package mkimage

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/keypolicy"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
)

// PolicyDir has what brokers take, as ampoule policy writes it: keypolicy.Policy.Files.
const PolicyDir = "policy"

// policy writes what brokers take, from what the image measures to, and returns the names of the files: who may have which
// resource is among it where resources are named, and there is a manifest in the image to give them to.
func (o Options) policy(m *measure.Measurements) ([]string, error) {
	var p *keypolicy.Policy
	var err error
	if o.Resources == nil {
		p, err = keypolicy.OfImage(m)
	} else {
		digest := manifest.InitdataDigest(manifest.Wrap(o.Manifest))
		p, err = keypolicy.Make(m, keypolicy.Options{Manifests: [][32]byte{digest}, Resources: o.Resources})
	}
	if errors.Is(err, keypolicy.ErrNothing) && o.Resources == nil {
		fmt.Fprintf(o.Progress, "build: there are no reference values: %v\n", err)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Left)) {
		fmt.Fprintf(o.Progress, "build: by the policy, nothing is released to %s: %s\n", name, p.Left[name])
	}
	files, err := p.Files()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.Out, PolicyDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for name, b := range files {
		if err := writeFile(filepath.Join(dir, name), b); err != nil {
			return nil, err
		}
	}
	return filesBelow(o.Out, PolicyDir)
}
