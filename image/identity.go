package image

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/go-jose/go-jose/v4"
)

// Bounds of an RSA key, bits. The upper one keeps what a layer's recipients can make this compute within reason.
const (
	minRSA = 2048
	maxRSA = 8192
)

// errNotOurs is all that is said of a JWE or PKCS #7 that does not open: where it failed is nobody's business.
var errNotOurs = errors.New("the private key opens no recipient: it is another key, or the recipients were altered")

// identity is a private key that layers are encrypted to.
type identity struct {
	ec  *ecdsa.PrivateKey // either this
	rsa *rsa.PrivateKey   // or this
}

// CheckIdentity tells whether b is a private key that opens JWE or PKCS #7 recipients: RSA of 2048 to 8192 bits or EC on
// P-256, P-384 or P-521, as PEM or DER (PKCS #8, PKCS #1, SEC 1) or as a JWK, without a passphrase.
func CheckIdentity(b []byte) error {
	id, err := parseIdentity(b)
	if err == nil {
		id.zero()
	}
	return err
}

// parseIdentity quotes nothing of what it reads.
func parseIdentity(b []byte) (*identity, error) {
	key, err := parsePrivate(b)
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, fmt.Errorf("an RSA key of %d bits; want %d to %d", n, minRSA, maxRSA)
		}
		return &identity{rsa: k}, nil
	case *ecdsa.PrivateKey:
		if c := k.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
			return nil, fmt.Errorf("an EC key on %s; want P-256, P-384 or P-521", c.Params().Name)
		}
		return &identity{ec: k}, nil
	}
	return nil, errors.New("a private key that is neither RSA nor EC; no JWE or PKCS #7 is made for such")
}

func parsePrivate(b []byte) (any, error) {
	if len(b) == keySize {
		return nil, errors.New("has 32 bytes, which is a key for key packets; JWE and PKCS #7 want a private key, as PEM, DER or JWK")
	}
	if t := bytes.TrimLeft(b, " \t\r\n"); len(t) > 0 && t[0] == '{' {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(t) != nil || k.IsPublic() || !k.Valid() {
			return nil, errors.New("is JSON, and no JWK of a private key")
		}
		return k.Key, nil
	}
	der := b
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, errors.New("the private key has a passphrase; store it without: the broker is what guards it")
		}
		if block.Type == "PRIVATE KEY" || block.Type == "RSA PRIVATE KEY" || block.Type == "EC PRIVATE KEY" {
			der = block.Bytes
			defer clear(block.Bytes)
			break
		}
	}
	if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	return nil, errors.New("is no private key: want RSA or EC as PEM, DER (PKCS #8, PKCS #1, SEC 1) or JWK")
}

// zero overwrites the private numbers. What the standard library computed from them is out of reach.
func (id *identity) zero() {
	wipe := func(numbers ...*big.Int) {
		for _, n := range numbers {
			if n != nil {
				clear(n.Bits())
			}
		}
	}
	if id.ec != nil {
		wipe(id.ec.D) //lint:ignore SA1019 the scalar must be overwritten in place
	}
	if id.rsa != nil {
		p := id.rsa.Precomputed
		wipe(append(id.rsa.Primes, id.rsa.D, p.Dp, p.Dq, p.Qinv)...)
	}
}
