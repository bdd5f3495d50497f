// Package secret reads sealed secrets: names of a key broker's resources, signed by who owns them.
//
// "sealed." and a compact JWS (wire/SPEC.md §5.2) stand in a manifest where a value would, so that the manifest can be
// shown to anyone. The form that says where a secret is kept, a vault at a key broker, is the one read: an envelope
// asks for a key service of a cloud, to unwrap for it, and a key broker is none.
package secret

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// MaxSize is the length in bytes beyond which a sealed secret is refused, and maxKey that of the key that signed it.
const (
	MaxSize = 16 << 10
	maxKey  = 8 << 10
)

const prefix = "sealed."

// Sealed says whether a value is meant to be a sealed secret. Parse says whether it is one.
func Sealed(value string) bool { return strings.HasPrefix(value, prefix) }

// Signer is the path, repository/type/tag, of the key that a sealed secret says it is signed with. Nothing is verified
// yet: it is for fetching that key.
func Signer(value string) (path string, err error) {
	s, err := split(value)
	if err != nil {
		return "", fmt.Errorf("sealed secret: %w", err)
	}
	return s.signer, nil
}

// Parse verifies a sealed secret and returns the path, repository/type/tag, of the resource that it stands for. key
// gives the key at a path, as the broker has it: a public JWK of P-256.
func Parse(value string, key func(path string) (jwk []byte, err error)) (path string, err error) {
	path, err = parse(value, key)
	if err != nil {
		return "", fmt.Errorf("sealed secret: %w", err)
	}
	return path, nil
}

func parse(value string, key func(string) ([]byte, error)) (string, error) {
	s, err := split(value)
	if err != nil {
		return "", err
	}
	raw, err := key(s.signer)
	if err != nil {
		return "", fmt.Errorf("key kbs:///%s: %w", s.signer, err)
	}
	pub, err := publicKey(raw)
	if err != nil {
		return "", fmt.Errorf("key kbs:///%s: %w", s.signer, err)
	}
	sum := sha256.Sum256([]byte(s.signed))
	r, t := new(big.Int).SetBytes(s.signature[:32]), new(big.Int).SetBytes(s.signature[32:])
	if !ecdsa.Verify(pub, sum[:], r, t) {
		return "", fmt.Errorf("its signature is not of the key kbs:///%s", s.signer)
	}
	return vault(s.payload)
}

// parts are those of a JWS whose header is right and whose signature has not been looked at.
type parts struct {
	signer    string
	payload   []byte
	signed    string // what the signature is of
	signature []byte // r and s, 32 bytes each
}

func split(value string) (parts, error) {
	jws, ok := strings.CutPrefix(value, prefix)
	switch {
	case !ok:
		return parts{}, errors.New(`does not begin with "sealed."`)
	case len(value) > MaxSize:
		return parts{}, fmt.Errorf("%d bytes, at most %d", len(value), MaxSize)
	}
	p := strings.Split(jws, ".")
	if len(p) != 3 {
		return parts{}, fmt.Errorf("has %d parts behind sealed., want header.payload.signature", len(p))
	}
	if p[0] == "fakejwsheader" || p[2] == "fakesignature" {
		return parts{}, errors.New("is in the old form without a signature, which anyone can write; seal it with a key")
	}
	var raw [3][]byte
	for i, name := range []string{"header", "payload", "signature"} {
		var err error
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(p[i]); err != nil || strings.ContainsAny(p[i], "\r\n") {
			return parts{}, fmt.Errorf("%s is not base64url without padding", name)
		}
	}
	// A member that is not known could change what is signed (b64, crit) or who signs (jku, jwk, x5c).
	header, err := members(raw[0], []string{"alg", "kid"}, []string{"typ"})
	if err != nil {
		return parts{}, fmt.Errorf("header: %w", err)
	}
	if header["alg"] != "ES256" {
		return parts{}, fmt.Errorf("header: alg is %.20q, want ES256", header["alg"])
	}
	signer, err := resource(header["kid"])
	if err != nil {
		return parts{}, fmt.Errorf("header: kid: %w", err)
	}
	if len(raw[2]) != 64 {
		return parts{}, fmt.Errorf("signature has %d bytes, want 64", len(raw[2]))
	}
	return parts{signer, raw[1], p[0] + "." + p[1], raw[2]}, nil
}

