package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/imagepolicy"
	"github.com/ampoule-vm/ampoule/internal/kbs"
)

// maxPolicyKeys is how many keys an image policy may have fetched.
const maxPolicyKeys = 32

// admission is an image policy and the keys that it names, by their path at the broker. They are public keys.
type admission struct {
	*imagepolicy.Policy
	digest [32]byte // SHA-256 of its text
	keys   map[string][]byte
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
	digest := sha256.Sum256(policy)
	r.private.Info("image policy", "from", name, "sha256", fmt.Sprintf("%x", digest))
	var errs []error
	var wants []kbs.Want
	seen := map[string]bool{}
	for _, in := range r.inputs {
		if in.want.IsFile() {
			continue // a policy is of images
		}
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
	r.policy = &admission{p, digest, map[string][]byte{}}
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

// verified holds an image against the signatures that the policy requires of it, before a key is asked for.
func (r *run) verified(ctx context.Context, in *input) error {
	if r.policy == nil {
		return nil
	}
	base, o, err := r.lookaside(in.want.URI)
	if err != nil {
		return fmt.Errorf("%s: images.lookaside: %w", in.name, err)
	}
	claim, err := r.policy.VerifyImage(ctx, in.image, base, o, func(path string) []byte { return r.policy.keys[path] })
	if err != nil {
		return fmt.Errorf("%s: %w", in.name, err)
	}
	if n := len(claim.Cosign) + len(claim.Simple); n > 0 {
		r.private.Info("signatures hold", "image", in.name, "digests", claim.Digests, "found", n)
	}
	return nil
}

// lookaside is where the manifest says that an image's simple signatures are, by the longest scope, and how that server
// is reached: as a registry would be, though package image logs in to none. "" where it says nothing.
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
	return base, o, err
}
