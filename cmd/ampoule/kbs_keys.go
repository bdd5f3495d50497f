package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

const kbsKeygenHelp = `
usage: ampoule kbs keygen --out FILE

Makes the Ed25519 key of a broker's administrator: FILE, which stays with the administrator, and FILE.pub for the
broker's --admin-key; Trustee takes it as public_key_uri. Files that are there are never replaced.

Example:
  ampoule kbs keygen --out admin`

func kbsKeygen(_ context.Context, args []string, std stdio) error {
	f := flags("kbs keygen", kbsKeygenHelp, std)
	out := f.String("out", "", "file for the private key; the public one is put beside it")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if err := required(f, "out"); err != nil {
		return err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	defer clear(key)
	public, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	defer clear(private)
	if err := newPEM(*out, "PRIVATE KEY", private, 0o600); err != nil {
		return err
	}
	if err := newPEM(*out+".pub", "PUBLIC KEY", public, 0o644); err != nil {
		return errors.Join(err, os.Remove(*out)) // a private key without its public half is of no use
	}
	std.say("kbs: %s is the administrator's, %s.pub the broker's", *out, *out)
	return nil
}

// newPEM writes a file that must not be there yet.
func newPEM(file, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close())
}

const kbsTokenHelp = `
usage: ampoule kbs token --key FILE [--role ROLE] [--lifetime 1h]

Prints an administrator's token, a JWT that the key has signed: for --token of the other verbs, for kbs-client's
--admin-token-file, or for curl -H "Authorization: Bearer …". Who has it is the administrator while it lasts.

Example:
  ampoule kbs token --key admin --lifetime 10m > token`

func kbsToken(_ context.Context, args []string, std stdio) error {
	f := flags("kbs token", kbsTokenHelp, std)
	key := f.String("key", "", "administrator's private key")
	role := f.String("role", "admin", "role in the token")
	lifetime := f.Duration("lifetime", time.Hour, "how long it is good for, at most 24h")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if err := required(f, "key"); err != nil {
		return err
	}
	token, err := newToken(std, *key, *role, *lifetime)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(std.out, token)
	return err
}
