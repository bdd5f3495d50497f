// Package verify judges evidence: are the signatures AMD's or Intel's (or those of a test root), and do the claims hold.
//
// It is for hosts only, works offline, and accepts a simulated TEE only when its root is given by hand. What is
// missing fails, and what evidence cannot prove is named in Claims.Unproven. AMD's revocation lists are consulted
// in complete receipts only: AMD retires chips by raising the TCB, which the policy sees. Intel's are, where there is collateral.
package verify

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-sev-guest/verify/trust"
)

// A Root is the pair of certificates, AMD root key and signing key, that one product line hangs from.
type Root struct {
	line      string // Milan, Genoa, Turin
	certs     *trust.ProductCerts
	simulated bool
}

// Line is the product line that the root signs for.
func (r Root) Line() string { return r.line }

// Simulated says that the root is not one of AMD's own.
func (r Root) Simulated() bool { return r.simulated }

// maxRootPEM bounds a root file: three RSA-4096 certificates take 7 KiB.
const maxRootPEM = 64 << 10

// LoadRoot reads PEM certificates: one ARK, signed by itself, and an ASK or an ASVK or both, signed by the ARK, in
// any order. The names must be those that AMD uses (ARK-Milan, SEV-Milan, SEV-VLEK-Milan).
func LoadRoot(pemBytes []byte) (Root, error) {
	if len(pemBytes) > maxRootPEM {
		return Root{}, fmt.Errorf("root: %d bytes, at most %d", len(pemBytes), maxRootPEM)
	}
	r := Root{certs: new(trust.ProductCerts)}
	for rest := pemBytes; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if strings.TrimSpace(string(rest)) != "" {
				return Root{}, errors.New("root: bytes that are no PEM")
			}
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return Root{}, fmt.Errorf("root: PEM block %q: not a certificate: %w", block.Type, err)
		}
		slot, line, name := &r.certs.Ark, "", c.Subject.CommonName
		switch {
		case strings.HasPrefix(name, "ARK-"):
			line = strings.TrimPrefix(name, "ARK-")
		case strings.HasPrefix(name, "SEV-VLEK-"):
			slot, line = &r.certs.Asvk, strings.TrimPrefix(name, "SEV-VLEK-")
		case strings.HasPrefix(name, "SEV-"):
			slot, line = &r.certs.Ask, strings.TrimPrefix(name, "SEV-")
		default:
			return Root{}, fmt.Errorf("root: certificate of %.80q, want ARK-…, SEV-… or SEV-VLEK-…", name)
		}
		if *slot != nil && (*slot).Equal(c) {
			continue // AMD's chains for VCEK and for VLEK both hold the ARK
		}
		if *slot != nil || r.line != "" && r.line != line {
			return Root{}, fmt.Errorf("root: %.80q beside others: want one ARK, ASK, ASVK of one product line", name)
		}
		*slot, r.line = c, line
	}
	return r, r.check()
}

func (r *Root) check() error {
	amd := trust.DefaultRootCerts[r.line]
	switch {
	case r.certs.Ark == nil:
		return errors.New("root: no ARK certificate")
	case r.certs.Ask == nil && r.certs.Asvk == nil:
		return errors.New("root: no ASK certificate")
	case amd == nil:
		return fmt.Errorf("root: product line %.40q is unknown, want Milan, Genoa or Turin", r.line)
	}
	for _, c := range []*x509.Certificate{r.certs.Ark, r.certs.Ask, r.certs.Asvk} {
		if c == nil {
			continue
		}
		if err := c.CheckSignatureFrom(r.certs.Ark); err != nil {
			return fmt.Errorf("root: %s is not signed by %s: %w", c.Subject.CommonName, r.certs.Ark.Subject.CommonName, err)
		}
	}
	r.simulated = !r.certs.Ark.Equal(amd.ProductCerts.Ark)
	return nil
}

// amdRoots are the roots that go-sev-guest carries, for VCEKs and VLEKs.
var amdRoots = sync.OnceValues(func() (roots []Root, err error) {
	for _, chains := range [][2][]byte{
		{trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		{trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		{trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	} {
		r, err := LoadRoot(slices.Concat(chains[0], []byte("\n"), chains[1]))
		if err != nil {
			return nil, fmt.Errorf("AMD's roots: %w", err)
		}
		roots = append(roots, r)
	}
	return roots, nil
})
