package kbs

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// errNotOurs is all that an altered or foreign JWE gets to hear.
var errNotOurs = errors.New("JWE: not for the key of this session, or altered")

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
		return nil, errNotOurs
	}
	return sized(plain)
}

// openOldJWE takes what brokers of protocols 0.1.x write: the header as JSON and not in base64, the tag at the end of the
// ciphertext, and nothing authenticated but that (§1.7). So the header is only compared with what it must be.
//
// PKCS #1 v1.5 betrays a key to whoever can ask many times and see why a ciphertext is refused. Here a session key of
// the wrong form becomes a random one, in constant time, and all refusals after that are the same.
func openOldJWE(body []byte, key *rsa.PrivateKey) ([]byte, error) {
	m, err := evidence.ObjectOf(body, []string{"protected", "encrypted_key", "iv", "ciphertext", "tag"}, nil)
	if err != nil {
		return nil, fmt.Errorf("JWE: %w", err)
	}
	text := map[string]string{}
	for name, raw := range m {
		var v string
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("JWE %s: %w", name, err)
		}
		text[name] = v
	}
	header, err := evidence.ObjectOf([]byte(text["protected"]), []string{"alg", "enc"}, nil)
	if err != nil {
		return nil, fmt.Errorf("JWE protected header: %w", err)
	}
	if string(header["alg"]) != `"`+evidence.RSA15+`"` || string(header["enc"]) != `"A256GCM"` {
		return nil, fmt.Errorf("JWE protected header: %.20s with %.20s, want %s with A256GCM", header["alg"], header["enc"], evidence.RSA15)
	}
	octets := func(name string) (b []byte) {
		if err == nil {
			if b, err = base64.RawURLEncoding.Strict().DecodeString(text[name]); err != nil {
				err = fmt.Errorf("JWE %s: %w", name, err)
			}
		}
		return b
	}
	wrapped, iv, sealed := octets("encrypted_key"), octets("iv"), octets("ciphertext")
	switch {
	case err != nil:
		return nil, err
	case len(wrapped) != key.Size() || len(iv) != 12 || text["tag"] != "":
		return nil, fmt.Errorf("JWE: encrypted_key, iv and tag of %d, %d and %d bytes, want %d, 12 and 0", len(wrapped), len(iv), len(text["tag"]), key.Size())
	}
	var cek [32]byte
	defer clear(cek[:])
	rand.Read(cek[:])
	//lint:ignore SA1019 brokers of protocol 0.1.x have nothing else
	if err := rsa.DecryptPKCS1v15SessionKey(nil, key, wrapped, cek[:]); err != nil {
		return nil, errNotOurs
	}
	block, err := aes.NewCipher(cek[:])
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(nil, iv, sealed, nil)
	if err != nil {
		return nil, errNotOurs
	}
	return sized(plain)
}

func sized(plain []byte) ([]byte, error) {
	if len(plain) > maxResource {
		clear(plain)
		return nil, fmt.Errorf("resource: %d bytes, at most %d", len(plain), maxResource)
	}
	if len(plain) == 0 {
		return nil, errors.New("resource: empty")
	}
	return plain, nil
}
