//go:build !guest

package image

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// A Recipient is one who can open what is encrypted.
type Recipient struct {
	annotation string // that names it
	wrap       func(plain []byte) ([]byte, error)
}

// ForKey is whoever gets kek, 32 bytes, which the KBS has at kid (kbs:///repo/type/tag): CoCo's key packet.
func ForKey(kek []byte, kid string, o EncryptOptions) (Recipient, error) {
	path, err := KeyPath(kid)
	if err != nil {
		return Recipient{}, err
	}
	if path == samplePath {
		return Recipient{}, fmt.Errorf("%w: %s names a key that is public; choose another", ErrSampleKey, kid)
	}
	if len(kek) != keySize {
		return Recipient{}, fmt.Errorf("%w: the key has %d bytes, want %d%s", ErrKey, len(kek), keySize, textHint(kek))
	}
	return Recipient{annotationKeys, wrapper{kek, kid, o.PacketV2}.wrap}, nil
}

// ForPublicKey is whoever has the private half of an RSA or EC key: ocicrypt's JWE. b is a public key as PEM or DER (PKIX),
// or as a JWK, whose alg then says how the layer key is wrapped. Whoever has b can make images that this key opens: it
// hides an image, and says nothing of where that comes from.
func ForPublicKey(b []byte) (Recipient, error) {
	var to jose.Recipient
	if t := strings.TrimSpace(string(b)); strings.HasPrefix(t, "{") {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON([]byte(t)); err != nil || !k.IsPublic() {
			return Recipient{}, errors.New("public key: is JSON, and no JWK of a public key")
		}
		to.Key, to.Algorithm = k.Key, jose.KeyAlgorithm(k.Algorithm)
	} else {
		if block, _ := pem.Decode(b); block != nil {
			b = block.Bytes
		}
		k, err := x509.ParsePKIXPublicKey(b)
		if err != nil {
			return Recipient{}, fmt.Errorf("public key: want RSA or EC as PEM, DER or JWK: %w", err)
		}
		to.Key = k
	}
	suits := false // a JWK may say how
	switch k := to.Key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return Recipient{}, fmt.Errorf("public key: RSA of %d bits, want %d to %d", n, minRSA, maxRSA)
		}
		if to.Algorithm == "" {
			to.Algorithm = jose.RSA_OAEP // what ocicrypt writes, and all its versions read
		}
		suits = to.Algorithm == jose.RSA_OAEP || to.Algorithm == jose.RSA_OAEP_256
	case *ecdsa.PublicKey:
		if c := k.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
			return Recipient{}, fmt.Errorf("public key: EC on %s, want P-256, P-384 or P-521", c.Params().Name)
		}
		if to.Algorithm == "" {
			to.Algorithm = jose.ECDH_ES_A256KW
		}
		suits = to.Algorithm == jose.ECDH_ES_A128KW || to.Algorithm == jose.ECDH_ES_A192KW || to.Algorithm == jose.ECDH_ES_A256KW
	}
	if !suits {
		return Recipient{}, fmt.Errorf("public key: a %T for %q, want RSA with RSA-OAEP(-256) or EC with ECDH-ES+A128KW to A256KW", to.Key, to.Algorithm)
	}
	return Recipient{annotationJWE, func(plain []byte) ([]byte, error) {
		e, err := jose.NewMultiEncrypter(jose.A256GCM, []jose.Recipient{to}, nil)
		if err != nil {
			return nil, err
		}
		j, err := e.Encrypt(plain)
		if err != nil {
			return nil, err
		}
		return []byte(j.FullSerialize()), nil
	}}, nil
}

// ForCertificate is whoever has the private key of an X.509 certificate with an RSA key, PEM or DER: ocicrypt's PKCS #7.
// What is said of ForPublicKey holds here too.
func ForCertificate(b []byte) (Recipient, error) {
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return Recipient{}, fmt.Errorf("certificate: %w", err)
	}
	k, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok || k.N.BitLen() < minRSA || k.N.BitLen() > maxRSA {
		return Recipient{}, fmt.Errorf("certificate of %s: want an RSA key of %d to %d bits; for EC use JWE", c.Subject, minRSA, maxRSA)
	}
	return Recipient{annotationPKCS7, func(plain []byte) ([]byte, error) { return sealPKCS7(plain, c, k) }}, nil
}

