package result

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	josecipher "github.com/go-jose/go-jose/v4/cipher"
	"golang.org/x/crypto/ssh"
)

// stanzaType names the age stanza that wraps a file key for an RSA or EC key: its one argument is the key's fingerprint,
// its body a compact JWE (RFC 7516 §7.1) of the 16 bytes. docs/RESULTS.md has it for other languages.
const stanzaType = "pkix-jwe"

const pemBegin = "-----BEGIN PUBLIC KEY-----"

// The sizes of RSA keys that are sealed to, bits.
const (
	minRSA = 2048
	maxRSA = 8192
)

// pkixRecipient reads one SubjectPublicKeyInfo in PEM: RSA, EC on P-256, P-384 or P-521, or Ed25519, which age knows as an ssh key.
func pkixRecipient(text string) (age.Recipient, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(block.Headers) > 0 || strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("is not one PEM block PUBLIC KEY")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	if e, ok := key.(ed25519.PublicKey); ok {
		s, err := ssh.NewPublicKey(e)
		if err != nil {
			return nil, err
		}
		return agessh.NewEd25519Recipient(s)
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return &pkix{key, fingerprint(block.Bytes)}, nil
}

// checkKey takes the keys that a content key can be wrapped for.
func checkKey(key any) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return fmt.Errorf("RSA key of %d bits; want %d to %d", n, minRSA, maxRSA)
		}
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521() {
			return nil
		}
	}
	return errors.New("public key of another kind; want RSA, EC on P-256, P-384 or P-521, or Ed25519")
}

// fingerprint is SHA-256 of a SubjectPublicKeyInfo, in base64 as age writes it.
func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// A pkix is an *rsa.PublicKey or *ecdsa.PublicKey that is sealed to.
type pkix struct {
	key   any
	print string
}

// Wrap makes the JWE. Its two halves are the library's and the standard library's; the rest of the library's encrypter would be 80 kB
// of PID 1.
func (r *pkix) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	cek := make([]byte, 32)
	rand.Read(cek)
	defer clear(cek)
	header, wrapped, err := wrapKey(r.key, cek)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, gcm.NonceSize())
	rand.Read(iv)
	protected := base64url([]byte(header))
	sealed := gcm.Seal(nil, iv, fileKey, []byte(protected))
	text, tag := sealed[:len(fileKey)], sealed[len(fileKey):]
	jwe := strings.Join([]string{protected, base64url(wrapped), base64url(iv), base64url(text), base64url(tag)}, ".")
	return []*age.Stanza{{Type: stanzaType, Args: []string{r.print}, Body: []byte(jwe)}}, nil
}

var base64url = base64.RawURLEncoding.EncodeToString

// wrapKey wraps a content key (RFC 7518 §4.3, §4.6), and gives the header that says how.
func wrapKey(key any, cek []byte) (header string, wrapped []byte, err error) {
	if k, ok := key.(*rsa.PublicKey); ok {
		wrapped, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, k, cek, nil)
		return `{"alg":"RSA-OAEP-256","enc":"A256GCM"}`, wrapped, err
	}
	k := key.(*ecdsa.PublicKey)
	once, err := ecdsa.GenerateKey(k.Curve, rand.Reader)
	if err != nil {
		return "", nil, err
	}
	point, err := once.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return "", nil, err
	}
	kek := josecipher.DeriveECDHES("ECDH-ES+A256KW", nil, nil, once, k, 32)
	defer clear(kek)
	block, err := aes.NewCipher(kek)
	if err != nil {
		return "", nil, err
	}
	wrapped, err = josecipher.KeyWrap(block, cek)
	x, y := point[1:1+len(point)/2], point[1+len(point)/2:]
	header = fmt.Sprintf(`{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"kty":"EC","crv":"%s","x":"%s","y":"%s"}}`, k.Params().Name, base64url(x), base64url(y))
	return header, wrapped, err
}
