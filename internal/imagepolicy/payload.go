package imagepolicy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// The types that a payload may have, by who signs it.
const (
	typeSimple = "atomic container signature"
	typeCosign = "cosign container image signature"
)

// payload is what a signature says: containers-signature(5), and cosign's the same with another type.
type payload struct {
	kind, digest, reference string
}

// readPayload reads all that is critical, strictly. What is optional, a date and a tool, is nobody's reason here.
func readPayload(b []byte) (payload, error) {
	top, err := evidence.ObjectOf(b, []string{"critical"}, []string{"optional"})
	if err != nil {
		return payload{}, fmt.Errorf("payload: %w", err)
	}
	critical, err := evidence.ObjectOf(top["critical"], []string{"type", "image", "identity"}, nil)
	if err != nil {
		return payload{}, fmt.Errorf("payload: critical: %w", err)
	}
	var p payload
	err = json.Unmarshal(critical["type"], &p.kind)
	for name, v := range map[string]struct {
		in string
		to *string
	}{"docker-manifest-digest": {"image", &p.digest}, "docker-reference": {"identity", &p.reference}} {
		m, e := evidence.ObjectOf(critical[v.in], []string{name}, nil)
		if e == nil {
			e = json.Unmarshal(m[name], v.to)
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		return payload{}, fmt.Errorf("payload: critical: %w", err)
	}
	return p, nil
}

// named is a reference taken apart; its parts have one spelling each.
type named struct {
	repository string // with its registry
	rest       string // :tag or @digest, "" for neither
}

// readReference reads [docker://]registry/repository[:tag][@sha256:…]; beside a digest the tag is a comment.
func readReference(ref string) (named, error) {
	scopes, err := scopesOf(ref)
	if err != nil {
		return named{}, err
	}
	i := strings.IndexByte(ref, '@')
	if i >= 0 {
		repository, rest, _ := strings.Cut(scopes[0], "@")
		if slash := strings.LastIndexByte(repository, '/'); strings.Contains(repository[slash:], ":") {
			repository = repository[:slash+strings.IndexByte(repository[slash:], ':')]
		}
		return named{repository, "@" + rest}, nil
	}
	slash := strings.LastIndexByte(scopes[0], '/')
	repository, tag, _ := strings.Cut(scopes[0][slash:], ":")
	n := named{repository: scopes[0][:slash] + repository}
	if written := ref[strings.LastIndexByte(ref, '/'):]; strings.Contains(written, ":") {
		n.rest = ":" + tag
	}
	return n, nil
}

// matches reports whether a signature made for signed may be taken for the image that ref asks for, after
// containers-policy.json(5). nil is the default: matchRepoDigestOrExact for simple signing, and for cosign, which signs
// no tags, matchRepository.
func (id *Identity) matches(kind, ref, signed string) bool {
	want, err := readReference(ref)
	if err != nil {
		return false
	}
	got, err := readReference(signed)
	if err != nil {
		return false
	}
	rule := "matchRepoDigestOrExact"
	if kind == SigstoreSigned {
		rule = "matchRepository"
	}
	if id != nil {
		rule = id.Type
	}
	switch rule {
	case "matchRepository":
		return want.repository == got.repository
	case "matchExact":
		return want == got && got.rest != ""
	case "exactReference", "exactRepository":
		if want, err = readReference(id.Reference + id.Repository); err != nil { // one of them is empty
			return false
		}
		return want.repository == got.repository && (rule == "exactRepository" || want.rest == got.rest && got.rest != "")
	case "remapIdentity":
		if rest, ok := strings.CutPrefix(want.repository, id.Prefix); ok && (rest == "" || rest[0] == '/') {
			want.repository = id.SignedPrefix + rest
		}
		fallthrough
	case "matchRepoDigestOrExact":
		// Of an image asked for by digest, that digest is what was signed, under whatever tag.
		return want.repository == got.repository && got.rest != "" && (want.rest == got.rest || strings.HasPrefix(want.rest, "@"))
	}
	return false
}
