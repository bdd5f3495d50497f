package mkimage

import (
	"crypto/sha512"
	"fmt"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/manifest"
)

// Files of the initramfs beside /init, which reads them before it leaves the initramfs.
const (
	LineName     = "cmdline"       // of a UKI: the command line that it is started with
	ManifestName = "manifest.json" // the manifest of the source image:
)

// A file on its way into an image.
type file struct {
	name string
	data []byte
	mode uint64 // in an archive
}

// bake prepares o for a manifest that is part of the image: it is the source, and pinned.
func (o *Options) bake() error {
	image := cmdline.Source{Kind: cmdline.Image}.String()
	if o.Manifest == nil {
		if o.ManifestSource == image {
			return fmt.Errorf("manifest source %s: give the manifest to bake in", image)
		}
		if o.Resources != nil {
			return fmt.Errorf("resources %q: a policy releases them to a manifest, and none is baked in; ampoule policy makes it for manifests that are not", o.Resources)
		}
		return nil
	}
	if o.ManifestSource != "" && o.ManifestSource != image {
		return fmt.Errorf("the manifest is baked in, so that its source is %s and not %s", image, o.ManifestSource)
	}
	allow := o.Allow
	if allow == nil {
		allow = DefaultAllow(o.Profile)
	}
	if _, err := manifest.Parse(o.Manifest, func(name string) bool { return slices.Contains(allow, name) }); err != nil {
		return fmt.Errorf("the manifest to bake in: %w", err)
	}
	sum := sha512.Sum384(o.Manifest)
	o.ManifestSource, o.ManifestSHA384 = image, sum[:]
	return nil
}

// baked is what goes into the initramfs beside /init.
func (o Options) baked() []file {
	if o.Manifest == nil {
		return nil
	}
	return []file{{ManifestName, o.Manifest, 0o444}}
}
