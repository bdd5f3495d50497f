package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// A receipt is kept for years and passed on, so that whoever altered it in between must be found out everywhere: a byte that
// no signature covers, and that no check would miss, could be taken for something that was signed.

// take gives o what a receipt brings to be judged with. Without any, only what the evidence itself brings is looked at.
func (o *Options) take(kind evidence.Kind, c *result.Collateral) (err error) {
	if c == nil {
		return nil
	}
	amd := kind == evidence.SNP || kind == evidence.AzSNPvTPM
	switch {
	case amd && c.AMD != nil && c.Intel == nil:
		if o.amd, o.VCEKs, err = parseAMD(c.AMD); err == nil && (o.amd.leaf != nil) != (kind == evidence.SNP) {
			err = fmt.Errorf("%d certificates beside evidence of kind %s", len(c.AMD.Certificates), kind)
		}
	case !amd && c.AMD == nil && c.Intel != nil:
		o.Collateral = &Collateral{
			TCBInfo: c.Intel.TCBInfo, QEIdentity: c.Intel.QEIdentity, Issuers: c.Intel.Issuers, PCKCRL: c.Intel.PCKCRL, RootCRL: c.Intel.RootCRL,
		}
		var normal *result.IntelCollateral
		if normal, err = o.Collateral.Normal(); err == nil && !equalIntel(normal, c.Intel) {
			err = errors.New("not in its one form")
		}
	default:
		err = fmt.Errorf("of another maker than evidence of kind %s, or of both", kind)
	}
	if err != nil {
		return fmt.Errorf("collateral: %w", err)
	}
	return nil
}

func equalIntel(a, b *result.IntelCollateral) bool {
	return bytes.Equal(a.TCBInfo, b.TCBInfo) && bytes.Equal(a.QEIdentity, b.QEIdentity) && bytes.Equal(a.Issuers, b.Issuers) &&
		bytes.Equal(a.PCKCRL, b.PCKCRL) && bytes.Equal(a.RootCRL, b.RootCRL)
}

// An amdCollateral is what a receipt brings about the key that signed its report.
type amdCollateral struct {
	leaf    *endorsement // nil on Azure, where the evidence has it
	ca, ark *x509.Certificate
	crl     *x509.RevocationList
}

func parseAMD(c *result.AMDCollateral) (*amdCollateral, *CertStore, error) {
	a := new(amdCollateral)
	store := new(CertStore)
	n := len(c.Certificates)
	if n != 2 && n != 3 {
		return nil, nil, fmt.Errorf("%d certificates, want the VCEK or VLEK unless the evidence must have it, then ASK or ASVK, then ARK", n)
	}
	if n == 3 {
		if err := store.Add(c.Certificates[0]); err != nil {
			return nil, nil, fmt.Errorf("certificates[0]: %w", err)
		}
		a.leaf = store.certs[0]
		if !bytes.Equal(a.leaf.cert.Raw, c.Certificates[0]) {
			return nil, nil, errors.New("certificates[0]: is not DER")
		}
	}
	var err1, err2, err3 error
	a.ca, err1 = x509.ParseCertificate(c.Certificates[n-2])
	a.ark, err2 = x509.ParseCertificate(c.Certificates[n-1])
	a.crl, err3 = parseCRL(c.CRL)
	return a, store, errors.Join(err1, err2, err3)
}

// moment is when the certificate of a report's key must be valid. AMD makes one when it is asked for, which of a receipt that
// lacked it is after the run.
func (o *Options) moment(e *endorsement) time.Time {
	at := o.now()
	if o.amd != nil && o.amd.leaf == e && e.cert.NotBefore.After(at) {
		return e.cert.NotBefore
	}
	return at
}

