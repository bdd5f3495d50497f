package kbs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// keyTypes are the values of Broker.KeyType, by the names of CoCo's configuration.
var keyTypes = map[string]struct {
	curve elliptic.Curve // nil: RSA
	alg   string
}{
	"":                    {elliptic.P256(), evidence.ECDH},
	"ECDH-ES+A256KW-P256": {elliptic.P256(), evidence.ECDH},
	"ECDH-ES+A256KW-P521": {elliptic.P521(), evidence.ECDH},
	"RSA-OAEP-256":        {nil, evidence.RSAOAEP},
}

const rsaBits = 2048 // what CoCo's own client uses, and the least that Trustee takes

// keyPair is the pair that one handshake binds into the evidence. It leaves the session only through Client.Token.
type keyPair struct {
	alg string
	ec  *ecdsa.PrivateKey // either this
	rsa *rsa.PrivateKey   // or this
}

// newKeyPair makes a pair of the type that the manifest names. Protocols 0.1.x have only one type, so that there it is
// no choice.
func newKeyPair(keyType string, g *generation) (k keyPair, pub evidence.PublicKey, err error) {
	t, ok := keyTypes[keyType]
	switch {
	case !ok:
		return k, nil, fmt.Errorf("key type %.40q: unknown", keyType)
	case g.oldJWE:
		t.curve, t.alg = nil, evidence.RSA15
	case g.noP521 && t.curve == elliptic.P521():
		return k, nil, fmt.Errorf("key type %s: a broker of protocol %s (Trustee %s) does not know it, name another in the manifest", keyType, g.version, g.trustee)
	}
	k.alg = t.alg
	if t.curve == nil {
		if k.rsa, err = rsa.GenerateKey(rand.Reader, rsaBits); err == nil {
			pub, err = evidence.NewKey(&k.rsa.PublicKey, t.alg)
		}
		return k, pub, err
	}
	// crypto/ecdh would be the natural type, but go-jose wants this one, and a conversion leaves a copy that cannot
	// be overwritten.
	if k.ec, err = ecdsa.GenerateKey(t.curve, rand.Reader); err == nil {
		pub, err = evidence.NewKey(&k.ec.PublicKey, t.alg)
	}
	return k, pub, err
}

// open decrypts a resource. old is the form of protocols 0.1.x (§1.7).
func (k keyPair) open(body []byte, old bool) ([]byte, error) {
	switch {
	case old:
		return openOldJWE(body, k.rsa)
	case k.rsa != nil:
		return openJWE(body, k.rsa, jose.KeyAlgorithm(k.alg))
	}
	return openJWE(body, k.ec, jose.KeyAlgorithm(k.alg))
}

// pem is how CoCo's attestation agent gives the pair out (§5.1). The bytes are the caller's to overwrite.
func (k keyPair) pem() ([]byte, error) {
	b := &pem.Block{Type: "PRIVATE KEY"}
	if k.rsa != nil {
		b.Type, b.Bytes = "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k.rsa)
	} else {
		var err error
		if b.Bytes, err = x509.MarshalPKCS8PrivateKey(k.ec); err != nil {
			return nil, err
		}
	}
	defer clear(b.Bytes)
	return pem.EncodeToMemory(b), nil
}

// zero overwrites the private numbers; see Grant.Zero for what stays out of reach, which for RSA includes what the
// standard library computed from them.
func (k keyPair) zero() {
	wipe := func(n *big.Int) {
		if n != nil {
			clear(n.Bits())
		}
	}
	if k.ec != nil {
		wipe(k.ec.D) //lint:ignore SA1019 the scalar must be overwritten in place
	}
	if k.rsa != nil {
		wipe(k.rsa.D)
		for _, p := range k.rsa.Primes {
			wipe(p)
		}
		wipe(k.rsa.Precomputed.Dp)
		wipe(k.rsa.Precomputed.Dq)
		wipe(k.rsa.Precomputed.Qinv)
	}
}
