package image

import (
	"fmt"
	"strings"
)

const (
	emptyConfig = "application/vnd.oci.empty.v1+json"
	titleKey    = "org.opencontainers.image.title"
	unpackKey   = "io.deis.oras.content.unpack" // "true": ORAS packed a directory

	maxFileName  = 4096 // bytes
	maxFileDepth = 128
)

// isArtifact reports whether the manifest is one of files and no image (OCI image-spec, manifest.md, "Guidelines for Artifact
// Usage"). One with the config of an image is an image, whatever else it calls itself: so its diff-IDs count.
func (d *document) isArtifact() bool {
	return d.Config.MediaType == emptyConfig || d.ArtifactType != "" && d.Config.MediaType != ociConfig && d.Config.MediaType != dockerConfig
}

// describeArtifact fills in the layers of an artifact. Its config says nothing and is not fetched.
func (i *Image) describeArtifact(doc *document) error {
	i.Artifact = true
	i.Layers = make([]Layer, len(doc.Layers))
	files, dirs := map[string]bool{}, map[string]bool{}
	for n, d := range doc.Layers {
		l, err := artifactLayer(d)
		if err == nil && l.File != "" {
			err = addName(l.File, files, dirs)
		}
		if err != nil {
			return &Error{i.URI, n, err}
		}
		i.Layers[n] = l
	}
	return nil
}

// artifactLayer reads one layer as ORAS writes it: one with a title is a file of that name, of whatever type (ORAS
// calls any file a tar unless told otherwise), and an archive only if it says that it is to be unpacked, or has no title.
func artifactLayer(d descriptor) (Layer, error) {
	l := Layer{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	var err error
	if title, named := d.Annotations[titleKey]; named && d.Annotations[unpackKey] != "true" {
		if l.File, err = fileName(title); err != nil {
			return l, err
		}
		l.Encrypted = strings.HasSuffix(d.MediaType, encryptedSuffix)
	} else if l.comp, l.Encrypted, err = layerType(d.MediaType); err != nil {
		return l, fmt.Errorf("%w; a file has its name in the annotation %s", err, titleKey)
	}
	if l.Encrypted {
		l.enc, err = parseSealing(d.Annotations)
	}
	return l, err
}

// fileName is a title if that is a path below a directory as it is written: what a tar would have to be cleaned of is refused.
func fileName(title string) (string, error) {
	if len(title) > maxFileName {
		return "", fmt.Errorf("%w: a title of %d bytes, at most %d are read", ErrTooBig, len(title), maxFileName)
	}
	if n := strings.Count(title, "/"); n >= maxFileDepth {
		return "", fmt.Errorf("%w: a title %d directories deep, at most %d are unpacked", ErrTooBig, n, maxFileDepth)
	}
	for p := range strings.SplitSeq(title, "/") {
		switch {
		case p == "" || p == "." || p == ".." || strings.ContainsRune(p, 0) || strings.HasPrefix(p, ".wh."):
			return "", fmt.Errorf("%w: title %.200q is no relative path of a file", ErrUnsafe, title)
		case len(p) > 255:
			return "", fmt.Errorf("%w: title %.80q…: a name component of %d bytes", ErrTooBig, title, len(p))
		}
	}
	return title, nil
}

// addName refuses a name that is there twice, or once as a file and once as a directory.
func addName(name string, files, dirs map[string]bool) error {
	if files[name] || dirs[name] {
		return fmt.Errorf("%w: title %.200q is there twice", ErrUnsafe, name)
	}
	files[name] = true
	for n, c := range []byte(name) {
		if c != '/' {
			continue
		}
		if files[name[:n]] {
			return fmt.Errorf("%w: title %.200q is below a file", ErrUnsafe, name)
		}
		dirs[name[:n]] = true
	}
	return nil
}
