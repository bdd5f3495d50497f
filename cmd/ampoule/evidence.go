package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// evidenceFlags are those of ampoule verify --evidence.
type evidenceFlags struct {
	file, kind, cert, eventlog, reportData, initData, at, collateral, tcbStatus string
	fetch                                                                       bool
	kds                                                                         string     // where fetch asks AMD
	pcs                                                                         verify.PCS // and Intel
}

// azure says that the kind is evidence only as a whole: no raw part of it proves anything.
func (f *evidenceFlags) azure() bool {
	return f.kind == string(evidence.AzSNPvTPM) || f.kind == string(evidence.AzTDXvTPM)
}

// evidenceFacts is what verify --evidence prints as JSON.
type evidenceFacts struct {
	Proven      bool                 `json:"proven"` // the signature holds, and no claim failed
	Kind        evidence.Kind        `json:"kind"`
	Product     string               `json:"product"`
	Simulated   bool                 `json:"simulated"`
	Measurement evidence.Measurement `json:"measurement"`
	Register    string               `json:"register,omitempty"` // HOST_DATA, MRCONFIGID, RTMR3 or PCR 8
	InitData    string               `json:"init_data,omitempty"`
	ReportData  string               `json:"report_data"`
	VMPL        *uint32              `json:"vmpl,omitempty"`
	TCB         *evidence.TCB        `json:"tcb,omitempty"`        // of the certificate, which the report's equals
	TCBStatus   string               `json:"tcb_status,omitempty"` // Intel's, where there was collateral
	Advisories  []string             `json:"advisories,omitempty"`
	RTMR        []string             `json:"rtmr,omitempty"`
	PCRs        []string             `json:"pcrs,omitempty"` // SHA-256, 0 to 23
	Failed      []string             `json:"failed,omitempty"`
	NotChecked  []string             `json:"not_checked,omitempty"`
	Unproven    []string             `json:"unproven,omitempty"`
}

// verifyEvidence judges evidence by itself, without a receipt around it.
func verifyEvidence(ctx context.Context, std stdio, f evidenceFlags, want verify.Expect, allowSample, asJSON bool) error {
	o := verify.Options{Roots: want.Roots, Intel: want.Intel, Measurements: want.Measurements, Image: want.Image, AllowSample: allowSample}
	facts := evidenceFacts{Kind: evidence.Kind(f.kind)}
	skipped := func(given bool, what string) {
		if !given {
			facts.NotChecked = append(facts.NotChecked, what)
		}
	}
	skipped(f.reportData != "", "report data: anybody may have replayed this")
	skipped(len(want.Measurements) > 0, "measurement: which program ran")
	skipped(f.initData != "", "init data: which manifest it was launched with")
	if f.reportData != "" {
		b, err := hex.DecodeString(f.reportData)
		if err != nil || len(b) > 64 {
			return usagef("--report-data %.140q: want at most 64 bytes in hex", f.reportData)
		}
		o.ReportData = new([64]byte)
		copy(o.ReportData[:], b)
		skipped(len(b) <= 48 || !f.azure() && facts.Kind != evidence.Sample, "the last bytes of the report data: evidence of this kind holds the first 48")
	}
	if f.initData != "" {
		digest, err := initDataDigest(std, f.initData)
		if err != nil {
			return err
		}
		o.InitData = digest
	}
	var err error
	if o.Now, err = moment(f.at); err != nil {
		return err
	}
	if err := f.judges(&o); err != nil {
		return err
	}
	ev, err := readEvidence(std, f)
	if err != nil {
		return err
	}
	if f.fetch {
		if ev, err = f.fetched(ctx, ev, &o); err != nil {
			return err
		}
	}
	c, err := verify.Evidence(ev, o)
	if c.Kind == "" {
		return &exitError{3, err} // nothing that it says is true
	}
	facts.Proven, facts.Product, facts.Simulated, facts.Measurement = err == nil, c.Product, c.Simulated, c.Measurement
	facts.Register, facts.InitData, facts.ReportData = c.Register, hex.EncodeToString(c.InitData), hex.EncodeToString(c.ReportData[:])
	facts.Unproven = c.Unproven
	facts.TCBStatus, facts.Advisories = c.TCBStatus, c.Advisory
	if c.SNP != nil {
		facts.VMPL, facts.TCB = &c.VMPL, &c.TCB
	}
	if c.TDX != nil {
		for _, r := range c.TDX.RTMR {
			facts.RTMR = append(facts.RTMR, hex.EncodeToString(r[:]))
		}
	}
	if c.PCRs != nil {
		for _, p := range c.PCRs {
			facts.PCRs = append(facts.PCRs, hex.EncodeToString(p[:]))
		}
	}
	if err != nil {
		facts.Failed = strings.Split(err.Error(), "\n")
		err = &exitError{3, fmt.Errorf("the signature holds and the evidence is refused: %w", err)}
	}
	if asJSON {
		return errors.Join(err, std.json(facts))
	}
	facts.print(std.out)
	return err
}