// amdWhole says what of the certificates around a report does not hold: those of the evidence, and those of the receipt.
func (o *Options) amdWhole(c *Claims, table []byte) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	ark := c.root.certs.Ark
	certs, err := evidence.ParseCerts(table)
	if err != nil {
		return []error{err}
	}
	if o.amd != nil && o.amd.leaf != nil && len(certs) > 0 {
		fail("evidence: has certificates, and the collateral has them")
	}
	for _, cert := range certs {
		switch cert.Type {
		case c.Signer.String(): // it verified the report
		case "ARK":
			if !bytes.Equal(cert.DER, ark.Raw) {
				fail("evidence: its ARK is not %s", ark.Subject.CommonName)
			}
		case "ASK":
			if ask, err := x509.ParseCertificate(cert.DER); err != nil || ask.CheckSignatureFrom(ark) != nil {
				fail("evidence: its ASK is not of %s", ark.Subject.CommonName)
			}
		case "CRL":
			if l, err := parseCRL(cert.DER); err != nil || l.CheckSignatureFrom(ark) != nil {
				fail("evidence: its revocation list is not of %s", ark.Subject.CommonName)
			}
		default:
			fail("evidence: has a %s, and the report is signed by a %s", cert.Type, c.Signer)
		}
	}
	a := o.amd
	if a == nil {
		return errs
	}
	if !a.ark.Equal(ark) {
		fail("collateral: its ARK is not %s", ark.Subject.CommonName)
	}
	if err := errors.Join(a.ca.CheckSignatureFrom(ark), a.crl.CheckSignatureFrom(ark)); err != nil {
		fail("collateral: not signed by %s: %w", ark.Subject.CommonName, err)
	}
	at := o.now()
	if a.crl.ThisUpdate.After(at) {
		at = a.crl.ThisUpdate // it was fetched after the run, and says all the more
	}
	if err := new(Collateral).unrevoked("collateral: AMD's CRL", a.crl.Raw, ark, at, a.ca, c.endorsed.cert); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// whole says what of a quote nobody vouches for.
func (p *intelPlatform) whole(q *evidence.TDXQuote, quote []byte) (errs []error) {
	if len(quote) != len(q.Signed)+4+len(q.Auth) {
		errs = append(errs, errors.New("quote: bytes after its end"))
	}
	// Intel's own ends in a zero byte.
	if got := bytes.TrimSuffix(p.chain, []byte{0}); !bytes.Equal(bytes.TrimSuffix(got, []byte("\n")), bytes.TrimSuffix(pemOf(p.path), []byte("\n"))) {
		errs = append(errs, errors.New("quote: its PCK certificates are not one chain from the platform to the root"))
	}
	if err := p.root.CheckSignatureFrom(p.root); err != nil {
		errs = append(errs, fmt.Errorf("quote: root: %w", err))
	}
	return errs
}

func pemOf(certs []*x509.Certificate) (out []byte) {
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Normal gives the collateral in the one form that a receipt has it in: answers without white space around what is signed,
// certificates in PEM, lists in DER. Nothing is verified.
func (c *Collateral) Normal() (n *result.IntelCollateral, err error) {
	n = new(result.IntelCollateral)
	if n.TCBInfo, err = normalAnswer(c.TCBInfo, "tcbInfo"); err != nil {
		return nil, fmt.Errorf("TCB info: %w", err)
	}
	if n.QEIdentity, err = normalAnswer(c.QEIdentity, "enclaveIdentity"); err != nil {
		return nil, fmt.Errorf("QE identity: %w", err)
	}
	chain := c.Issuers
	if text, err := url.PathUnescape(string(chain)); err == nil {
		chain = []byte(text)
	}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		n.Issuers = append(n.Issuers, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})...)
	}
	n.PCKCRL, n.RootCRL = derOf(c.PCKCRL), derOf(c.RootCRL)
	return n, nil
}

// normalAnswer writes an answer of Intel's with its two members and nothing else.
func normalAnswer(answer []byte, member string) ([]byte, error) {
	m, err := evidence.ObjectOf(answer, []string{member, "signature"}, nil)
	if err != nil {
		return nil, err
	}
	var signature string
	if err := json.Unmarshal(m["signature"], &signature); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return fmt.Appendf(nil, `{"%s":%s,"signature":%q}`, member, []byte(m[member]), strings.ToLower(signature)), nil
}

// derOf reads PEM, hex as a PCCS gives it, or DER.
func derOf(list []byte) []byte {
	if block, _ := pem.Decode(list); block != nil {
		return block.Bytes
	}
	if der, err := hex.DecodeString(strings.TrimSpace(string(list))); err == nil {
		return der
	}
	return list
}

// moment is when collateral that a receipt brings is judged: when the run completed or, as it was fetched after that, when the
// newest of its parts was issued. Nothing is verified here: the parts are, with their dates.
func (c *Collateral) moment(at time.Time) time.Time {
	later := func(t time.Time) {
		if t.After(at) {
			at = t
		}
	}
	for member, answer := range map[string][]byte{"tcbInfo": c.TCBInfo, "enclaveIdentity": c.QEIdentity} {
		var dated map[string]json.RawMessage
		var issued struct {
			Issued time.Time `json:"issueDate"`
		}
		if json.Unmarshal(answer, &dated) == nil && json.Unmarshal(dated[member], &issued) == nil {
			later(issued.Issued)
		}
	}
	for _, der := range [][]byte{c.PCKCRL, c.RootCRL} {
		if l, err := x509.ParseRevocationList(der); err == nil {
			later(l.ThisUpdate)
		}
	}
	return at
}
