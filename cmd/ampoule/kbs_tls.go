package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A development certificate is good for two years, and made anew, with the same key, when less than a month is left:
// what a manifest pins stays as it is.
const (
	certLifetime = 2 * 365 * 24 * time.Hour
	certRenewal  = 30 * 24 * time.Hour
)

const kbsSPKIHelp = `
usage: ampoule kbs spki --dir DIR

Prints the spki that a manifest pins for the broker in DIR: the SHA-256 of the public key of its development
certificate, which is made if it is not there. It is the same for every start and renewal, until DIR/tls is removed.

Example:
  ampoule kbs spki --dir broker`

func kbsSPKI(_ context.Context, args []string, std stdio) error {
	b := broker{listen: "localhost:0"}
	f := flags("kbs spki", kbsSPKIHelp, std)
	f.StringVar(&b.dir, "dir", "", "folder of the broker")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if err := required(f, "dir"); err != nil {
		return err
	}
	_, spki, err := b.certificate()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(std.out, spki)
	return err
}

// tls gives the configuration of the listener, and says what a manifest should pin.
func (b *broker) tls(std stdio) (*tls.Config, error) {
	pair, spki, err := b.certificate()
	if err != nil {
		return nil, err
	}
	std.say("kbs: certificate %s, spki %s", cmp.Or(b.cert, filepath.Join(b.dir, "tls/cert.pem")), spki)
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{pair}}, nil
}

// certificate gives the broker's certificate, the given one or that of development, and the hex of its key's digest.
func (b *broker) certificate() (tls.Certificate, string, error) {
	cert, key := b.cert, b.key
	if cert == "" {
		dir := filepath.Join(b.dir, "tls")
		cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		host, _, err := net.SplitHostPort(b.listen)
		if err == nil {
			err = developmentCert(cert, key, host, time.Now())
		}
		if err != nil {
			return tls.Certificate{}, "", fmt.Errorf("development certificate: %w", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("certificate: %w", err)
	}
	spki := sha256.Sum256(pair.Leaf.RawSubjectPublicKeyInfo)
	return pair, hex.EncodeToString(spki[:]), nil
}

// developmentCert makes what is missing or no longer good.
func developmentCert(certFile, keyFile, host string, now time.Time) error {
	if err := os.MkdirAll(filepath.Dir(keyFile), 0o700); err != nil {
		return err
	}
	key, err := developmentKey(keyFile)
	if err != nil {
		return err
	}
	names := []string{"localhost", "127.0.0.1", "::1"}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		names = append(names, host)
	}
	if good, err := stillGood(certFile, key, names, now); good || err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes([]byte(rand.Text())[:16]),
		Subject:               pkix.Name{CommonName: "ampoule kbs, development"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(certLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	return writePEM(certFile, "CERTIFICATE", der, 0o644)
}

func stillGood(file string, key crypto.Signer, names []string, now time.Time) (bool, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return false, fmt.Errorf("%s: no PEM in it; remove it, and another is made", file)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	if !key.Public().(*ecdsa.PublicKey).Equal(cert.PublicKey) || now.Add(certRenewal).After(cert.NotAfter) {
		return false, nil
	}
	for _, n := range names {
		if cert.VerifyHostname(n) != nil {
			return false, nil
		}
	}
	return true, nil
}

func developmentKey(file string) (crypto.Signer, error) {
	pair, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return key, writePEM(file, "PRIVATE KEY", der, 0o600)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(pair)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM in it; remove it, and another is made", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: %T, want an ECDSA key", file, key)
	}
	return ec, nil
}

// writePEM writes a file that is either whole or not there, by way of a temporary one.
func writePEM(file, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(file+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(mode), pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file+".new"))
	}
	return os.Rename(file+".new", file)
}
