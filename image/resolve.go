package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

const (
	defaultPlatform = "linux/amd64"

	maxManifest = 4 << 20 // bytes
	maxConfig   = 8 << 20 // bytes
	maxLayers   = 512
	maxBlob     = 1 << 40 // bytes; what a descriptor may claim
)

// Resolve reads what uri names, docker://host[:port]/repository[:tag][@sha256:…]: the
// manifest (through an index, the one for o.Platform) and the config, each checked
// against its digest. No layer is fetched. Errors are [*Error].
func Resolve(ctx context.Context, uri string, o Options) (*Image, error) {
	i, err := resolve(ctx, uri, o)
	if err != nil {
		if _, ok := err.(*Error); ok {
			return nil, err
		}
		return nil, &Error{uri, -1, err}
	}
	return i, nil
}

func resolve(ctx context.Context, uri string, o Options) (*Image, error) {
	platform := cmp.Or(o.Platform, defaultPlatform)
	ref, pinned, err := parseURI(uri, o.PlainHTTP)
	if err != nil {
		return nil, err
	}
	reg := openRegistry(ref.Context(), o)
	i := &Image{URI: uri, Pinned: pinned, reg: reg, mem: o.Buffers}
	if i.mem == nil {
		i.mem = NewBuffers()
	}

	body, mediaType, err := reg.manifest(ctx, ref.Identifier(), maxManifest)
	if err != nil {
		return nil, err
	}
	i.Digest = digestOf(body)
	doc, err := parseDocument(body, mediaType)
	if err != nil {
		return nil, err
	}
	if doc.isIndex() {
		d, err := doc.choose(platform)
		if err != nil {
			return nil, err
		}
		if body, mediaType, err = reg.manifest(ctx, d.Digest, min(d.Size, maxManifest)); err != nil {
			return nil, err
		}
		if doc, err = parseDocument(body, mediaType); err != nil {
			return nil, err
		}
		if doc.isIndex() {
			return nil, fmt.Errorf("%w: an index inside an index", ErrFormat)
		}
	}
	i.ManifestDigest = digestOf(body)
	i.ConfigDigest = doc.Config.Digest

	if doc.isArtifact() {
		err = i.describeArtifact(doc)
	} else {
		var config []byte
		if config, err = reg.small(ctx, doc.Config.Digest, doc.Config.Size); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
		err = i.describe(doc, config, platform)
	}
	if err != nil {
		return nil, err
	}
	i.PlainHTTP = reg.guard.usedPlain.Load()
	return i, nil
}

// descriptor is OCI's, as far as it is read here.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	} `json:"platform"`
}

func (d descriptor) check(what string, max int64) error {
	if !isDigest(d.Digest) {
		return fmt.Errorf("%w: %s digest %.80q is not sha256 and 64 hex digits", ErrFormat, what, d.Digest)
	}
	if d.Size < 0 || d.Size > max {
		return fmt.Errorf("%w: %s of %d bytes, at most %d are read", ErrTooBig, what, d.Size, max)
	}
	return nil
}

// document is a manifest or an index. One type for both, so that a document that is both
// at once is noticed.
type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	ArtifactType  string       `json:"artifactType"`
	Config        *descriptor  `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`
}

func (d *document) isIndex() bool { return d.Config == nil }

// parseDocument reads a manifest or index. The document must agree with the type it was
// sent under: whoever signed one may not be shown the other.
func parseDocument(body []byte, mediaType string) (*document, error) {
	var d document
	if err := one(body, &d); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrFormat, err)
	}
	if d.SchemaVersion != 2 {
		return nil, fmt.Errorf("%w: manifest schema %d, want 2", ErrFormat, d.SchemaVersion)
	}
	if d.MediaType != "" && mediaType != "" && d.MediaType != mediaType {
		return nil, fmt.Errorf("%w: manifest says it is %.100q, the registry says %.100q", ErrFormat, d.MediaType, mediaType)
	}
	switch t := cmp.Or(d.MediaType, mediaType); t {
	case ociManifest, dockerManifest:
		if d.Config == nil || d.Manifests != nil {
			return nil, fmt.Errorf("%w: an image manifest has one config and no manifests", ErrFormat)
		}
		return &d, d.checkManifest()
	case ociIndex, dockerIndex:
		if d.Config != nil || d.Layers != nil {
			return nil, fmt.Errorf("%w: an index has neither config nor layers", ErrFormat)
		}
		return &d, nil
	default:
		return nil, fmt.Errorf("%w: manifest type %.100q", ErrFormat, t)
	}
}