func sealPKCS7(plain []byte, c *x509.Certificate, to *rsa.PublicKey) ([]byte, error) {
	cek := make([]byte, 16)
	defer clear(cek)
	rand.Read(cek)
	p := gcmParameters{Nonce: make([]byte, 12), ICVLen: 16}
	rand.Read(p.Nonce)
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	params, err := asn1.Marshal(p)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 all that ocicrypt's versions read
	wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, to, cek)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(pkcs7Message{oidEnveloped, pkcs7Enveloped{
		Recipients: []pkcs7Recipient{{
			Issuer: pkcs7Issuer{asn1.RawValue{FullBytes: c.RawIssuer}, c.SerialNumber},
			Alg:    pkix.AlgorithmIdentifier{Algorithm: oidRSA}, Key: wrapped,
		}},
		Content: pkcs7Content{oidData,
			pkix.AlgorithmIdentifier{Algorithm: oidAES128GCM, Parameters: asn1.RawValue{Tag: asn1.TagSequence, Bytes: params}},
			asn1.RawValue{Class: asn1.ClassContextSpecific, Bytes: gcm.Seal(nil, p.Nonce, plain, nil)}},
	}})
}

// annotate wraps a layer's private options for all.
func annotate(annotations map[string]string, to []Recipient, priv []byte) error {
	for _, r := range to {
		item, err := r.wrap(priv)
		if err != nil {
			return err
		}
		text := base64.StdEncoding.EncodeToString(item)
		if was := annotations[r.annotation]; was != "" {
			text = was + "," + text
		}
		annotations[r.annotation] = text
	}
	return nil
}

// wrapper makes key packets.
type wrapper struct {
	kek []byte
	kid string
	v2  bool
}

func (w wrapper) wrap(plain []byte) ([]byte, error) {
	block, err := aes.NewCipher(w.kek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	p := wirePacket{KID: w.kid, WrappedData: gcm.Seal(nil, iv, plain, nil), IV: iv, WrapType: wrapGCM}
	if w.v2 {
		p.Version, p.Provider = "0.1.0", "kbs"
		p.Settings, p.Annotations = json.RawMessage("{}"), json.RawMessage("{}")
	}
	return json.Marshal(p)
}

// WrapKey makes the annotation packet of a layer, for a key provider (wire/SPEC.md §4.2, §4.3): data are the private options of
// the layer, opaque here, kek is 32 bytes, and kid the key's id, kbs:///repo/type/tag.
func WrapKey(data, kek []byte, kid string, o EncryptOptions) ([]byte, error) {
	host, path, err := splitKID(kid)
	if err != nil {
		return nil, err
	}
	if path == samplePath {
		return nil, fmt.Errorf("%w (%s): anybody could read the layer; name a key of your own", ErrSampleKey, kid)
	}
	if len(kek) != keySize {
		return nil, fmt.Errorf("%w: %s has %d bytes, want %d%s", ErrKey, path, len(kek), keySize, textHint(kek))
	}
	return wrapper{kek: kek, kid: "kbs://" + host + "/" + path, v2: o.PacketV2}.wrap(data)
}

// UnwrapKey opens a packet of at most 64 KiB with the key that key gives for its path, repo/type/tag, and gives the private
// options of the layer. Nothing is said of them: under A256CTR, which has no tag, another key gives other bytes.
func UnwrapKey(packet []byte, key func(path string) ([]byte, error)) ([]byte, error) {
	if len(packet) > maxAnnotation {
		return nil, fmt.Errorf("%w: key packet of %d bytes, at most %d", ErrTooBig, len(packet), maxAnnotation)
	}
	p, err := parsePacket(packet)
	if err != nil {
		return nil, err
	}
	kek, err := key(p.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKey, p.path, err)
	}
	defer clear(kek)
	data, err := p.open(kek)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrKey, p.path, err)
	}
	return data, nil
}
