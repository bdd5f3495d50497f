package verify

import (
	"encoding/hex"
	"errors"
	"fmt"

	sevverify "github.com/google/go-sev-guest/verify"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// SNP checks the signature of an SNP report, its certificates up to a root, and the claims of o. Certificates come from
// the evidence or from o, nothing is fetched. When the signature holds the Claims are filled even if err is not nil; err
// then joins one *ClaimError for each claim that failed.
func SNP(ev evidence.Evidence, o Options) (Claims, error) {
	if ev.Kind != evidence.SNP {
		return Claims{}, fmt.Errorf("evidence of kind %q: proves nothing to an SNP verifier", ev.Kind)
	}
	c, errs, err := snpClaims(ev.Report, ev.Aux, o)
	if err != nil {
		return Claims{}, err
	}
	c.Unproven = append(c.Unproven,
		"which kernel and command line were started: the measurement is of what the hypervisor put into memory at launch, and that "+
			"names them only where the firmware was given their hashes, which the firmware of GCP and AWS is not")
	return c, errors.Join(append(errs, expected(&c, o)...)...)
}

// snpClaims proves a report, whoever asked for it: its signature, and what no option may switch off.
func snpClaims(report, table []byte, o Options) (c Claims, failed []error, err error) {
	r, err := evidence.ParseSNP(report)
	if err != nil {
		return c, nil, err
	}
	ek, err := findEndorsement(&r, report, table, o.VCEKs)
	if err != nil {
		return c, nil, fmt.Errorf("SNP report: %w", err)
	}
	// Version 2 does not name the processor: then the certificate does, which the root signs.
	line := productLine(&r)
	if r.Version < 3 {
		line = ek.line()
	}
	root, err := findRoot(ek, line, o)
	if err != nil {
		return c, nil, fmt.Errorf("SNP report: %w", err)
	}
	if err := sevverify.SnpReportSignature(report, ek.cert); err != nil {
		return c, nil, fmt.Errorf("SNP report: %w", err)
	}
	c = Claims{
		Measurement: r.Measurement, HostData: r.HostData, ReportData: r.ReportData, VMPL: r.VMPL, Policy: r.Policy,
		GuestSVN: r.GuestSVN, TCB: r.ReportedTCB, Signer: r.Signer(), ChipID: r.ChipID, Product: line, Simulated: root.simulated,
		Kind: evidence.SNP, Register: evidence.HostData, InitData: r.HostData[:], SNP: &r,
		endorsed: ek, root: root,
	}
	if o.amd == nil {
		c.Unproven = append(c.Unproven, "that AMD has not revoked the certificate of the key: no revocation list was consulted")
	}
	if r.Signer() == evidence.VLEK || r.ChipID == [64]byte{} {
		c.Unproven = append(c.Unproven, "which chip this is: its id is masked, or the key is one that AMD gave to the cloud")
	}
	failed = inherent(&r, ek)
	if o.whole {
		failed = append(failed, o.amdWhole(&c, table)...)
	}
	return c, failed, nil
}

// productLine names the processor of a report of version 3 or later.
func productLine(r *evidence.SNPReport) string {
	switch family, model := r.CPUFamily, r.CPUModel>>4; {
	case family == 0x19 && model == 0x0:
		return "Milan"
	case family == 0x19 && (model == 0x1 || model == 0xA): // A0h to AFh: Bergamo and Siena, under Genoa's root
		return "Genoa"
	case family == 0x1A && model <= 0x1:
		return "Turin"
	}
	return fmt.Sprintf("of CPU family %#x model %#x", r.CPUFamily, r.CPUModel)
}

// findRoot returns the root of the product line under which the certificate holds.
func findRoot(ek *endorsement, line string, o Options) (root Root, err error) {
	roots := o.Roots
	if roots == nil {
		if roots, err = amdRoots(); err != nil {
			return root, err
		}
	}
	err = fmt.Errorf("no root given for product line %s", line)
	for _, root := range roots {
		if root.line != line {
			continue
		}
		if err = ek.chains(root, o); err == nil {
			return root, nil
		}
	}
	return root, err
}

// inherent checks what no option may switch off.
func inherent(r *evidence.SNPReport, ek *endorsement) (errs []error) {
	fail := func(claim, want, got string) { errs = append(errs, &ClaimError{claim, want, got}) }
	if r.Policy&evidence.SNPPolicyDebug != 0 {
		fail("policy.debug", "off", "on (the host can read the guest's memory)")
	}
	if r.Policy&evidence.SNPPolicyMigrateMA != 0 {
		fail("policy.migrate_ma", "off", "on (a migration agent can move the guest's memory)")
	}
	if r.VMPL != 0 {
		fail("vmpl", "0", fmt.Sprint(r.VMPL))
	}
	// The patch levels of a report are words; only the certificate shows that the firmware holds the key for them.
	if ek.tcb != r.ReportedTCB {
		fail("reported_tcb", fmt.Sprintf("%+v as in the certificate", ek.tcb), fmt.Sprintf("%+v", r.ReportedTCB))
	}
	if !ek.ofChip(r) {
		fail("chip_id", hex.EncodeToString(ek.hwid)+" as in the certificate", hex.EncodeToString(r.ChipID[:]))
	}
	return errs
}
