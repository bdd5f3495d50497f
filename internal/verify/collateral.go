package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Collateral is what Intel's provisioning service (PCS, version 4) says of TDX platforms, as it says it; all of it is signed,
// and checked when a quote is. A Collateral is for platforms of one FMSPC and for the weeks that Intel gives it.
type Collateral struct {
	TCBInfo    []byte // the answer to tdx/certification/v4/tcb
	QEIdentity []byte // the answer to tdx/certification/v4/qe/identity
	Issuers    []byte // header TCB-Info-Issuer-Chain, percent-encoded or not: the TCB signing certificate, then the root, PEM
	PCKCRL     []byte // the answer to sgx/certification/v4/pckcrl for the CA that certified the platform, DER or PEM
	RootCRL    []byte // the CRL of the Intel SGX Root CA, DER, PEM, or hex as a PCCS gives it
}

const maxCollateral = 256 << 10

// LoadCollateral reads tcb_info.json, qe_identity.json, tcb_signing_chain.pem, pck_crl.der and root_ca_crl.der of a folder,
// at most 256 KiB each. All must be there.
func LoadCollateral(dir string) (*Collateral, error) {
	c := new(Collateral)
	for name, dst := range map[string]*[]byte{
		"tcb_info.json": &c.TCBInfo, "qe_identity.json": &c.QEIdentity, "tcb_signing_chain.pem": &c.Issuers,
		"pck_crl.der": &c.PCKCRL, "root_ca_crl.der": &c.RootCRL,
	} {
		b, err := readBounded(filepath.Join(dir, name), maxCollateral)
		if err != nil {
			return nil, fmt.Errorf("collateral: %s: %w", name, err)
		}
		*dst = b
	}
	return c, nil
}

// judge holds a platform whose quote's signatures hold against the collateral. Whatever cannot be judged is an error, and
// then there is no level.
func (c *Collateral) judge(p intelPlatform, r *evidence.TDXReport, o Options) (*tcbLevel, error) {
	fail := func(format string, args ...any) (*tcbLevel, error) {
		return nil, fmt.Errorf("collateral: "+format, args...)
	}
	if o.whole {
		o.Now = c.moment(o.now())
	}
	now := o.now()
	chain := c.Issuers
	if text, err := url.PathUnescape(string(chain)); err == nil {
		chain = []byte(text)
	}
	signers, err := underIntel(chain, tcbName, o)
	if err != nil {
		return fail("issuers: %w", err)
	}
	if o.whole && (!bytes.Equal(pemOf(signers), chain) || p.root.CheckSignatureFrom(p.root) != nil || !signers[len(signers)-1].Equal(p.root)) {
		return fail("issuers: are not one chain from the signer to the root of the quote")
	}
	if err := errors.Join(
		c.unrevoked("root CRL", c.RootCRL, p.root, now, p.ca, signers[0]),
		c.unrevoked("PCK CRL", c.PCKCRL, p.ca, now, p.pck),
	); err != nil {
		return fail("%w", err)
	}
	var info tcbInfo
	if err := signedBy(signers[0], c.TCBInfo, "tcbInfo", &info); err != nil {
		return fail("TCB info: %w", err)
	}
	var qe qeIdentity
	if err := signedBy(signers[0], c.QEIdentity, "enclaveIdentity", &qe); err != nil {
		return fail("QE identity: %w", err)
	}
	pck, err := parsePCK(p.pck)
	if err != nil {
		return nil, err
	}
	platform, err := info.level(&pck, r, now)
	if err != nil {
		return fail("TCB info: %w", err)
	}
	enclave, err := qe.level(p.qe, now)
	if err != nil {
		return fail("QE identity: %w", err)
	}
	platform.Status |= enclave.Status
	platform.Date = min(platform.Date, enclave.Date) // RFC 3339 in UTC, so that the text sorts
	platform.Advisories = join(platform.Advisories, enclave.Advisories)
	if s := platform.Status; !s.accepted(o.TCBStatus) {
		want := strings.Join(append([]string{"UpToDate"}, o.TCBStatus...), " or ")
		return &platform, &ClaimError{"tcb_status", want, strings.TrimSpace(s.String() + " " + strings.Join(platform.Advisories, " "))}
	}
	return &platform, nil
}

// parseCRL reads a list in DER and nothing behind it, which the library lets pass.
func parseCRL(der []byte) (*x509.RevocationList, error) {
	l, err := x509.ParseRevocationList(der)
	if err == nil && len(l.Raw) != len(der) {
		return nil, errors.New("bytes after its end")
	}
	return l, err
}

// unrevoked says that a list is its issuer's, is of this time, and names none of the certificates.
func (*Collateral) unrevoked(name string, list []byte, issuer *x509.Certificate, now time.Time, certs ...*x509.Certificate) error {
	crl, err := parseCRL(derOf(list))
	if err == nil {
		err = crl.CheckSignatureFrom(issuer)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := current(crl.ThisUpdate, crl.NextUpdate, now); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, c := range certs {
		for _, e := range crl.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return fmt.Errorf("%s: certificate of %q was revoked on %s", name, c.Subject.CommonName, e.RevocationTime.Format(time.DateOnly))
			}
		}
	}
	return nil
}

// signedBy reads the member of an answer over whose bytes the signature is.
func signedBy(signer *x509.Certificate, answer []byte, member string, dst any) error {
	m, err := evidence.ObjectOf(answer, []string{member, "signature"}, nil)
	if err != nil {
		return err
	}
	var text string
	if err := json.Unmarshal(m["signature"], &text); err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	signature, err := hex.DecodeString(text)
	if err != nil {
		return fmt.Errorf("signature: %w", err)
	}
	if err := verifyP256(signer.PublicKey, m[member], signature); err != nil {
		return err
	}
	return json.Unmarshal(m[member], dst)
}

func current(from, until, now time.Time) error {
	if now.Before(from) || now.After(until) || until.IsZero() {
		return fmt.Errorf("good from %s to %s, and it is %s", from.Format(time.DateOnly), until.Format(time.DateOnly), now.Format(time.DateOnly))
	}
	return nil
}
