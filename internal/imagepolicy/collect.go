package imagepolicy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ampoule-vm/ampoule/image"
)

// VerifyImage fetches the signatures that the policy requires of an image, if any, and verifies them: cosign's from the
// image's registry, simple ones from lookaside, a URL that may be empty, reached as o says. It returns what was found.
// That signatures cannot be fetched is no error of its own, but is said where one is missing.
func (p *Policy) VerifyImage(ctx context.Context, img *image.Image, lookaside string, o image.Options, key func(path string) []byte) (Claim, error) {
	c := Claim{Reference: img.URI, Digests: []string{img.ManifestDigest}}
	if img.Digest != img.ManifestDigest {
		c.Digests = append(c.Digests, img.Digest)
	}
	cosign, simple := p.Needs(c.Reference)
	var lost []error
	for _, digest := range c.Digests {
		if cosign {
			all, err := img.Signatures(ctx, digest)
			for _, s := range all {
				c.Cosign = append(c.Cosign, Cosign(s))
			}
			lost = append(lost, err)
		}
		if simple && lookaside != "" {
			all, err := img.Lookaside(ctx, lookaside, digest, o)
			c.Simple = append(c.Simple, all...)
			lost = append(lost, err)
		}
	}
	if simple && lookaside == "" {
		lost = append(lost, errors.New("no lookaside is named for its simple signatures"))
	}
	err := p.Verify(c, key, time.Now())
	if why := errors.Join(lost...); err != nil && why != nil {
		err = fmt.Errorf("%w; not found: %w", err, why)
	}
	return c, err
}
