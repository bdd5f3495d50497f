package kbs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// keyPair is the pair that one handshake binds into the evidence. It never leaves the session.
type keyPair struct{ priv *ecdsa.PrivateKey }

func newKeyPair() (keyPair, evidence.PublicKey, error) {
	// crypto/ecdh would be the natural type, but go-jose wants this one, and a conversion leaves a copy that cannot
	// be overwritten.
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keyPair{}, nil, err
	}
	pub, err := evidence.NewPublicKey(&priv.PublicKey)
	return keyPair{priv}, pub, err
}

// zero overwrites the scalar; see Grant.Zero for what stays out of reach.
func (k keyPair) zero() {
	if k.priv != nil {
		clear(k.priv.D.Bits()) //lint:ignore SA1019 the scalar must be overwritten in place
	}
}

// open decrypts a resource (§1.7).
func (k keyPair) open(body []byte) ([]byte, error) {
	return openJWE(body, k.priv, jose.ECDH_ES_A256KW)
}

// openJWE takes flattened JWE JSON with exactly the members that a broker writes: go-jose alone would also take
// unprotected headers, several recipients and compression.
func openJWE(body []byte, key any, alg jose.KeyAlgorithm) ([]byte, error) {
	m, err := evidence.ObjectOf(body, []string{"protected", "encrypted_key", "iv", "ciphertext", "tag"}, nil)
	if err != nil {
		return nil, fmt.Errorf("JWE: %w", err)
	}
	var protected string
	if err := json.Unmarshal(m["protected"], &protected); err != nil {
		return nil, fmt.Errorf("JWE protected: %w", err)
	}
	header, err := base64.RawURLEncoding.DecodeString(protected)
	if err != nil {
		return nil, fmt.Errorf("JWE protected: %w", err)
	}
	members := []string{"alg", "enc"}
	if alg == jose.ECDH_ES_A256KW {
		members = append(members, "epk")
	}
	if _, err := evidence.ObjectOf(header, members, nil); err != nil {
		return nil, fmt.Errorf("JWE protected header: %w", err)
	}
	jwe, err := jose.ParseEncryptedJSON(string(body), []jose.KeyAlgorithm{alg}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return nil, fmt.Errorf("JWE: %w", err)
	}
	plain, err := jwe.Decrypt(key)
	if err != nil {
		return nil, fmt.Errorf("JWE: not for the key of this session, or altered: %w", err)
	}
	if len(plain) > maxResource {
		clear(plain)
		return nil, fmt.Errorf("resource: %d bytes, at most %d", len(plain), maxResource)
	}
	if len(plain) == 0 {
		return nil, errors.New("resource: empty")
	}
	return plain, nil
}
