package result

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
)

// Seal encrypts what is written to it to all recipients: age1… (X25519), age1pq1… (hybrid post-quantum), ssh-ed25519
// and ssh-rsa keys in the form of authorized_keys, and PKIX keys (RSA, EC, Ed25519) in PEM. age does not mix post-quantum
// recipients with others, as the weakest would decide. The result is whole only after Close.
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
	case strings.HasPrefix(s, pemBegin):
		return pkixRecipient(s)
	}
	// Not quoted: it may be a secret key given by mistake.
	return nil, errors.New("is no age1…, ssh-ed25519, ssh-rsa or PEM public key")
}
