package verify

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Azure checks evidence of an Azure confidential VM, from the hardware down: the report or quote that vouches for the
// paravisor's data, the data that name the key of its vTPM, and the quote of the vTPM over PCRs and report data. The
// initdata document is in PCR 8. When all three hold the Claims are filled even if err is not nil; err then joins one
// *ClaimError for each claim that failed.
func Azure(ev evidence.Evidence, o Options) (Claims, error) {
	if ev.Kind != evidence.AzSNPvTPM && ev.Kind != evidence.AzTDXvTPM {
		return Claims{}, fmt.Errorf("evidence of kind %q: proves nothing to a verifier of Azure's", ev.Kind)
	}
	h, err := evidence.ParseHCL(ev.Report)
	if err != nil {
		return Claims{}, err
	}
	if h.Kind != ev.Kind {
		return Claims{}, fmt.Errorf("HCL report: of kind %s, want %s", h.Kind, ev.Kind)
	}
	if o.whole && !h.Padded(ev.Report) {
		return Claims{}, errors.New("HCL report: bytes behind its data")
	}
	c, errs, err := hardware(ev, &h, o)
	if err != nil {
		return Claims{}, err
	}
	if sum := sha256.Sum256(h.VarData); !bytes.Equal(sum[:], c.ReportData[:sha256.Size]) {
		return Claims{}, fmt.Errorf("HCL report: its data have SHA-256 %x, and the hardware signed %x", sum, c.ReportData[:sha256.Size])
	}
	if c.nonce, err = checkTPM(ev.TPM, h.AK); err != nil {
		return Claims{}, fmt.Errorf("TPM quote: %w", err)
	}
	c.Kind, c.ReportData = ev.Kind, [64]byte{}
	copy(c.ReportData[:], c.nonce)
	c.PCRs = new(ev.TPM.PCRs)
	c.Register, c.InitData = evidence.PCR8, c.PCRs[8][:]
	c.Unproven = append(c.Unproven,
		"which image runs: the measurement is that of Microsoft's paravisor, whose source is not public, and the PCRs tell more only where they are compared",
		"that the PCRs are what was booted, unless the paravisor is trusted: its vTPM is software, and the hardware vouches for its key alone",
		"that the launch fixed the initdata: the guest measured it into PCR 8 itself")
	if len(c.nonce) != reportDataSize(ev.Kind) || !bytes.HasPrefix(h.UserData, c.nonce) {
		c.Unproven = append(c.Unproven, "that the hardware's report is of this moment: it does not carry the report data, as it does in evidence of version 2")
	}
	return c, errors.Join(append(errs, expected(&c, o)...)...)
}

// hardware proves what the processor signed for the paravisor.
func hardware(ev evidence.Evidence, h *evidence.HCLReport, o Options) (Claims, []error, error) {
	if ev.Kind == evidence.AzTDXvTPM {
		return tdxClaims(ev.Aux, o)
	}
	table, err := evidence.MarshalCerts([]evidence.Cert{{Type: evidence.VCEK.String(), DER: ev.Aux}})
	if err != nil {
		return Claims{}, nil, fmt.Errorf("VCEK: %w", err)
	}
	return snpClaims(h.Hardware, table, o)
}

// checkTPM holds a quote against the key that signed it, and the PCRs against the quote. It gives the data that were
// asked for, at most 48 bytes.
func checkTPM(q *evidence.TPMQuote, ak *rsa.PublicKey) ([]byte, error) {
	if q == nil {
		return nil, errors.New("missing")
	}
	sum := sha256.Sum256(q.Message)
	if err := rsa.VerifyPKCS1v15(ak, crypto.SHA256, sum[:], q.Signature); err != nil {
		return nil, fmt.Errorf("not signed by the key that the HCL report names: %w", err)
	}
	a, err := evidence.ParseTPMAttest(q.Message)
	if err != nil {
		return nil, err
	}
	pcrs := sha256.New()
	for _, v := range q.PCRs {
		pcrs.Write(v[:])
	}
	if got := pcrs.Sum(nil); !bytes.Equal(got, a.PCRDigest[:]) {
		return nil, fmt.Errorf("the PCRs have SHA-256 %x, and the quote is over %x", got, a.PCRDigest)
	}
	if n, most := len(a.ExtraData), reportDataSize(evidence.AzSNPvTPM); n == 0 || n > most {
		return nil, fmt.Errorf("signs %d bytes of data, want 1 to %d", n, most)
	}
	return a.ExtraData, nil
}
