package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"unicode/utf8"
)

// A PublicKey is the tee-pubkey of RCAR: a JWK whose members are all strings. It holds exactly the members that its
// key type needs, since the broker hashes the ones that it knows and would not see others.
type PublicKey map[string]string

// How a tee-pubkey is used: its alg member (wire/SPEC.md §1.4).
const (
	ECDH    = "ECDH-ES+A256KW" // EC on P-256 or P-521
	RSAOAEP = "RSA-OAEP-256"   // RSA
	RSA15   = "RSA1_5"         // RSA, PKCS #1 v1.5: brokers of protocol 0.1.x know nothing else
)

var curves = map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-521": elliptic.P521()}

// Sizes of RSA moduli that are taken, bits.
const minRSA, maxRSA = 2048, 4096

// NewPublicKey writes a P-256 key, coordinates padded to 32 bytes.
func NewPublicKey(pub *ecdsa.PublicKey) (PublicKey, error) {
	if pub.Curve != elliptic.P256() {
		return nil, fmt.Errorf("tee-pubkey: curve %s, want P-256", pub.Curve.Params().Name)
	}
	return NewKey(pub, ECDH)
}

// P256 reads a P-256 key: exactly the members of NewPublicKey, and a point on the curve.
func (k PublicKey) P256() (*ecdsa.PublicKey, error) {
	pub, _, err := k.Key()
	if err != nil {
		return nil, err
	}
	ec, ok := pub.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return nil, fmt.Errorf("tee-pubkey: kty %s, crv %q; want EC on P-256", k["kty"], k["crv"])
	}
	return ec, nil
}

// NewKey writes a key: *ecdsa.PublicKey on P-256 or P-521 with ECDH, coordinates padded to 32 or 66 bytes;
// *rsa.PublicKey with RSAOAEP or RSA15.
func NewKey(pub any, alg string) (PublicKey, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		name := pub.Curve.Params().Name
		if curves[name] != pub.Curve || alg != ECDH {
			return nil, fmt.Errorf("tee-pubkey: curve %s with %s; want P-256 or P-521 with %s", name, alg, ECDH)
		}
		point, err := pub.Bytes()
		if err != nil {
			return nil, fmt.Errorf("tee-pubkey: %w", err)
		}
		n := len(point) / 2
		return PublicKey{"kty": "EC", "crv": name, "alg": alg, "x": b64(point[1 : 1+n]), "y": b64(point[1+n:])}, nil
	case *rsa.PublicKey:
		if alg != RSAOAEP && alg != RSA15 {
			return nil, fmt.Errorf("tee-pubkey: an RSA key with %s; want %s or %s", alg, RSAOAEP, RSA15)
		}
		return PublicKey{"kty": "RSA", "alg": alg, "n": b64(pub.N.Bytes()), "e": b64(big.NewInt(int64(pub.E)).Bytes())}, nil
	}
	return nil, fmt.Errorf("tee-pubkey: %T, want an EC or an RSA key", pub)
}

// Key reads what NewKey writes: exactly those members, a point on the curve, a modulus of 2048 to 4096 bits.
func (k PublicKey) Key() (pub any, alg string, err error) {
	switch k["kty"] {
	case "EC":
		pub, err = k.ec()
	case "RSA":
		pub, err = k.rsa()
	default:
		err = fmt.Errorf("kty %.10q, want EC or RSA", k["kty"])
	}
	if err != nil {
		return nil, "", fmt.Errorf("tee-pubkey: %w", err)
	}
	return pub, k["alg"], nil
}

func (k PublicKey) members(want ...string) error {
	if got := slices.Sorted(maps.Keys(k)); !slices.Equal(got, want) {
		return fmt.Errorf("members %q, want %q", got, want)
	}
	return nil
}

func (k PublicKey) octets(name string) ([]byte, error) {
	b, err := decode64(base64.RawURLEncoding, k[name])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

func (k PublicKey) ec() (*ecdsa.PublicKey, error) {
	if err := k.members("alg", "crv", "kty", "x", "y"); err != nil {
		return nil, err
	}
	curve := curves[k["crv"]]
	if curve == nil || k["alg"] != ECDH {
		return nil, fmt.Errorf("crv %.10q with alg %.20q; only P-256 and P-521 with %s are supported", k["crv"], k["alg"], ECDH)
	}
	size := (curve.Params().BitSize + 7) / 8
	point := []byte{4}
	for _, c := range []string{"x", "y"} {
		b, err := k.octets(c)
		if err != nil {
			return nil, err
		}
		if len(b) != size {
			return nil, fmt.Errorf("%s: %d bytes, want %d", c, len(b), size)
		}
		point = append(point, b...)
	}
	return ecdsa.ParseUncompressedPublicKey(curve, point)
}

func (k PublicKey) rsa() (*rsa.PublicKey, error) {
	if err := k.members("alg", "e", "kty", "n"); err != nil {
		return nil, err
	}
	if k["alg"] != RSAOAEP && k["alg"] != RSA15 {
		return nil, fmt.Errorf("alg %.20q, want %s or %s", k["alg"], RSAOAEP, RSA15)
	}
	n, err1 := k.octets("n")
	e, err2 := k.octets("e")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	exp, err := exponent(e)
	if err != nil {
		return nil, err
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: exp}
	if bits := pub.N.BitLen(); bits < minRSA || bits > maxRSA || n[0] == 0 {
		return nil, fmt.Errorf("n: %d bits, want %d to %d without zeros in front", bits, minRSA, maxRSA)
	}
	return pub, nil
}

// exponent reads a public exponent: odd, 3 to 2^31-1, no zeros in front.
func exponent(e []byte) (int, error) {
	n := new(big.Int).SetBytes(e[:min(len(e), 5)]).Int64()
	if len(e) == 0 || len(e) > 4 || e[0] == 0 || n < 3 || n&1 == 0 || n > 1<<31-1 {
		return 0, fmt.Errorf("e: %.8x is no public exponent", e)
	}
	return int(n), nil
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

// ReportData is the SHA-384 of Canonical, zeros behind it: what primary evidence carries from protocol 0.4.0 on.
func (b Binding) ReportData() [64]byte { return padded(b.Canonical()) }

// ReportDataV2 is the SHA-384 of DeviceCanonical, zeros behind it: primary evidence of protocols 0.1.x and 0.2.0.
func (b Binding) ReportDataV2() [64]byte { return padded(b.DeviceCanonical()) }

func padded(canonical []byte) (data [64]byte) {
	sum := sha512.Sum384(canonical)
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
