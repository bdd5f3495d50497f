package imagepolicy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Check says whether the policy could let an image be used, by its reference alone: signatures are Verify's to judge. An
// error wraps ErrRejected, or ErrUnsupported where a key is in a file, which a guest has none of. ref is as Decide takes it.
func (p *Policy) Check(ref string) error {
	list, scope, err := p.decide(ref)
	if err != nil {
		return fmt.Errorf("image %.300q: %w: %w", ref, ErrRejected, err)
	}
	for _, q := range list { // all must hold
		switch q.Type {
		case InsecureAcceptAnything:
		case Reject:
			return fmt.Errorf("image %.300q: %w (%s)", ref, ErrRejected, scope)
		default:
			if path := q.KeyPath; path != "" && !kbsPath(path) {
				return fmt.Errorf("image %.300q: the image policy asks for %s with the key in %.200q (%s), want %srepository/type/tag or keyData: %w", ref, q.Type, path, scope, kbsScheme, ErrUnsupported)
			}
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("image %.300q: %w: nothing is said of it", ref, ErrRejected)
	}
	return nil
}

// Decide returns what is required of an image, all of it: ref is [docker://]registry/repository[:tag][@sha256:…]. What
// is no reference is rejected.
//
// The scope that says most is the one that counts: the whole reference, then its repository, then each path above it
// down to the registry, then *.domain for each domain that the registry is in (without its port), then "", then
// default. Of a reference with tag and digest, the tag is a comment: the scope repository:tag is not looked for.
func (p *Policy) Decide(ref string) []Requirement {
	list, _, err := p.decide(ref)
	if err != nil {
		return []Requirement{{Type: Reject}}
	}
	return list
}

// decide is Decide, and where in the policy it was found.
func (p *Policy) decide(ref string) ([]Requirement, string, error) {
	scopes, err := scopesOf(ref)
	if err != nil {
		return nil, "", err
	}
	for _, scope := range scopes {
		if list, ok := p.transports["docker"][scope]; ok {
			return slices.Clone(list), fmt.Sprintf("transports.docker[%.300q]", scope), nil
		}
	}
	return slices.Clone(p.base), "default", nil
}

// scopesOf are the scopes of a reference, the narrowest first.
func scopesOf(ref string) ([]string, error) {
	name, digest, pinned := strings.Cut(strings.TrimPrefix(ref, "docker://"), "@")
	host, path, ok := strings.Cut(name, "/")
	path, tag, tagged := strings.Cut(path, ":")
	if !ok || host == "" || path == "" || strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || strings.Contains(path, "//") ||
		strings.ContainsAny(ref, " \t\r\n*") || tagged && tag == "" || pinned && digest == "" || strings.ContainsAny(tag+digest, "/@") || len(ref) > 1024 {
		return nil, errors.New("is no image reference; want registry/repository[:tag][@sha256:…]")
	}
	host, path = hub(strings.ToLower(host), path)
	repository := host + "/" + path
	var scopes []string
	switch {
	case pinned && tagged:
		scopes = []string{repository + ":" + tag + "@" + digest, repository + "@" + digest}
	case pinned:
		scopes = []string{repository + "@" + digest}
	case tagged:
		scopes = []string{repository + ":" + tag}
	default:
		scopes = []string{repository + ":latest"}
	}
	for at := repository; ; {
		scopes = append(scopes, at)
		i := strings.LastIndexByte(at, '/')
		if i < 0 {
			break
		}
		at = at[:i]
	}
	if !strings.HasPrefix(host, "[") { // an IPv6 address is in no domain
		domain, _, _ := strings.Cut(host, ":")
		for {
			_, above, ok := strings.Cut(domain, ".")
			if !ok {
				break
			}
			domain = above
			scopes = append(scopes, "*."+domain)
		}
	}
	return append(scopes, ""), nil
}

const kbsScheme = "kbs:///"

// kbsPath reports whether a keyPath names a resource of a key broker, and leaves the broker open (wire/SPEC.md §1.10).
func kbsPath(s string) bool {
	path, ok := strings.CutPrefix(s, kbsScheme)
	parts := strings.Split(path, "/")
	for _, part := range parts {
		ok = ok && part != "" && part[0] != '.' && len(part) <= 128 &&
			strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == ""
	}
	return ok && len(parts) == 3
}

// hub gives Docker Hub its one name: otherwise a scope for it would miss the other two.
func hub(host, path string) (string, string) {
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return host, path
}

// checkScope refuses scopes that no reference could ever have: a rule that never holds is a mistake.
func checkScope(scope string) error {
	if scope == "" {
		return nil
	}
	domain, wildcard := strings.CutPrefix(scope, "*.")
	host, _, _ := strings.Cut(scope, "/")
	switch {
	case wildcard && (domain == "" || strings.ContainsAny(domain, "/:@*")):
		return errors.New("want *.domain, without port and path")
	case !wildcard && strings.Contains(scope, "*"):
		return errors.New("a wildcard stands in front of a domain, as in *.example.org, and nowhere else")
	case strings.ToLower(host) != host:
		return errors.New("a registry is written in lower case")
	case strings.HasSuffix(scope, "/") || strings.HasPrefix(scope, "/") || strings.Contains(scope, "//"):
		return errors.New("has an empty part; want registry/repository without a scheme, or a part of it")
	}
	return nil
}
