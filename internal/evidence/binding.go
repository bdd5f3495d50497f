package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"
)

// A PublicKey is the tee-pubkey of RCAR: a JWK whose members are all strings. It holds exactly the members that its
// key type needs, since the broker hashes the ones that it knows and would not see others.
type PublicKey map[string]string

// ecAlgorithm is the only way in which a P-256 tee-pubkey is used.
const ecAlgorithm = "ECDH-ES+A256KW"

// NewPublicKey writes a P-256 key, coordinates padded to 32 bytes.
func NewPublicKey(pub *ecdsa.PublicKey) (PublicKey, error) {
	if pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("tee-pubkey: curve %s, want P-256", pub.Curve.Params().Name)
	}
	point, err := pub.Bytes()
	if err != nil {
		return nil, fmt.Errorf("tee-pubkey: %w", err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return PublicKey{"kty": "EC", "crv": "P-256", "alg": ecAlgorithm, "x": b64(point[1:33]), "y": b64(point[33:])}, nil
}

// P256 reads a P-256 key: exactly the members of NewPublicKey, and a point on the curve.
func (k PublicKey) P256() (*ecdsa.PublicKey, error) {
	if k["kty"] != "EC" || k["crv"] != "P-256" || k["alg"] != ecAlgorithm || len(k) != 5 {
		return nil, fmt.Errorf("tee-pubkey: members %q with kty %.10q, crv %.10q, alg %.20q; only EC, P-256, %s is supported",
			slices.Sorted(maps.Keys(k)), k["kty"], k["crv"], k["alg"], ecAlgorithm)
	}
	point := []byte{4}
	for _, c := range []string{"x", "y"} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(k[c])
		if err != nil {
			return nil, fmt.Errorf("tee-pubkey %s: %w", c, err)
		}
		if len(b) != 32 {
			return nil, fmt.Errorf("tee-pubkey %s: %d bytes, want 32", c, len(b))
		}
		point = append(point, b...)
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
}

// A Binding is what one RCAR handshake binds into evidence (wire/SPEC.md §1.5).
type Binding struct {
	Nonce      string // as received, opaque
	Key        PublicKey
	Additional string // additional_evidence exactly as sent; "" when there is none
}

// Canonical is the RFC 8785 form whose hash goes into primary evidence. The member additional-evidence is in it
// even when there is none.
func (b Binding) Canonical() []byte {
	out := []byte(`{"additional-evidence":`)
	out = appendString(out, b.Additional)
	return append(b.nonceAndKey(append(out, ',')), '}')
}

// DeviceCanonical is the RFC 8785 form whose hash goes into additional evidence.
func (b Binding) DeviceCanonical() []byte {
	return append(b.nonceAndKey([]byte{'{'}), '}')
}

// ReportData is the SHA-384 of Canonical, zeros behind it.
func (b Binding) ReportData() (data [64]byte) {
	sum := sha512.Sum384(b.Canonical())
	copy(data[:], sum[:])
	return data
}

func (b Binding) nonceAndKey(out []byte) []byte {
	out = appendString(append(out, `"nonce":`...), b.Nonce)
	out = append(out, `,"tee-pubkey":{`...)
	for i, name := range slices.Sorted(maps.Keys(b.Key)) {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendString(append(appendString(out, name), ':'), b.Key[name])
	}
	return append(out, '}')
}

// appendString writes a JSON string as RFC 8785 wants it. encoding/json differs: it escapes <, >, & and U+2028.
func appendString(out []byte, s string) []byte {
	const short = "\b\t\n\f\r\"\\"
	out = append(out, '"')
	for _, c := range s {
		switch i := bytes.IndexRune([]byte(short), c); {
		case c == utf8.RuneError:
			out = append(out, "\uFFFD"...) // what encoding/json made of bytes that are no UTF-8
		case i >= 0:
			out = append(out, '\\', `btnfr"\`[i])
		case c < ' ':
			out = fmt.Appendf(out, `\u%04x`, c)
		default:
			out = utf8.AppendRune(out, c)
		}
	}
	return append(out, '"')
}
