package verify

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A PCS is where Intel's answers about platforms are asked for.
type PCS struct {
	API     string // provisioning certification service, version 4, or a cache of it (PCCS)
	RootCRL string // URL of the revocation list of the Intel SGX Root CA
}

// IntelPCS is Intel's own. It gives TCB info and revocation lists to whoever asks.
var IntelPCS = PCS{"https://api.trustedservices.intel.com", "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"}

// FetchCollateral asks for what Intel says of the platform that signed a quote, at most 256 KiB an answer. The quote's own
// signatures are checked first, by o; the answers are checked where the Collateral is used. It has been tried against a
// double only.
func FetchCollateral(ctx context.Context, from PCS, quote []byte, o Options) (*Collateral, error) {
	fail := func(what string, err error) (*Collateral, error) { return nil, fmt.Errorf("fetch %s: %w", what, err) }
	q, err := evidence.ParseTDX(quote)
	if err != nil {
		return nil, err
	}
	p, err := checkQuote(&q, o)
	if err != nil {
		return nil, fmt.Errorf("TDX quote: %w", err)
	}
	pck, err := parsePCK(p.pck)
	if err != nil {
		return nil, err
	}
	ca := "processor"
	if strings.Contains(p.ca.Subject.CommonName, "Platform") {
		ca = "platform"
	}
	c := new(Collateral)
	tcb, head, err := get(ctx, from.API+"/tdx/certification/v4/tcb?fmspc="+hex.EncodeToString(pck.fmspc[:]), maxCollateral)
	if err != nil {
		return fail("TCB info", err)
	}
	c.TCBInfo, c.Issuers = tcb, []byte(head.Get("TCB-Info-Issuer-Chain"))
	if len(c.Issuers) == 0 {
		return nil, fmt.Errorf("fetch TCB info: the answer has no header TCB-Info-Issuer-Chain")
	}
	if c.QEIdentity, _, err = get(ctx, from.API+"/tdx/certification/v4/qe/identity", maxCollateral); err != nil {
		return fail("QE identity", err)
	}
	if c.PCKCRL, _, err = get(ctx, from.API+"/sgx/certification/v4/pckcrl?encoding=der&ca="+ca, maxCollateral); err != nil {
		return fail("PCK CRL", err)
	}
	if c.RootCRL, _, err = get(ctx, from.RootCRL, maxCollateral); err != nil {
		return fail("root CRL", err)
	}
	return c, nil
}
