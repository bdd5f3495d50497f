package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	sevverify "github.com/google/go-sev-guest/verify"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Options is what evidence is held against. A nil field is not compared; that a guest can be debugged, moved, or
// speaks from below VMPL 0 is refused whatever the options say.
type Options struct {
	Roots        []Root // nil: AMD's. Given ones replace AMD's, so that real and simulated never pass as each other
	ReportData   *[64]byte
	HostData     *[32]byte              // SNP only
	InitData     []byte                 // digest of an initdata document, held against the register of the kind
	Measurements []evidence.Measurement // the report's must be among them; an empty list that is not nil accepts none
	Now          time.Time              // for the validity of certificates; zero: the clock

	Intel       []*x509.Certificate // nil: the Intel SGX Root CA. Given ones replace it, as Roots do AMD's
	AllowSample bool                // evidence that proves nothing is taken
}

// Claims are the fields of a report whose signature held.
type Claims struct {
	Measurement evidence.Measurement
	HostData    [32]byte
	ReportData  [64]byte
	VMPL        uint32
	Policy      uint64
	GuestSVN    uint32
	TCB         evidence.TCB    // the reported one, equal to that of the certificate
	Signer      evidence.Signer // VCEK or VLEK
	ChipID      [64]byte        // zero under a VLEK, or when the host masks it
	Product     string          // Milan, Genoa, Turin
	Simulated   bool            // the root is not the vendor's

	Kind     evidence.Kind
	Register string              // evidence.HostData, evidence.MRConfigID; "" for a kind without one
	InitData []byte              // what the register holds
	TDX      *evidence.TDXReport // of a TDX quote; fields above that are SNP's are then zero
	Unproven []string            // what evidence of this kind does not prove, in sentences
}

// Holds says that the register of the kind holds the SHA-256 digest of an initdata document.
func (c *Claims) Holds(initdata [32]byte) bool {
	return evidence.Launch{Register: c.Register, InitData: c.InitData}.Holds(initdata)
}

// A ClaimError says that the signature holds and one claim does not.
type ClaimError struct {
	Claim     string
	Want, Got string
}

func (e *ClaimError) Error() string { return fmt.Sprintf("%s: is %s, want %s", e.Claim, e.Got, e.Want) }

// SNP checks the signature of an SNP report, its certificates up to a root, and the claims of o. Certificates come from
// the evidence alone, nothing is fetched. When the signature holds the Claims are filled even if err is not nil; err
// then joins one *ClaimError for each claim that failed.
func SNP(ev evidence.Evidence, o Options) (Claims, error) {
	if ev.Kind != evidence.SNP {
		return Claims{}, fmt.Errorf("evidence of kind %q: proves nothing to an SNP verifier", ev.Kind)
	}
	r, err := evidence.ParseSNP(ev.Report)
	if err != nil {
		return Claims{}, err
	}
	ek, err := findEndorsement(&r, ev.Aux)
	if err != nil {
		return Claims{}, fmt.Errorf("SNP report: %w", err)
	}
	// Version 2 does not name the processor: then the certificate does, which the root signs.
	line := productLine(&r)
	if r.Version < 3 {
		line = ek.line()
	}
	root, err := findRoot(ek, line, o)
	if err != nil {
		return Claims{}, fmt.Errorf("SNP report: %w", err)
	}
	if err := sevverify.SnpReportSignature(ev.Report, ek.cert); err != nil {
		return Claims{}, fmt.Errorf("SNP report: %w", err)
	}
	c := Claims{
		Measurement: r.Measurement, HostData: r.HostData, ReportData: r.ReportData, VMPL: r.VMPL, Policy: r.Policy,
		GuestSVN: r.GuestSVN, TCB: r.ReportedTCB, Signer: r.Signer(), ChipID: r.ChipID, Product: line, Simulated: root.simulated,
		Kind: evidence.SNP, Register: evidence.HostData, InitData: r.HostData[:],
	}
	return c, errors.Join(append(inherent(&r, ek), expected(&c, o)...)...)
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
	now := o.Now
	if now.IsZero() {
		now = time.Now()
	}
	err = fmt.Errorf("no root given for product line %s", line)
	for _, root := range roots {
		if root.line != line {
			continue
		}
		if err = ek.chains(root, now); err == nil {
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
	// A host may mask the chip id, which makes it zero.
	var hwid [64]byte
	copy(hwid[:], ek.hwid)
	if r.Signer() == evidence.VCEK && r.ChipID != [64]byte{} && r.ChipID != hwid {
		fail("chip_id", hex.EncodeToString(ek.hwid)+" as in the certificate", hex.EncodeToString(r.ChipID[:]))
	}
	return errs
}

func expected(c *Claims, o Options) (errs []error) {
	equal := func(claim string, want, got []byte) {
		if !bytes.Equal(want, got) {
			errs = append(errs, &ClaimError{claim, hex.EncodeToString(want), hex.EncodeToString(got)})
		}
	}
	if o.ReportData != nil {
		equal("report_data", o.ReportData[:], c.ReportData[:])
	}
	if o.HostData != nil {
		equal("host_data", o.HostData[:], c.HostData[:])
	}
	if o.InitData != nil {
		want := evidence.InRegister(c.Register, o.InitData)
		switch {
		case want == nil:
			errs = append(errs, &ClaimError{"init_data", hex.EncodeToString(o.InitData), "nothing: this evidence has no register for it"})
		case (evidence.Launch{InitData: c.InitData}).Empty():
			errs = append(errs, &ClaimError{"init_data", hex.EncodeToString(want), "nothing: " + c.Register + " is zero"})
		default:
			equal("init_data", want, c.InitData)
		}
	}
	if o.Measurements != nil {
		var want []string
		for _, m := range o.Measurements {
			if m == c.Measurement {
				return errs
			}
			want = append(want, m.String())
		}
		errs = append(errs, &ClaimError{"measurement", "one of [" + strings.Join(want, " ") + "]", c.Measurement.String()})
	}
	return errs
}