// vault reads a payload. The reference's reader wants every member, so each must be there.
func vault(payload []byte) (string, error) {
	all, err := evidence.Object(payload)
	if err != nil {
		return "", fmt.Errorf("payload: %w", err)
	}
	var kind string
	if err := json.Unmarshal(all["type"], &kind); err != nil {
		return "", errors.New("payload: type is missing or no string")
	}
	switch kind {
	case "vault":
	case "envelope":
		return "", errors.New("payload: is an envelope, which a cloud's key service must unwrap; a key broker cannot: keep the secret at the broker and seal its name (type vault, provider kbs)")
	default:
		return "", fmt.Errorf("payload: type is %.40q, want vault", kind)
	}
	settings := []string{"provider_settings", "annotations"}
	for _, name := range settings {
		if _, err := evidence.Object(all[name]); err != nil {
			return "", fmt.Errorf("payload: %s: %w", name, err)
		}
		delete(all, name)
	}
	rest, err := json.Marshal(all)
	if err != nil {
		return "", fmt.Errorf("payload: %w", err)
	}
	m, err := members(rest, []string{"version", "type", "name", "provider"}, nil)
	if err != nil {
		return "", fmt.Errorf("payload: %w", err)
	}
	if m["version"] != "0.1.0" {
		return "", fmt.Errorf("payload: version is %.20q, want 0.1.0", m["version"])
	}
	if m["provider"] != "kbs" {
		return "", fmt.Errorf("payload: provider is %.40q; not supported in this build, want kbs", m["provider"])
	}
	path, err := resource(m["name"])
	if err != nil {
		return "", fmt.Errorf("payload: name: %w", err)
	}
	return path, nil
}

// members reads an object of strings, all of required and none but those and optional.
func members(raw []byte, required, optional []string) (map[string]string, error) {
	all, err := evidence.ObjectOf(raw, required, optional)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for name, v := range all {
		var s string
		if err := json.Unmarshal(v, &s); err != nil {
			return nil, fmt.Errorf("member %q: is not a string", name)
		}
		m[name] = s
	}
	return m, nil
}

// resource reads kbs:///repository/type/tag. A host is not taken: the manifest alone says which broker is asked.
func resource(uri string) (string, error) {
	path, ok := strings.CutPrefix(uri, "kbs:///")
	parts := strings.Split(path, "/")
	ok = ok && len(parts) == 3 && len(uri) <= 512
	for _, p := range parts {
		ok = ok && p != "" && p[0] != '.' && strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
	}
	if !ok {
		return "", fmt.Errorf("%.200q: want kbs:///repository/type/tag", uri)
	}
	return path, nil
}

// publicKey reads a JWK of P-256.
func publicKey(raw []byte) (*ecdsa.PublicKey, error) {
	if len(raw) > maxKey {
		return nil, fmt.Errorf("JWK: %d bytes, at most %d", len(raw), maxKey)
	}
	all, err := evidence.Object(raw)
	if err != nil {
		return nil, fmt.Errorf("JWK: %w", err)
	}
	if all["d"] != nil {
		return nil, errors.New("JWK: is a private key; the broker must keep the public half alone there")
	}
	m, err := members(raw, []string{"kty", "crv", "x", "y"}, []string{"alg", "use", "kid"})
	if err != nil {
		return nil, fmt.Errorf("JWK: %w", err)
	}
	if m["kty"] != "EC" || m["crv"] != "P-256" || m["alg"] != "" && m["alg"] != "ES256" || m["use"] != "" && m["use"] != "sig" {
		return nil, fmt.Errorf("JWK: kty %.20q, crv %.20q, alg %.20q, use %.20q: want EC, P-256, ES256, sig", m["kty"], m["crv"], m["alg"], m["use"])
	}
	point := []byte{4} // uncompressed
	for _, name := range []string{"x", "y"} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(m[name])
		if err != nil || len(b) != 32 {
			return nil, fmt.Errorf("JWK: %s is not the base64url of 32 bytes", name)
		}
		point = append(point, b...)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, fmt.Errorf("JWK: x and y are no point of P-256: %w", err)
	}
	return pub, nil
}