func (d *document) checkManifest() error {
	if t := d.Config.MediaType; t != ociConfig && t != dockerConfig && !d.isArtifact() {
		return fmt.Errorf("%w: config type %.100q is not that of an image", ErrFormat, t)
	}
	if err := d.Config.check("config", maxConfig); err != nil {
		return err
	}
	if len(d.Layers) > maxLayers {
		return fmt.Errorf("%w: %d layers, at most %d are read", ErrTooBig, len(d.Layers), maxLayers)
	}
	for n, l := range d.Layers {
		if err := l.check(fmt.Sprintf("layer %d", n), maxBlob); err != nil {
			return err
		}
	}
	return nil
}

// choose picks the image for platform from an index.
func (d *document) choose(platform string) (descriptor, error) {
	var best *descriptor
	var offered []string
	for n := range d.Manifests {
		m := &d.Manifests[n]
		if m.Platform == nil {
			continue
		}
		p := m.Platform.OS + "/" + m.Platform.Architecture
		if machine, variant := splitPlatform(platform); p == machine &&
			(best == nil || betterVariant(m.Platform.Architecture, variant, m.Platform.Variant, best.Platform.Variant)) {
			best = m
		}
		if len(offered) < 16 {
			offered = append(offered, strings.TrimSuffix(p+"/"+m.Platform.Variant, "/"))
		}
	}
	if best == nil && len(d.Manifests) == 1 && d.Manifests[0].Platform == nil {
		best = &d.Manifests[0]
	}
	if best == nil {
		return descriptor{}, fmt.Errorf("%w: the index has %.400q, want %s", ErrPlatform, strings.Join(offered, " "), platform)
	}
	return *best, best.check("manifest", maxManifest)
}

// splitPlatform takes os/architecture[/variant] apart.
func splitPlatform(p string) (machine, variant string) {
	if i := strings.IndexByte(p, '/'); i >= 0 {
		if j := strings.IndexByte(p[i+1:], '/'); j >= 0 {
			return p[:i+1+j], p[i+j+2:]
		}
	}
	return p, ""
}

// betterVariant reports whether an image for CPUs of variant a is nearer to what is wanted than one for b: the newest that
// is not newer than wanted, else the oldest. Of equal ones the first stays.
func betterVariant(arch, wanted, a, b string) bool {
	w, x, y := variantLevel(arch, wanted), variantLevel(arch, a), variantLevel(arch, b)
	switch {
	case (x <= w) != (y <= w):
		return x <= w
	case x <= w:
		return x > y
	}
	return x < y
}

// variantLevel orders variants of an architecture (v1, v2, …); none is the one that all its processors are.
func variantLevel(arch, variant string) int {
	base := map[string]int{"amd64": 1, "arm": 7, "arm64": 8}[arch]
	if variant == "" {
		return base
	}
	if n, err := strconv.ParseUint(strings.TrimPrefix(variant, "v"), 10, 8); err == nil {
		return int(n)
	}
	return 1 << 8 // unknown: only if there is nothing else
}

// describe fills in what manifest and config say about run and layers.
func (i *Image) describe(doc *document, config []byte, platform string) error {
	var c struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Config       struct {
			Entrypoint []string
			Cmd        []string
			Env        []string
			WorkingDir string
			User       string
			Labels     map[string]string
		} `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := one(config, &c); err != nil {
		return fmt.Errorf("%w: config: %w", ErrFormat, err)
	}
	if machine, _ := splitPlatform(platform); c.OS+c.Architecture != "" && c.OS+"/"+c.Architecture != machine {
		return fmt.Errorf("%w: the image is for %.80q, want %s", ErrPlatform, c.OS+"/"+c.Architecture, machine)
	}
	if c.RootFS.Type != "layers" || len(c.RootFS.DiffIDs) != len(doc.Layers) {
		return fmt.Errorf("%w: config has %d diff-IDs of type %.40q for %d layers", ErrFormat, len(c.RootFS.DiffIDs), c.RootFS.Type, len(doc.Layers))
	}
	i.Config = Config(c.Config)
	i.Layers = make([]Layer, len(doc.Layers))
	for n, d := range doc.Layers {
		l := Layer{MediaType: d.MediaType, Digest: d.Digest, DiffID: c.RootFS.DiffIDs[n], Size: d.Size}
		var err error
		if l.comp, l.Encrypted, err = layerType(d.MediaType); err != nil {
			return &Error{i.URI, n, err}
		}
		if !isDigest(l.DiffID) {
			return &Error{i.URI, n, fmt.Errorf("%w: diff-ID %.80q is not sha256 and 64 hex digits", ErrFormat, l.DiffID)}
		}
		if l.Encrypted {
			if l.enc, err = parseSealing(d.Annotations); err != nil {
				return &Error{i.URI, n, err}
			}
		}
		i.Layers[n] = l
	}
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return formatDigest(sum[:])
}

func formatDigest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

// isDigest reports whether s is sha256: and 64 lower-case hex digits.
func isDigest(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(h) == 2*sha256.Size && strings.Trim(h, "0123456789abcdef") == ""
}
