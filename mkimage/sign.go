package mkimage

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ampoule-vm/ampoule/internal/debian"
	"github.com/ampoule-vm/ampoule/internal/uki"
)

// SignInfo is the signature of a UKI for Secure Boot. It is not reproducible, being the key owner's; all else is, and what
// firmware measures of the UKI does not depend on it.
type SignInfo struct {
	Certificate string `json:"certificate_sha256"` // of its DER
	Subject     string `json:"subject"`
	Digest      string `json:"authenticode_sha256"` // what is signed
}

// sign signs the image if o has a key, or puts o.signature on it.
func (o Options) sign(ctx context.Context, image []byte, info *Info) ([]byte, error) {
	if o.SecureBootKey == "" {
		if o.signature == nil {
			return image, nil
		}
		info.Signature = o.signedBy
		return uki.Attach(image, o.signature)
	}
	b, err := os.ReadFile(o.SecureBootCert)
	if err != nil {
		return nil, fmt.Errorf("certificate of the Secure Boot key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no PEM certificate", o.SecureBootCert)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.SecureBootCert, err)
	}
	signed, err := o.sbsign(ctx, image)
	if err != nil {
		return nil, err
	}
	// The tool is not trusted with the image: nothing but a signature of it is taken.
	digest, err := uki.Digest(image, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	signature, err := uki.Signature(signed)
	if err != nil || !bytes.Contains(signature, digest) {
		return nil, errors.Join(errors.New("sbsign left no signature of the image"), err)
	}
	info.Signature = &SignInfo{hexSum(cert.Raw), cert.Subject.String(), hex.EncodeToString(digest)}
	return uki.Attach(image, signature)
}

// sbsign runs Debian's, which need not be installed. The key stays in its file.
func (o Options) sbsign(ctx context.Context, image []byte) ([]byte, error) {
	root, err := debian.Fetch(ctx, filepath.Join(o.Cache, "debian"), stubPin.Suite, []string{"sbsigntool"}, o.Progress)
	if err != nil {
		return nil, fmt.Errorf("sbsign: %w", err)
	}
	tmp, err := os.MkdirTemp("", "ampoule-sign-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	in, out := filepath.Join(tmp, "in"), filepath.Join(tmp, "out")
	if err := os.WriteFile(in, image, 0o600); err != nil {
		return nil, err
	}
	cmd := root.Command(ctx, "sbsign", "--key", o.SecureBootKey, "--cert", o.SecureBootCert, "--output", out, in)
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("sbsign --key %s --cert %s: %w: %s", o.SecureBootKey, o.SecureBootCert, err, bytes.TrimSpace(said))
	}
	return os.ReadFile(out)
}
