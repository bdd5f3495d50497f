// Package imagepolicy reads an image policy, a containers-policy.json, and decides by it.
//
// It is the subset of wire/SPEC.md §5.3. A policy is read in full and strictly. [Policy.Check] judges an image by its
// reference, before anything is asked of a registry; [Policy.Verify] by its signatures: cosign's with a public key, and
// simple signing with OpenPGP keys. What a policy asks and this build cannot do is refused for the images that it is
// asked of: a check that is not made must not look like one that held.
package imagepolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// The bounds of a policy: its bytes, the scopes of a transport, and the requirements of a scope.
const (
	MaxSize         = 256 << 10
	maxScopes       = 1024
	maxRequirements = 16
)

// The kinds of requirements.
const (
	InsecureAcceptAnything = "insecureAcceptAnything"
	Reject                 = "reject"
	SignedBy               = "signedBy"       // simple signing with GPG keys
	SigstoreSigned         = "sigstoreSigned" // cosign with a public key; neither Fulcio nor Rekor
)

// A Policy says what is required of an image, by where it comes from. Only Parse makes one.
type Policy struct {
	base       []Requirement
	transports map[string]map[string][]Requirement // by transport, then by scope; "docker" is the one we pull from
}

// A Requirement is one thing that must hold of an image.
type Requirement struct {
	Type string // one of the kinds above

	KeyType string // SignedBy: "GPGKeys"
	// Exactly one of them, for SignedBy and SigstoreSigned: a file or kbs:///repository/type/tag, or the key itself,
	// which for SigstoreSigned is PEM.
	KeyPath string
	KeyData []byte

	Identity *Identity // what the signature must be of; nil: the verifier's default
}

// An Identity is a signedIdentity: which reference inside a signature is right for an image.
type Identity struct {
	Type                 string // matchExact, matchRepoDigestOrExact, matchRepository, exactReference, exactRepository, remapIdentity
	Reference            string // of exactReference
	Repository           string // of exactRepository
	Prefix, SignedPrefix string // of remapIdentity
}

// Why Check refuses an image, beside its text.
var (
	ErrRejected    = errors.New("rejected by the image policy")
	ErrUnsupported = errors.New("not supported in this build")
)

// Parse reads a policy of at most MaxSize bytes.
func Parse(b []byte) (*Policy, error) {
	p, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	return p, nil
}

func parse(b []byte) (*Policy, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%d bytes, at most %d", len(b), MaxSize)
	}
	top, err := evidence.ObjectOf(b, []string{"default"}, []string{"transports"})
	if err != nil {
		return nil, err
	}
	p := &Policy{transports: map[string]map[string][]Requirement{}}
	if p.base, err = requirements(top["default"]); err != nil {
		return nil, fmt.Errorf("default%w", err)
	}
	if top["transports"] == nil {
		return p, nil
	}
	transports, err := evidence.Object(top["transports"])
	if err != nil {
		return nil, fmt.Errorf("transports: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(transports)) {
		scopes, err := evidence.Object(transports[name])
		if err != nil {
			return nil, fmt.Errorf("transports.%.40s: %w", name, err)
		}
		if len(scopes) > maxScopes {
			return nil, fmt.Errorf("transports.%.40s: %d scopes, at most %d", name, len(scopes), maxScopes)
		}
		p.transports[name] = map[string][]Requirement{}
		for _, scope := range slices.Sorted(maps.Keys(scopes)) {
			list, err := requirements(scopes[scope])
			if err != nil {
				return nil, fmt.Errorf("transports.%.40s[%.200q]%w", name, scope, err)
			}
			if name == "docker" {
				if err := checkScope(scope); err != nil {
					return nil, fmt.Errorf("transports.docker[%.200q]: %w", scope, err)
				}
			}
			p.transports[name][scope] = list
		}
	}
	return p, nil
}

// requirements reads a list of them. An error begins with its place in the list, or a colon.
func requirements(raw json.RawMessage) ([]Requirement, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf(": is not a list: %w", err)
	}
	if len(list) == 0 || len(list) > maxRequirements {
		return nil, fmt.Errorf(": %d requirements, want 1 to %d", len(list), maxRequirements)
	}
	all := make([]Requirement, len(list))
	for i, one := range list {
		var err error
		if all[i], err = requirement(one); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return all, nil
}
