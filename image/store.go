//go:build !guest

package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Load opens an image for [Encrypt] or [Push]: docker://host/repository…, a directory in
// OCI layout that holds one image, or a file from `docker save`. Nothing is copied.
func Load(ctx context.Context, src string, o Options) (v1.Image, error) {
	if strings.Contains(src, "://") {
		ref, _, err := parseURI(src, o.PlainHTTP)
		if err != nil {
			return nil, err
		}
		p, err := v1.ParsePlatform(cmp.Or(o.Platform, defaultPlatform))
		if err != nil {
			return nil, err
		}
		return remote.Image(ref, append(remoteOptions(ctx, o), remote.WithPlatform(*p))...)
	}
	fi, err := os.Stat(src)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		img, err := tarball.ImageFromPath(src, nil)
		if err != nil {
			return nil, fmt.Errorf("%s as an archive of `docker save` with one image: %w", src, err)
		}
		return img, nil
	}
	idx, err := layout.ImageIndexFromPath(src)
	if err != nil {
		return nil, fmt.Errorf("%s as an OCI layout: %w", src, err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", src, err)
	}
	if len(m.Manifests) != 1 || !m.Manifests[0].MediaType.IsImage() {
		return nil, fmt.Errorf("%s: %w: the layout has %d manifests; one image is wanted", src, ErrFormat, len(m.Manifests))
	}
	return idx.Image(m.Manifests[0].Digest)
}

// Save writes img to dir, which must not exist, as an OCI layout.
func Save(img v1.Image, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write OCI layout %s: %w", dir, err), os.RemoveAll(dir))
	}
	return nil
}

// Push uploads img to uri, docker://host/repository[:tag], anonymously, and returns the
// reference by digest that a manifest should name.
func Push(ctx context.Context, img v1.Image, uri string, o Options) (pinned string, err error) {
	ref, byDigest, err := parseURI(uri, o.PlainHTTP)
	if err != nil {
		return "", err
	}
	if byDigest {
		return "", fmt.Errorf("%w: push to %q: name a tag, the digest follows from the image", ErrFormat, uri)
	}
	if err := remote.Write(ref, img, remoteOptions(ctx, o)...); err != nil {
		return "", fmt.Errorf("push to %s: %w", uri, err)
	}
	d, err := img.Digest()
	if err != nil {
		return "", err
	}
	return uri + "@" + d.String(), nil
}

func remoteOptions(ctx context.Context, o Options) []remote.Option {
	inner := o.Transport
	if inner == nil {
		inner = newTransport()
	}
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuth(o.auth()),
		remote.WithTransport(&schemeGuard{inner, o.PlainHTTP}),
	}
}
