package imagepolicy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/openpgp"
)

// MaxSignatures is how many signatures of a kind are looked at for one image.
const MaxSignatures = 64

// MaxKey is the size of a key in bytes, or of a keyring, beyond which it is refused.
const MaxKey = openpgp.MaxKeys

// A Claim is what is said of an image, before any of it is verified.
type Claim struct {
	Reference string   // [docker://]registry/repository[:tag][@sha256:…], as the image was asked for
	Digests   []string // sha256:…, of its manifest, and of the index that led there; a signature of either will do
	Cosign    []Cosign
	Simple    [][]byte // signed OpenPGP messages
}

// Cosign is one signature as cosign keeps it: a payload, and beside it a signature in base64.
type Cosign struct {
	Payload   []byte
	Signature string
}

// Needs says which kinds of signatures are required of an image. What is no reference needs none: Check rejects it.
func (p *Policy) Needs(ref string) (cosign, simple bool) {
	for _, q := range p.Decide(ref) {
		cosign, simple = cosign || q.Type == SigstoreSigned, simple || q.Type == SignedBy
	}
	return cosign, simple
}

// KeyPaths are the resources, repository/type/tag, of the keys that are required of an image, sorted and each once.
func (p *Policy) KeyPaths(ref string) []string {
	var all []string
	for _, q := range p.Decide(ref) {
		if path, ok := strings.CutPrefix(q.KeyPath, kbsScheme); ok {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Verify says whether all that the policy requires of an image holds. key gives the bytes of a resource, one of
// KeyPaths, or nil. An error wraps ErrRejected and names the requirement, its key, and what became of each signature.
func (p *Policy) Verify(c Claim, key func(path string) []byte, now time.Time) error {
	if err := p.Check(c.Reference); err != nil {
		return err
	}
	list, scope, err := p.decide(c.Reference)
	if err != nil {
		return err // cannot be: Check has read it
	}
	for i, q := range list {
		var err error
		data := q.KeyData
		if q.KeyPath != "" {
			data = key(strings.TrimPrefix(q.KeyPath, kbsScheme))
		}
		switch q.Type {
		case SigstoreSigned:
			err = q.cosign(c, data)
		case SignedBy:
			err = q.simple(c, data, now)
		}
		if err != nil {
			return fmt.Errorf("image %.300q: %w: %s[%d] asks for %s with the key in %s: %w", c.Reference, ErrRejected, scope, i, q.Type, q.keyName(), err)
		}
	}
	return nil
}

func (q Requirement) keyName() string {
	if q.KeyPath != "" {
		return fmt.Sprintf("%.200q", q.KeyPath)
	}
	return "keyData"
}

// cosign looks for one signature that holds.
func (q Requirement) cosign(c Claim, data []byte) error {
	pub, err := publicKeyOf(data)
	if err != nil {
		return err
	}
	return anyOf(len(c.Cosign), func(i int) error {
		s := c.Cosign[i]
		sig, err := base64.StdEncoding.DecodeString(s.Signature)
		if err != nil {
			return errors.New("is not base64")
		}
		if !signed(pub, s.Payload, sig) {
			return errors.New("is not good under this key")
		}
		return q.says(s.Payload, typeCosign, c)
	})
}

func (q Requirement) simple(c Claim, data []byte, now time.Time) error {
	keys, err := openpgp.ReadKeys(data)
	if err != nil {
		return err
	}
	return anyOf(len(c.Simple), func(i int) error {
		content, _, err := keys.Verify(c.Simple[i], now)
		if err != nil {
			return err
		}
		return q.says(content, typeSimple, c)
	})
}

// anyOf wants one of n to hold, and otherwise says what became of each.
func anyOf(n int, holds func(int) error) error {
	if n == 0 {
		return errors.New("no signature was found")
	}
	if n > MaxSignatures {
		return fmt.Errorf("%d signatures were found, at most %d are looked at", n, MaxSignatures)
	}
	var why []string
	for i := range n {
		err := holds(i)
		if err == nil {
			return nil
		}
		if len(why) < 8 {
			why = append(why, fmt.Sprintf("signature %d: %v", i+1, err))
		}
	}
	return fmt.Errorf("none of %d signatures holds: %s", n, strings.Join(why, "; "))
}

// says holds a payload, whose signature is good, against the image.
func (q Requirement) says(b []byte, kind string, c Claim) error {
	p, err := readPayload(b)
	switch {
	case err != nil:
		return err
	case p.kind != kind:
		return fmt.Errorf("is good, and of type %.60q, want %q", p.kind, kind)
	case !slices.Contains(c.Digests, p.digest):
		return fmt.Errorf("is good, and for %.80q; the image is %s", p.digest, strings.Join(c.Digests, " or "))
	case !q.Identity.matches(q.Type, c.Reference, p.reference):
		return fmt.Errorf("is good, and made for %.200q, which signedIdentity does not let stand for this reference", p.reference)
	}
	return nil
}

// publicKeyOf reads the one PEM of a PUBLIC KEY: RSA of at least 2048 bits, ECDSA, or Ed25519.
func publicKeyOf(data []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the key is not the PEM of one PUBLIC KEY")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the key: %w", err)
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("the key is RSA of %d bits, want 2048", k.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if k.Params().BitSize < 256 {
			return nil, fmt.Errorf("the key is on %s, want P-256, P-384 or P-521", k.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("the key is a %T, want RSA, ECDSA or Ed25519", pub)
	}
	return pub, nil
}

// signed reports whether sig is a signature over message as cosign makes them with a key of its own: over SHA-256, with
// PKCS #1 v1.5 for RSA, and in ASN.1 for ECDSA, for which newer ones take the hash that goes with the curve.
func signed(pub crypto.PublicKey, message, sig []byte) bool {
	sum := func(h crypto.Hash) []byte {
		w := h.New()
		w.Write(message)
		return w.Sum(nil)
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum(crypto.SHA256), sig) == nil
	case *ecdsa.PublicKey:
		own := crypto.SHA256
		switch k.Params().BitSize {
		case 384:
			own = crypto.SHA384
		case 521:
			own = crypto.SHA512
		}
		return ecdsa.VerifyASN1(k, sum(crypto.SHA256), sig) || own != crypto.SHA256 && ecdsa.VerifyASN1(k, sum(own), sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, sig)
	}
	return false
}
