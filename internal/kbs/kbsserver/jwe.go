package kbsserver

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// flatJWE is flattened JWE JSON with the members that Trustee writes (§1.7).
type flatJWE struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

type jweHeader struct {
	Alg string        `json:"alg"`
	Enc string        `json:"enc"`
	EPK *ephemeralKey `json:"epk,omitempty"`
}

type ephemeralKey struct {
	Crv string `json:"crv"`
	Kty string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// encrypt wraps a resource for the key of an attested guest, A256GCM throughout. It is written from RFC 7516 and 7518
// and not with the library that the guest opens it with, so that each checks the other.
func encrypt(plain []byte, to evidence.PublicKey, old bool) (*flatJWE, error) {
	pub, alg, err := to.Key()
	if err != nil {
		return nil, err
	}
	var cek [32]byte
	var iv [12]byte
	rand.Read(cek[:])
	rand.Read(iv[:])
	defer clear(cek[:])
	h := jweHeader{Alg: alg, Enc: "A256GCM"}
	var wrapped []byte
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		h.EPK, wrapped, err = agree(pub, cek[:])
	case *rsa.PublicKey:
		if alg == evidence.RSA15 {
			wrapped, err = rsa.EncryptPKCS1v15(rand.Reader, pub, cek[:]) //lint:ignore SA1019 brokers of protocol 0.1.x have nothing else
		} else {
			wrapped, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, cek[:], nil)
		}
	}
	if err != nil {
		return nil, err
	}
	header, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(cek[:])
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	if old {
		return &flatJWE{string(header), b64(wrapped), b64(iv[:]), b64(gcm.Seal(nil, iv[:], plain, nil)), ""}, nil
	}
	protected := b64(header)
	sealed := gcm.Seal(nil, iv[:], plain, []byte(protected))
	return &flatJWE{protected, b64(wrapped), b64(iv[:]), b64(sealed[:len(plain)]), b64(sealed[len(plain):])}, nil
}

// agree is ECDH-ES+A256KW: the ephemeral key, and cek wrapped under what it and the guest's key agree on.
func agree(to *ecdsa.PublicKey, cek []byte) (*ephemeralKey, []byte, error) {
	pub, err := to.ECDH()
	if err != nil {
		return nil, nil, err
	}
	eph, err := pub.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	z, err := eph.ECDH(pub)
	if err != nil {
		return nil, nil, err
	}
	kek := deriveKEK(z)
	defer func() { clear(z); clear(kek) }()
	wrapped, err := wrapKey(kek, cek)
	if err != nil {
		return nil, nil, err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	crv := "P-256"
	if pub.Curve() == ecdh.P521() {
		crv = "P-521"
	}
	point := eph.PublicKey().Bytes() // 4, x, y
	n := len(point) / 2
	return &ephemeralKey{crv, "EC", b64(point[1 : 1+n]), b64(point[1+n:])}, wrapped, nil
}

// deriveKEK is the Concat KDF of RFC 7518 §4.6.2, one round, with empty PartyUInfo and PartyVInfo.
func deriveKEK(z []byte) []byte {
	h := sha256.New()
	word := func(n uint32) { h.Write(binary.BigEndian.AppendUint32(nil, n)) }
	word(1)
	h.Write(z)
	word(uint32(len(evidence.ECDH)))
	h.Write([]byte(evidence.ECDH))
	word(0)
	word(0)
	word(256)
	return h.Sum(nil)
}

// wrapKey is RFC 3394.
func wrapKey(kek, key []byte) ([]byte, error) {
	if len(key)%8 != 0 || len(key) < 16 {
		return nil, fmt.Errorf("key wrap: %d bytes, want a multiple of 8 from 16 on", len(key))
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 8+len(key))
	copy(out[8:], key)
	var b [16]byte
	copy(b[:8], "\xa6\xa6\xa6\xa6\xa6\xa6\xa6\xa6")
	for t := uint64(1); t <= uint64(6*len(key)/8); t++ {
		r := out[8+8*((t-1)%uint64(len(key)/8)):][:8]
		copy(b[8:], r)
		block.Encrypt(b[:], b[:])
		copy(r, b[8:])
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^t)
	}
	copy(out, b[:8])
	return out, nil
}
