//go:build !guest

package result

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"
)

// ParseIdentities reads a file of age identities, one a line; or one unencrypted private key in PEM: of ssh, PKCS #8, PKCS #1
// or SEC 1.
func ParseIdentities(b []byte) ([]age.Identity, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		ids, err := age.ParseIdentities(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("age identities: %w", err)
		}
		return ids, nil
	}
	key, err := ssh.ParseRawPrivateKey(b) // all of these forms
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	var ids []age.Identity
	var public any
	switch k := key.(type) {
	case *rsa.PrivateKey:
		public = k.Public()
	case *ecdsa.PrivateKey:
		public = k.Public()
	}
	if public != nil {
		if err := checkKey(public); err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		ids = append(ids, &pkixIdentity{key, fingerprint(der)})
	}
	if _, ec := key.(*ecdsa.PrivateKey); ec {
		return ids, nil // which age does not know as an ssh key
	}
	id, err := agessh.ParseIdentity(b)
	if err != nil {
		return nil, fmt.Errorf("ssh identity: %w", err)
	}
	return append(ids, id), nil
}

// A pkixIdentity opens what was sealed to a pkix.
type pkixIdentity struct {
	key   any
	print string
}

func (*pkixIdentity) String() string { return "[secret]" }

// Unwrap opens the stanza for this key.
func (i *pkixIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	at := slices.IndexFunc(stanzas, func(s *age.Stanza) bool {
		return s.Type == stanzaType && len(s.Args) == 1 && s.Args[0] == i.print
	})
	if at < 0 {
		return nil, age.ErrIncorrectIdentity
	}
	alg := jose.RSA_OAEP_256
	if _, ec := i.key.(*ecdsa.PrivateKey); ec {
		alg = jose.ECDH_ES_A256KW
	}
	return openStanza(stanzas[at].Body, alg, i.key)
}

const (
	maxJWE      = 4 << 10 // bytes; with RSA of 8192 bits it is 1500
	fileKeySize = 16
)

// openStanza takes what Wrap writes: go-jose alone would also take compression and headers that mean something else.
func openStanza(body []byte, alg jose.KeyAlgorithm, key any) ([]byte, error) {
	if len(body) > maxJWE {
		return nil, fmt.Errorf("stanza %s: JWE of %d bytes, at most %d", stanzaType, len(body), maxJWE)
	}
	protected, _, _ := strings.Cut(string(body), ".")
	header, err := base64.RawURLEncoding.Strict().DecodeString(protected)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: JWE header: %w", stanzaType, err)
	}
	var h struct {
		Alg, Enc string
		EPK      json.RawMessage
	}
	d := json.NewDecoder(bytes.NewReader(header))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return nil, fmt.Errorf("stanza %s: JWE header: %w", stanzaType, err)
	}
	jwe, err := jose.ParseEncryptedCompact(string(body), []jose.KeyAlgorithm{alg}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return nil, fmt.Errorf("stanza %s: %w", stanzaType, err)
	}
	fileKey, err := jwe.Decrypt(key)
	if err != nil || len(fileKey) != fileKeySize {
		return nil, errors.New("stanza " + stanzaType + ": altered, or not for this key")
	}
	return fileKey, nil
}