// readEvidence reads Trustee's JSON, or what the hardware gave with --cert or --eventlog beside it.
func readEvidence(std stdio, f evidenceFlags) (evidence.Evidence, error) {
	kind := evidence.Kind(f.kind)
	b, err := std.readFile(f.file, 4<<20)
	if err != nil {
		return evidence.Evidence{}, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		if f.cert != "" || f.eventlog != "" {
			return evidence.Evidence{}, usagef("--cert and --eventlog go with a raw report or quote; %s is JSON, which brings its own", f.file)
		}
		ev, err := evidence.FromJSON(kind, b)
		if err != nil {
			return ev, &exitError{3, fmt.Errorf("%s: %w", f.file, err)}
		}
		return ev, nil
	}
	if f.azure() {
		return evidence.Evidence{}, usagef("%s: evidence of kind %s is judged as JSON: the vTPM's quote, the HCL report and what vouches for it belong together", f.file, kind)
	}
	ev := evidence.Evidence{Kind: kind, Report: b}
	if f.cert != "" {
		if ev.Aux, err = certTable(std, f.cert); err != nil {
			return ev, err
		}
	}
	if f.eventlog != "" {
		raw, err := std.readFile(f.eventlog, 1<<20)
		if err != nil {
			return ev, err
		}
		if ev.EventLog, err = evidence.CutEventLog(raw); err != nil {
			return ev, fmt.Errorf("--eventlog %s: %w", f.eventlog, err)
		}
	}
	return ev, nil
}

// certTable makes a host's certificate table of one VCEK or VLEK, DER or PEM.
func certTable(std stdio, file string) ([]byte, error) {
	b, err := std.readFile(file, 64<<10)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(b); block != nil {
		b = block.Bytes
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("--cert %s: %w", file, err)
	}
	kind := strings.TrimPrefix(c.Subject.CommonName, "SEV-")
	if kind != "VCEK" && kind != "VLEK" {
		return nil, fmt.Errorf("--cert %s: is of %q, want the SEV-VCEK or SEV-VLEK that signed the report", file, c.Subject.CommonName)
	}
	return evidence.MarshalCerts([]evidence.Cert{{Type: kind, DER: c.Raw}})
}

func (f *evidenceFacts) print(w io.Writer) {
	verdict := "PROVEN: the signature holds, and so does every claim that was asked for"
	if !f.Proven {
		verdict = "REFUSED"
	}
	if f.Simulated {
		verdict += " (SIMULATED: worth nothing to anyone else)"
	}
	fmt.Fprintf(w, "%s\n  kind         %s, %s\n  measurement  %s\n", verdict, f.Kind, f.Product, f.Measurement)
	if f.Register != "" {
		fmt.Fprintf(w, "  %-12s %s\n", f.Register, f.InitData)
	}
	fmt.Fprintf(w, "  report data  %s\n", f.ReportData)
	if f.TCB != nil {
		fmt.Fprintf(w, "  TCB          %+v\n", *f.TCB)
	}
	if f.TCBStatus != "" {
		fmt.Fprintf(w, "  TCB status   %s %s\n", f.TCBStatus, strings.Join(f.Advisories, " "))
	}
	for i, r := range f.RTMR {
		fmt.Fprintf(w, "  RTMR%d        %s\n", i, r)
	}
	for i, p := range f.PCRs {
		if strings.Trim(p, "0") != "" && strings.Trim(p, "f") != "" { // the others nobody has touched
			fmt.Fprintf(w, "  PCR %-2d       %s\n", i, p)
		}
	}
	for _, l := range f.Failed {
		fmt.Fprintf(w, "  failed: %s\n", l)
	}
	for _, l := range f.NotChecked {
		fmt.Fprintf(w, "  not checked: %s\n", l)
	}
	for _, l := range f.Unproven {
		fmt.Fprintf(w, "  not proven: %s\n", l)
	}
}
