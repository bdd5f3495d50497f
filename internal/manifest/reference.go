package manifest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
	alnum  = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + digits
)

// checkReference judges docker://host[:port]/repository[:tag][@sha256:…] and reports whether it names a digest.
func checkReference(uri string) (pinned bool, err error) {
	rest, ok := strings.CutPrefix(uri, "docker://")
	if !ok {
		return false, fmt.Errorf("%.200q: want docker://host/repository@sha256:…", uri)
	}
	rest, digest, pinned := strings.Cut(rest, "@")
	if pinned {
		if err := checkDigest(digest); err != nil {
			return false, fmt.Errorf("%.200q: %w", uri, err)
		}
	}
	host, repository, named := strings.Cut(rest, "/")
	if !named || !strings.ContainsAny(host, ".:") && host != "localhost" {
		// Elsewhere that means Docker Hub; here a registry is always named.
		return false, fmt.Errorf("%.200q: names no registry; want docker://host/repository", uri)
	}
	if err := checkHost(host); err != nil {
		return false, fmt.Errorf("%.200q: %w", uri, err)
	}
	repository, tag, tagged := strings.Cut(repository, ":")
	if len(repository) < 2 || len(repository) > 255 {
		return false, fmt.Errorf("%.200q: a repository of %d characters; want 2 to 255", uri, len(repository))
	}
	for part := range strings.SplitSeq(repository, "/") {
		if !word(part, lower+digits, "._-") {
			return false, fmt.Errorf("%.200q: %q in the repository; want lower-case letters, digits and inner . _ -", uri, part)
		}
	}
	if tagged && (tag == "" || len(tag) > 127 || !word(tag[:1], alnum+"_", "") || !word(tag, alnum+"_.-", "")) {
		return false, fmt.Errorf("%.200q: %.130q is not a tag", uri, tag)
	}
	return pinned, nil
}

// word reports whether s begins and ends with one of outer and has only those and inner between.
func word(s, outer, inner string) bool {
	return s != "" && strings.Contains(outer, s[:1]) && strings.Contains(outer, s[len(s)-1:]) && strings.Trim(s, outer+inner) == ""
}

func checkDigest(s string) error {
	h, ok := strings.CutPrefix(s, "sha256:")
	if b, err := hex.DecodeString(h); !ok || err != nil || len(b) != 32 || strings.ToLower(h) != h {
		return fmt.Errorf("digest %.80q: want sha256: and 64 lower-case hex digits", s)
	}
	return nil
}

// checkHost judges host[:port], with an IPv6 address in brackets.
func checkHost(s string) error {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return fmt.Errorf("port %.20q: want 1 to 65535", port)
		}
	}
	if v6, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		if err != nil || !a.Is6() || a.Zone() != "" || !strings.HasSuffix(v6, "]") {
			return fmt.Errorf("host %.80q: is not an IPv6 address in brackets", host)
		}
		return nil
	}
	if len(host) > 253 {
		return fmt.Errorf("a host of %d characters, at most 253", len(host))
	}
	for label := range strings.SplitSeq(host, ".") {
		if !word(label, alnum, "-") {
			return fmt.Errorf("host %.80q: want a name or an address", host)
		}
	}
	return nil
}

// checkMirror judges host[:port][/prefix].
func checkMirror(s string) error {
	host, prefix, prefixed := strings.Cut(s, "/")
	if err := checkHost(host); err != nil {
		return fmt.Errorf("%.200q: want host[:port][/prefix]: %w", s, err)
	}
	if !prefixed {
		return nil
	}
	for part := range strings.SplitSeq(prefix, "/") {
		if !word(part, lower+digits, "._-") || len(s) > 255 {
			return fmt.Errorf("%.200q: %.80q in the prefix; want lower-case letters, digits and inner . _ -", s, part)
		}
	}
	return nil
}

// checkProxy judges http://host[:port] and https://host[:port]. What it quotes has no password in it.
func checkProxy(s string) error {
	if strings.Contains(s, "@") {
		return errors.New("has a user or password, which a manifest must not carry; want a proxy without")
	}
	host, ok := strings.CutPrefix(s, "http://")
	if !ok {
		host, ok = strings.CutPrefix(s, "https://")
	}
	if !ok {
		return fmt.Errorf("%.200q: want http://host[:port] or https://host[:port]", s)
	}
	if err := checkHost(host); err != nil {
		return fmt.Errorf("%.200q: want http://host[:port] or https://host[:port]: %w", s, err)
	}
	return nil
}

// brokerURL judges a broker's URL and gives the one form in which two of them are compared.
func brokerURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%.200q: is not a URL", s)
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	path := strings.TrimRight(u.Path, "/")
	switch {
	case scheme != "https" && scheme != "http":
		return "", fmt.Errorf("%.200q: want https://host[:port][/path]", s)
	case u.User != nil:
		return "", errors.New("has a user or password, which a manifest must not carry")
	case strings.ContainsAny(s, "?#"):
		return "", fmt.Errorf("%.200q: has a query or a fragment; want https://host[:port][/path]", s)
	}
	if err := checkHost(host); err != nil {
		return "", fmt.Errorf("%.200q: %w", s, err)
	}
	for i, part := range strings.Split(path, "/") {
		if i > 0 && (part == "." || part == ".." || !word(part, alnum+"-._~", "")) {
			return "", fmt.Errorf("%.200q: %q in the path; want letters, digits and - . _ ~", s, part)
		}
	}
	if !strings.HasSuffix(host, "]") { // an IPv6 address may end in :443
		host = strings.TrimSuffix(host, map[string]string{"https": ":443", "http": ":80"}[scheme])
	}
	return scheme + "://" + host + path, nil
}

// checkKeyPath judges repository/type/tag (wire/SPEC.md §1.10).
func checkKeyPath(s string) error {
	parts := strings.Split(s, "/")
	ok := len(parts) == 3 && len(s) <= 512
	for _, p := range parts {
		ok = ok && word(p, alnum+"-_.", "") && p[0] != '.'
	}
	if !ok {
		return fmt.Errorf("%.200q: want repository/type/tag, each of letters, digits, dots, - and _", s)
	}
	return nil
}
