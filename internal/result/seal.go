package result

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
)

// Seal encrypts what is written to it to all recipients: age1… (X25519), age1pq1… (hybrid post-quantum), ssh-ed25519
// and ssh-rsa keys in the form of authorized_keys. age does not mix post-quantum recipients with others, as the
// weakest would decide. The result is whole only after Close.
func Seal(w io.Writer, recipients []string) (io.WriteCloser, error) {
	if len(recipients) == 0 {
		return nil, errors.New("no recipients to seal to")
	}
	rs := make([]age.Recipient, len(recipients))
	for i, s := range recipients {
		r, err := recipient(s)
		if err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i, err)
		}
		rs[i] = r
	}
	c, err := age.Encrypt(w, rs...)
	if err != nil {
		return nil, fmt.Errorf("seal the result: %w", err)
	}
	return c, nil
}

// CheckRecipient reports whether Seal can encrypt to s.
func CheckRecipient(s string) error {
	_, err := recipient(s)
	return err
}

func recipient(s string) (age.Recipient, error) {
	switch {
	case strings.HasPrefix(s, "age1pq1"):
		return age.ParseHybridRecipient(s)
	case strings.HasPrefix(s, "age1"):
		return age.ParseX25519Recipient(s)
	case strings.HasPrefix(s, "ssh-"):
		return agessh.ParseRecipient(s)
	}
	// Not quoted: it may be a secret key given by mistake.
	return nil, errors.New("is no age1…, ssh-ed25519 or ssh-rsa public key")
}

// Unseal decrypts with the first identity that fits. A result that was cut short is known only at its end: until
// then, and io.EOF, what was read may lack the rest.
func Unseal(r io.Reader, ids []age.Identity) (io.Reader, error) {
	p, err := age.Decrypt(r, ids...)
	if err != nil {
		return nil, fmt.Errorf("unseal the result: %w", err)
	}
	return p, nil
}

// ParseIdentities reads a file of age identities, one a line, or one unencrypted ssh private key in PEM.
func ParseIdentities(b []byte) ([]age.Identity, error) {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		id, err := agessh.ParseIdentity(b)
		if err != nil {
			return nil, fmt.Errorf("ssh identity: %w", err)
		}
		return []age.Identity{id}, nil
	}
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("age identities: %w", err)
	}
	return ids, nil
}
