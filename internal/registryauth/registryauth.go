// Package registryauth reads the registry credentials that a key broker keeps: a containers-auth.json.
//
// Only {"auths": {"<registry[/path]>": {"auth": "<base64 of user:password>"}}} is read (wire/SPEC.md §5.4). Helpers and
// identity tokens are refused, not ignored: an owner whose file has them would otherwise learn it from a registry that
// says no. Nothing here quotes a credential.
package registryauth

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// The bounds of a file: its bytes, and the registries it may name.
const (
	MaxSize    = 64 << 10
	maxEntries = 256
)

// Credentials are those of one file. They are secret; nobody else has the bytes.
type Credentials struct {
	exact    map[string]*credential // by registry[/path]
	registry map[string]*credential // by registry alone, as old files name it
}

type credential struct {
	user, password []byte
}

const secret = "[secret]"

func (*Credentials) String() string               { return secret }
func (*Credentials) GoString() string             { return secret }
func (*Credentials) LogValue() slog.Value         { return slog.StringValue(secret) }
func (*Credentials) MarshalJSON() ([]byte, error) { return []byte(`"` + secret + `"`), nil }

// Parse reads a containers-auth.json of at most MaxSize bytes. It keeps none of b.
func Parse(b []byte) (_ *Credentials, err error) {
	c := &Credentials{map[string]*credential{}, map[string]*credential{}}
	defer func() {
		if err != nil {
			c.Zero()
		}
	}()
	if len(b) > MaxSize {
		return nil, fmt.Errorf("registry credentials: %d bytes, at most %d", len(b), MaxSize)
	}
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return nil, errors.New(`registry credentials: is not a JSON object; want {"auths": {"registry": {"auth": "…"}}}`)
	}
	top, err := evidence.ObjectOf(b, []string{"auths"}, nil)
	if err != nil {
		return nil, fmt.Errorf("registry credentials: %w; only auths is read, neither helpers nor stores", err)
	}
	defer clear(top["auths"])
	auths, err := object(top["auths"])
	if err != nil {
		return nil, fmt.Errorf("registry credentials: auths: %w", err)
	}
	if len(auths) > maxEntries {
		return nil, fmt.Errorf("registry credentials: %d registries, at most %d", len(auths), maxEntries)
	}
	for _, key := range slices.Sorted(maps.Keys(auths)) {
		one, err := entry(auths[key])
		clear(auths[key])
		if err == nil {
			err = c.add(key, one)
		}
		if err != nil {
			return nil, fmt.Errorf("registry credentials: auths[%.200q]: %w", key, err)
		}
	}
	return c, nil
}

// add puts one entry where For looks for it. Two entries of one meaning must say the same.
func (c *Credentials) add(key string, one *credential) error {
	name, whole := registryOf(key)
	host, path, _ := strings.Cut(key, "/")
	at := strings.TrimSuffix(strings.ToLower(host)+"/"+path, "/") // of a URL it is no path that a reference could have
	for _, other := range []*credential{c.exact[at], c.registry[name]} {
		if other != nil && !other.equal(one) {
			one.zero()
			return fmt.Errorf("another entry has different credentials for %.200s; keep one", cmp.Or(name, at))
		}
	}
	c.exact[at] = one
	if whole {
		c.registry[name] = one
	}
	return nil
}

// object is evidence.Object for what must not be quoted.
func object(raw json.RawMessage) (map[string]json.RawMessage, error) {
	if len(raw) == 0 || raw[0] != '{' {
		return nil, errors.New("is not an object")
	}
	return evidence.Object(raw)
}

func entry(raw json.RawMessage) (*credential, error) {
	m, err := object(raw)
	if err != nil {
		return nil, err
	}
	for name := range m {
		if name != "auth" {
			return nil, fmt.Errorf("%.40q is not supported; want auth alone, base64 of user:password", name)
		}
	}
	auth := m["auth"]
	if len(auth) < 2 || auth[0] != '"' {
		return nil, errors.New("auth is missing or no string; want base64 of user:password")
	}
	// Base64 has nothing that JSON escapes but the slash, and nobody writes \/ there; so no copy in a string is made.
	text := auth[1 : len(auth)-1]
	plain := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(plain, text)
	if err != nil {
		clear(plain)
		return nil, errors.New("auth is not standard base64 with padding")
	}
	user, password, ok := bytes.Cut(plain[:n], []byte(":"))
	if !ok || len(user) == 0 {
		clear(plain)
		return nil, errors.New("auth is not user:password")
	}
	return &credential{user, bytes.TrimRight(password, "\r\n")}, nil
}

// For returns the credentials for an image reference, [docker://]registry[/repository][:tag][@digest]: those of the
// longest path that the file names, else of the registry as old files name it. The strings are copies, which Zero does
// not reach.
func (c *Credentials) For(ref string) (user, password string, ok bool) {
	for at := repository(ref); at != ""; {
		if one := c.exact[at]; one != nil {
			return string(one.user), string(one.password), true
		}
		i := strings.LastIndexByte(at, '/')
		if i < 0 {
			break
		}
		at = at[:i]
	}
	host, _, _ := strings.Cut(repository(ref), "/")
	if one := c.registry[canonical(host)]; one != nil && host != "" {
		return string(one.user), string(one.password), true
	}
	return "", "", false
}

// Zero overwrites and forgets everything.
func (c *Credentials) Zero() {
	for _, one := range c.exact {
		one.zero()
	}
	clear(c.exact)
	clear(c.registry)
}

func (c *credential) zero() {
	clear(c.user)
	clear(c.password)
}

func (c *credential) equal(other *credential) bool {
	return bytes.Equal(c.user, other.user) && bytes.Equal(c.password, other.password)
}

// repository is a reference without scheme, tag and digest. The registry's name becomes lower case, as DNS has it.
func repository(ref string) string {
	ref = strings.TrimPrefix(ref, "docker://")
	ref, _, _ = strings.Cut(ref, "@")
	host, path, ok := strings.Cut(ref, "/")
	host = strings.ToLower(host)
	if !ok {
		return host
	}
	path, _, _ = strings.Cut(path, ":")
	return host + "/" + path
}

// registryOf is the registry that a key is for as a whole: a name without a path, or a URL, of which old versions of
// docker wrote the path of their API too. A path without a scheme is a part of a registry, and must not give its
// credentials to the rest.
func registryOf(key string) (string, bool) {
	host, isURL := strings.CutPrefix(key, "https://")
	if !isURL {
		host, isURL = strings.CutPrefix(key, "http://")
	}
	host, _, path := strings.Cut(host, "/")
	if path && !isURL || host == "" {
		return "", false
	}
	return canonical(strings.ToLower(host)), true
}

// canonical is Docker Hub by the one of its three names that old files have.
func canonical(host string) string {
	if host == "docker.io" || host == "registry-1.docker.io" {
		return "index.docker.io"
	}
	return host
}
