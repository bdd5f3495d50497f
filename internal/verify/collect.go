package verify

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// Vendors are where the makers of processors are asked for collateral.
type Vendors struct {
	KDS string // AMD's
	PCS PCS    // Intel's
}

// TheirOwn are AMD's and Intel's own services.
var TheirOwn = Vendors{AMDKDS, IntelPCS}

// Attach puts collateral into a receipt that has none. Certificates of the evidence go, as the collateral has them: no byte of a
// complete receipt is there twice. Nothing is verified.
func Attach(receipt []byte, c *result.Collateral) ([]byte, error) {
	r, _, err := result.ParseReceipt(receipt)
	if err != nil {
		return nil, err
	}
	if r.Collateral != nil {
		return nil, errors.New("receipt: has its collateral")
	}
	if evidence.Kind(r.Evidence.Kind) == evidence.SNP && c != nil {
		ev, err := evidence.FromJSON(evidence.SNP, r.Evidence.Evidence)
		if err != nil {
			return nil, fmt.Errorf("receipt: evidence: %w", err)
		}
		ev.Aux = nil
		if r.Evidence.Evidence, err = ev.JSON(); err != nil {
			return nil, err
		}
	}
	r.Collateral = c
	return r.Encode()
}

// Collect asks the maker of the processor for what a receipt is verified with in years, and puts it into the receipt; a receipt
// that has it comes back as it is. What is given goes unverified: Receipt judges it. o has the roots, by which a quote is
// checked before Intel is asked about it. It has been tried against doubles of the services only.
func Collect(ctx context.Context, from Vendors, receipt []byte, o Options) ([]byte, error) {
	r, st, err := result.ParseReceipt(receipt)
	if err != nil || r.Collateral != nil {
		return receipt, err
	}
	if o.Now.IsZero() {
		if o.Now, err = time.Parse(result.TimeFormat, st.Predicate.Completed); err != nil {
			return nil, err
		}
	}
	ev, err := oneForm(r.Evidence)
	if err != nil {
		return nil, fmt.Errorf("receipt: evidence: %w", err)
	}
	c := new(result.Collateral)
	switch ev.Kind {
	case evidence.SNP, evidence.AzSNPvTPM:
		c.AMD, err = collectAMD(ctx, from.KDS, ev, o)
	case evidence.TDX:
		c.Intel, err = collectIntel(ctx, from.PCS, ev.Report, o)
	case evidence.AzTDXvTPM:
		c.Intel, err = collectIntel(ctx, from.PCS, ev.Aux, o)
	default:
		err = fmt.Errorf("evidence of kind %s has no collateral", ev.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("collect: %w", err)
	}
	return Attach(receipt, c)
}

// collectAMD takes certificates from the evidence and the roots that this program has, and asks for the rest.
func collectAMD(ctx context.Context, kds string, ev evidence.Evidence, o Options) (*result.AMDCollateral, error) {
	report, table := ev.Report, ev.Aux
	if ev.Kind == evidence.AzSNPvTPM {
		h, err := evidence.ParseHCL(ev.Report)
		if err != nil {
			return nil, err
		}
		report = h.Hardware
		if table, err = evidence.MarshalCerts([]evidence.Cert{{Type: evidence.VCEK.String(), DER: ev.Aux}}); err != nil {
			return nil, err
		}
	}
	r, err := evidence.ParseSNP(report)
	if err != nil {
		return nil, err
	}
	certs, err := evidence.ParseCerts(table)
	if err != nil {
		return nil, err
	}
	var leaf []byte
	if i := slices.IndexFunc(certs, func(c evidence.Cert) bool { return c.Type == r.Signer().String() }); i >= 0 {
		leaf = certs[i].DER
	} else if leaf, err = FetchVCEK(ctx, kds, report); err != nil {
		return nil, err
	}
	e, err := parseEndorsement(r.Signer(), leaf)
	if err != nil {
		return nil, err
	}
	roots := o.Roots
	if roots == nil {
		if roots, err = amdRoots(); err != nil {
			return nil, err
		}
	}
	i := slices.IndexFunc(roots, func(r Root) bool { return r.line == e.line() })
	if i < 0 {
		return nil, fmt.Errorf("no root for product line %s", e.line())
	}
	ca, service := roots[i].certs.Ask, "vcek"
	if e.signer == evidence.VLEK {
		ca, service = roots[i].certs.Asvk, "vlek"
	}
	if ca == nil {
		return nil, fmt.Errorf("the root of %s has no certificate that signs a %s", e.line(), e.signer)
	}
	// AMD may have a newer one than this program knows; the host's may be that.
	for _, c := range certs {
		if x, err := x509.ParseCertificate(c.DER); err == nil && c.Type == "ASK" && errors.Join(x.CheckSignatureFrom(roots[i].certs.Ark), e.cert.CheckSignatureFrom(x)) == nil {
			ca = x
		}
	}
	crl, _, err := get(ctx, kds+"/"+service+"/v1/"+url.PathEscape(e.line())+"/crl", maxCollateral)
	if err != nil {
		return nil, fmt.Errorf("AMD's CRL: %w", err)
	}
	c := &result.AMDCollateral{Certificates: [][]byte{leaf, ca.Raw, roots[i].certs.Ark.Raw}, CRL: derOf(crl)}
	if ev.Kind == evidence.AzSNPvTPM {
		c.Certificates = c.Certificates[1:] // the evidence must have the leaf
	}
	return c, nil
}

func collectIntel(ctx context.Context, from PCS, quote []byte, o Options) (*result.IntelCollateral, error) {
	c, err := FetchCollateral(ctx, from, quote, o)
	if err != nil {
		return nil, err
	}
	return c.Normal()
}
