//go:build !guest

package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// transports are skopeo's names for what a path can be.
var transports = []string{"oci", "oci-archive", "docker-archive"}

func cutTransport(place string) (transport, name string) {
	for _, t := range transports {
		if name, ok := strings.CutPrefix(place, t+":"); ok {
			return t, name
		}
	}
	return "", place
}

// Load opens an image for [EncryptFor] or [Push]: docker://host/repository…, a directory in OCI layout, the same in a tar,
// or a file from `docker save`, each with one image, or one for o.Platform. What a path is, it tells itself; oci:,
// oci-archive: and docker-archive: may stand before it. Nothing is copied.
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
	_, src = cutTransport(src)
	fi, err := os.Stat(src)
	if err != nil {
		return nil, err
	}
	platform := cmp.Or(o.Platform, defaultPlatform)
	if fi.IsDir() {
		img, err := layoutImage(folder(src), platform)
		if err != nil {
			return nil, fmt.Errorf("%s as an OCI layout: %w", src, err)
		}
		return img, nil
	}
	a, isLayout, err := openArchive(src)
	if err != nil {
		return nil, err
	}
	if isLayout {
		img, err := layoutImage(a, platform)
		if err != nil {
			return nil, fmt.Errorf("%s as an OCI archive: %w", src, err)
		}
		return img, nil
	}
	img, err := tarball.ImageFromPath(src, nil)
	if err != nil {
		return nil, fmt.Errorf("%s as an archive of `docker save` with one image: %w", src, err)
	}
	return img, nil
}

// Write puts img where dst says, and returns what a manifest should name. docker://… is [Push]; oci-archive:FILE, or a name
// in .tar, is [SaveArchive] and oci:DIR, or another name, is [Save], both of which have but a digest to name.
func Write(ctx context.Context, img v1.Image, dst string, o Options) (string, error) {
	transport, name := cutTransport(dst)
	var err error
	switch {
	case strings.Contains(dst, "://"):
		return Push(ctx, img, dst, o)
	case transport == "docker-archive":
		return "", fmt.Errorf("%w: %s: an archive of `docker save` has no annotations, so none for recipients; write oci-archive:%s", ErrFormat, dst, name)
	case transport == "oci-archive" || transport == "" && strings.HasSuffix(name, ".tar"):
		err = SaveArchive(img, name)
	default:
		err = Save(img, name)
	}
	if err != nil {
		return "", err
	}
	d, err := img.Digest()
	return d.String(), err
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

func (o Options) auth() authn.Authenticator {
	if o.Login == nil {
		return authn.Anonymous
	}
	return &authn.Basic{Username: o.Login.User, Password: o.Login.Password}
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
