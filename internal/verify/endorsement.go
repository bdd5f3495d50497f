package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// endorsement is the certificate of the key that signed a report, and what AMD wrote into it.
type endorsement struct {
	cert    *x509.Certificate
	signer  evidence.Signer
	product string       // Milan-B0 and the like; a VLEK has no stepping
	tcb     evidence.TCB // the patch levels that the key was derived for
	hwid    []byte       // 64 bytes, 8 on Turin; nil in a VLEK
}

// AMD's certificate extensions are all below this object identifier (AMD document 57230). go-sev-guest v0.15 reads
// them too, but knows neither Turin's nor the Genoa with model A0h, so that the walk is done here.
var amdArc = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

// Last arcs of the extensions that are used.
const (
	arcProduct = "2"
	arcHWID    = "4"
	arcCSP     = "5"
)

// ErrNoCertificate says that the certificate of the key which signed a report is not there, so that it must be asked for.
var ErrNoCertificate = errors.New("none is fetched")

// findEndorsement picks the certificate of the signer out of a certificate table, or out of a store when the table has
// none. Nothing is fetched.
func findEndorsement(r *evidence.SNPReport, report, table []byte, store *CertStore) (*endorsement, error) {
	want := r.Signer()
	if want != evidence.VCEK && want != evidence.VLEK {
		return nil, fmt.Errorf("signed by %s, want VCEK or VLEK", want)
	}
	certs, err := evidence.ParseCerts(table)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(certs, func(c evidence.Cert) bool { return c.Type == want.String() })
	if i < 0 && store != nil {
		return store.find(r, report)
	}
	if i < 0 {
		return nil, fmt.Errorf("no %s certificate in the evidence, and %w: load one into the host's certificate table, or ask for it with --collect or --fetch", want, ErrNoCertificate)
	}
	e, err := parseEndorsement(want, certs[i].DER)
	if err != nil {
		return nil, fmt.Errorf("%s certificate: %w", want, err)
	}
	return e, nil
}

func parseEndorsement(signer evidence.Signer, der []byte) (*endorsement, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	e := &endorsement{cert: c, signer: signer}
	if want := "SEV-" + signer.String(); c.Subject.CommonName != want {
		return nil, fmt.Errorf("subject is %.80q, want %s", c.Subject.CommonName, want)
	}
	if pub, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P384() {
		return nil, fmt.Errorf("key is %s, want one on P-384", c.PublicKeyAlgorithm)
	}
	ext := map[string][]byte{}
	for _, x := range c.Extensions {
		if len(x.Id) <= len(amdArc) || !x.Id[:len(amdArc)].Equal(amdArc) {
			continue
		}
		arc := x.Id[len(amdArc):].String()
		if _, twice := ext[arc]; twice {
			return nil, fmt.Errorf("extension %s twice", x.Id)
		}
		ext[arc] = x.Value
	}
	if err := ia5(ext[arcProduct], &e.product); err != nil {
		return nil, fmt.Errorf("product name: %w", err)
	}
	if err := e.levels(ext); err != nil {
		return nil, err
	}
	_, has := ext[arcHWID]
	_, csp := ext[arcCSP]
	if vcek := signer == evidence.VCEK; has != vcek || csp == vcek {
		return nil, fmt.Errorf("hardware id there: %t, cloud id there: %t", has, csp)
	}
	if has {
		e.hwid, err = octets(ext[arcHWID], e.hwidSize())
	}
	return e, err
}

// levels reads the security patch levels. All must be there: a missing one is not a zero.
func (e *endorsement) levels(ext map[string][]byte) error {
	for arc, dst := range map[string]*uint8{"3.1": &e.tcb.Bootloader, "3.2": &e.tcb.TEE, "3.3": &e.tcb.SNP, "3.8": &e.tcb.Microcode, "3.9": &e.tcb.FMC} {
		raw, ok := ext[arc]
		if arc == "3.9" && ok != e.turin() {
			return fmt.Errorf("patch level of the FMC there: %t, product %s", ok, e.product)
		}
		if arc == "3.9" && !ok {
			continue
		}
		var n int
		if rest, err := asn1.Unmarshal(raw, &n); err != nil || len(rest) > 0 || n < 0 || n > 255 {
			return fmt.Errorf("patch level %s: % .20x is not an INTEGER of 0 to 255", arc, raw)
		}
		*dst = uint8(n)
	}
	return nil
}

func (e *endorsement) turin() bool { return e.line() == "Turin" }

func (e *endorsement) hwidSize() int {
	if e.turin() {
		return 8
	}
	return 64
}

// line is the product line that the certificate names.
func (e *endorsement) line() string {
	line, _, _ := strings.Cut(e.product, "-")
	return line
}

// chains checks that the certificate hangs from a root.
func (e *endorsement) chains(root Root, o Options) error {
	ca := root.certs.Ask
	if e.signer == evidence.VLEK {
		ca = root.certs.Asvk
	}
	if o.amd != nil {
		ca = o.amd.ca // a newer one than this program knows, maybe; the ARK decides
	}
	if ca == nil {
		return fmt.Errorf("root %s has no certificate that signs a %s", root.line, e.signer)
	}
	want := "SEV-" + root.line
	if e.signer == evidence.VLEK {
		want = "SEV-VLEK-" + root.line
	}
	if ca.Subject.CommonName != want {
		return fmt.Errorf("%s certificate: hangs from %.80q, want %s", e.signer, ca.Subject.CommonName, want)
	}
	v := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: o.moment(e), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	v.Roots.AddCert(root.certs.Ark)
	v.Intermediates.AddCert(ca)
	if _, err := e.cert.Verify(v); err != nil {
		return fmt.Errorf("%s certificate under %s: %w", e.signer, root.certs.Ark.Subject.CommonName, err)
	}
	return nil
}

// octets reads a byte string that AMD writes bare in old certificates and as an OCTET STRING in new ones.
func octets(raw []byte, size int) ([]byte, error) {
	if len(raw) == size {
		return raw, nil
	}
	var b []byte
	if rest, err := asn1.Unmarshal(raw, &b); err != nil || len(rest) > 0 || len(b) != size {
		return nil, fmt.Errorf("hardware id: want %d bytes, bare or as an OCTET STRING", size)
	}
	return b, nil
}

func ia5(raw []byte, dst *string) error {
	rest, err := asn1.UnmarshalWithParams(raw, dst, "ia5")
	if err == nil && len(rest) > 0 {
		err = errors.New("bytes behind it")
	}
	return err
}
