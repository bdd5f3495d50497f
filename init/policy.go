package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/imagepolicy"
	"github.com/ampoule-vm/ampoule/internal/kbs"
)

// maxPolicyKeys is how many keys an image policy may have fetched.
const maxPolicyKeys = 32

// admission is an image policy and the keys that it names, by their path at the broker. They are public keys.
type admission struct {
	*imagepolicy.Policy
	keys map[string][]byte
}

func (r *run) admitInline(ctx context.Context) error {
	if p := r.doc.InlinePolicy; p != nil {
		return r.admitBy(ctx, "of the manifest", p.JSON, p.Broker)
	}
	return nil
}

// admitBy judges the images by their references, and fetches the keys that their signatures must be of from the broker
// that the policy is of, or the manifest's one.
func (r *run) admitBy(ctx context.Context, name string, policy []byte, broker string) error {
	p, err := imagepolicy.Parse(policy)
	if err != nil {
		return fmt.Errorf("image policy %s: %w", name, err)
	}
	r.private.Info("image policy", "from", name, "sha256", fmt.Sprintf("%x", sha256.Sum256(policy)))
	var errs []error
	var wants []kbs.Want
	seen := map[string]bool{}
	for _, in := range r.inputs {
		if err := p.Check(in.want.URI); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", in.name, err))
		}
		for _, path := range p.KeyPaths(in.want.URI) {
			if !seen[path] {
				seen[path] = true
				wants = append(wants, kbs.Want{Broker: broker, Path: path})
			}
		}
	}
	if len(wants) > maxPolicyKeys {
		errs = append(errs, fmt.Errorf("image policy %s: names %d keys, at most %d are fetched", name, len(wants), maxPolicyKeys))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r.policy = &admission{p, map[string][]byte{}}
	if len(wants) == 0 {
		return nil
	}
	grant, err := r.ask(ctx, wants)
	if err != nil {
		return fmt.Errorf("keys of image policy %s: %w", name, err)
	}
	defer grant.Zero()
	for _, w := range wants {
		r.policy.keys[w.Path] = bytes.Clone(grant.Key(w.Broker, w.Path))
	}
	return nil
}

// verified holds an image against the signatures that the policy requires of it: its manifest must be signed, or the
// index that led there. Where they cannot be had is no error of its own, but part of why none was found.
func (r *run) verified(ctx context.Context, in *input) error {
	if r.policy == nil {
		return nil
	}
	uri := in.want.URI
	cosign, simple := r.policy.Needs(uri)
	if !cosign && !simple {
		return nil
	}
	claim := imagepolicy.Claim{Reference: uri, Digests: []string{in.image.ManifestDigest}}
	if in.image.Digest != in.image.ManifestDigest {
		claim.Digests = append(claim.Digests, in.image.Digest)
	}
	base, o, err := r.lookaside(uri)
	if err != nil {
		return fmt.Errorf("%s: %w", in.name, err)
	}
	var lost []error
	for _, digest := range claim.Digests {
		if cosign {
			all, err := in.image.Signatures(ctx, digest)
			for _, s := range all {
				claim.Cosign = append(claim.Cosign, imagepolicy.Cosign(s))
			}
			lost = append(lost, err)
		}
		if simple && base != "" {
			all, err := in.image.Lookaside(ctx, base, digest, o)
			claim.Simple = append(claim.Simple, all...)
			lost = append(lost, err)
		}
	}
	if simple && base == "" {
		lost = append(lost, errors.New("images.lookaside names no place for its simple signatures"))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = r.policy.Verify(claim, func(path string) []byte { return r.policy.keys[path] }, time.Now())
	if err != nil {
		if why := errors.Join(lost...); why != nil {
			err = fmt.Errorf("%w; of those not found: %w", err, why)
		}
		return fmt.Errorf("%s: %w", in.name, err)
	}
	r.private.Info("signatures hold", "image", in.name, "digests", claim.Digests, "cosign", len(claim.Cosign), "simple", len(claim.Simple))
	return nil
}

// lookaside is where the manifest says that an image's simple signatures are, by the longest scope, and how that server
// is reached: as a registry would be, without a login. "" where it says nothing.
func (r *run) lookaside(uri string) (base string, o image.Options, err error) {
	host, repository, _ := strings.Cut(strings.TrimPrefix(uri, "docker://"), "/")
	repository, _, _ = strings.Cut(repository, "@")
	repository, _, _ = strings.Cut(repository, ":")
	name := strings.ToLower(host) + "/" + repository + "/"
	best := ""
	for _, l := range r.doc.Lookaside {
		if scope := strings.ToLower(l.Scope) + "/"; len(scope) > len(best) && strings.HasPrefix(name, scope) {
			base, best = l.URL, scope
		}
	}
	if base == "" {
		return "", o, nil
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", o, err
	}
	o, err = r.imageOptions("docker://" + u.Host + "/")
	o.Login = nil
	return base, o, err
}
