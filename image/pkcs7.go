package image

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
)

// maxPKCS7 bounds an enveloped message, bytes. One for sixteen certificates with long names has about 16,000.
const maxPKCS7 = 32 << 10

// What ocicrypt (keywrap/pkcs7) writes: RFC 2315 enveloped data, the content key under RSA with PKCS #1 v1.5, the content
// under AES-GCM. Content under DES or AES-CBC is not read, since nothing authenticates it.
var (
	oidEnveloped = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidData      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidRSA       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidAES128GCM = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 6}
	oidAES256GCM = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 46}
)

type (
	pkcs7Message struct {
		Type    asn1.ObjectIdentifier
		Content pkcs7Enveloped `asn1:"explicit,tag:0"`
	}
	pkcs7Enveloped struct {
		Version    int
		Recipients []pkcs7Recipient `asn1:"set"`
		Content    pkcs7Content
	}
	pkcs7Recipient struct {
		Version int
		Issuer  pkcs7Issuer
		Alg     pkix.AlgorithmIdentifier
		Key     []byte
	}
	pkcs7Issuer struct {
		Name   asn1.RawValue
		Serial *big.Int
	}
	pkcs7Content struct {
		Type asn1.ObjectIdentifier
		Alg  pkix.AlgorithmIdentifier
		Data asn1.RawValue
	}
	// gcmParameters stand inside a primitive SEQUENCE, the nonce under a context tag: thus the library that ocicrypt has,
	// and not RFC 5084.
	gcmParameters struct {
		Nonce  []byte `asn1:"tag:4"`
		ICVLen int
	}
)

// pkcs7Key is a layer key in enveloped data.
type pkcs7Key struct {
	keys    [][]byte // one a recipient
	keySize int
	nonce   []byte
	sealed  []byte
}

func parsePKCS7(b []byte) (unnamed, error) {
	if len(b) > maxPKCS7 {
		return nil, fmt.Errorf("%w: PKCS #7 of %d bytes, at most %d are read", ErrTooBig, len(b), maxPKCS7)
	}
	var m pkcs7Message
	rest, err := asn1.Unmarshal(b, &m)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: PKCS #7: %w", ErrFormat, err)
	case len(rest) > 0:
		return nil, fmt.Errorf("%w: PKCS #7: %d bytes after its end", ErrFormat, len(rest))
	case !m.Type.Equal(oidEnveloped) || !m.Content.Content.Type.Equal(oidData):
		return nil, fmt.Errorf("%w: PKCS #7: content %v of %v, want enveloped data", ErrFormat, m.Type, m.Content.Content.Type)
	case len(m.Content.Recipients) == 0:
		return nil, fmt.Errorf("%w: PKCS #7: no recipients", ErrFormat)
	case len(m.Content.Recipients) > maxRecipients:
		return nil, fmt.Errorf("%w: PKCS #7 with %d recipients, at most %d", ErrTooBig, len(m.Content.Recipients), maxRecipients)
	}
	data, alg := m.Content.Content.Data, m.Content.Content.Alg
	k := &pkcs7Key{sealed: data.Bytes}
	if data.IsCompound { // older versions of ocicrypt; newer ones and all others give the octets themselves
		rest, err = asn1.Unmarshal(data.Bytes, &k.sealed)
	}
	if err != nil || len(rest) > 0 || data.Class != asn1.ClassContextSpecific || data.Tag != 0 {
		return nil, fmt.Errorf("%w: PKCS #7: the content is not one octet string", ErrFormat)
	}
	switch {
	case alg.Algorithm.Equal(oidAES128GCM):
		k.keySize = 16
	case alg.Algorithm.Equal(oidAES256GCM):
		k.keySize = 32
	default:
		return nil, fmt.Errorf("%w: PKCS #7: content cipher %v, only AES-128-GCM and AES-256-GCM authenticate what they hide", ErrFormat, alg.Algorithm)
	}
	var p gcmParameters
	if rest, err := asn1.Unmarshal(alg.Parameters.Bytes, &p); err != nil || len(rest) > 0 || len(p.Nonce) != 12 || p.ICVLen != 16 {
		return nil, fmt.Errorf("%w: PKCS #7: parameters of AES-GCM, want a nonce of 12 bytes and a tag of 16", ErrFormat)
	}
	k.nonce = p.Nonce
	for _, r := range m.Content.Recipients {
		if !r.Alg.Algorithm.Equal(oidRSA) {
			return nil, fmt.Errorf("%w: PKCS #7: key encryption %v, only RSA with PKCS #1 v1.5 is read", ErrFormat, r.Alg.Algorithm)
		}
		k.keys = append(k.keys, r.Key)
	}
	return k, nil
}

func (k *pkcs7Key) recipients() int { return len(k.keys) }

// open tries all recipients: which is ours, the certificate would tell, which is not here.
//
// PKCS #1 v1.5 betrays a key to whoever can ask many times and see why a ciphertext is refused. Here a content key of the
// wrong form becomes a random one, in constant time, and all refusals after that are the same.
func (k *pkcs7Key) open(id *identity) ([]byte, error) {
	if id.rsa == nil {
		return nil, errNotOurs
	}
	cek := make([]byte, k.keySize)
	defer clear(cek)
	for _, wrapped := range k.keys {
		if len(wrapped) != id.rsa.Size() {
			continue
		}
		rand.Read(cek)
		//lint:ignore SA1019 ocicrypt has nothing else
		if rsa.DecryptPKCS1v15SessionKey(nil, id.rsa, wrapped, cek) != nil {
			continue
		}
		block, err := aes.NewCipher(cek)
		if err != nil {
			return nil, err
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		if plain, err := gcm.Open(nil, k.nonce, k.sealed, nil); err == nil {
			return plain, nil
		}
	}
	return nil, errNotOurs
}
