package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// evidenceFlags are those of ampoule verify --evidence.
type evidenceFlags struct {
	file, kind, cert, eventlog, reportData, initData, at string
}

// evidenceFacts is what verify --evidence prints as JSON.
type evidenceFacts struct {
	Proven      bool                 `json:"proven"` // the signature holds, and no claim failed
	Kind        evidence.Kind        `json:"kind"`
	Product     string               `json:"product"`
	Simulated   bool                 `json:"simulated"`
	Measurement evidence.Measurement `json:"measurement"`
	Register    string               `json:"register,omitempty"` // HOST_DATA or MRCONFIGID
	InitData    string               `json:"init_data,omitempty"`
	ReportData  string               `json:"report_data"`
	VMPL        *uint32              `json:"vmpl,omitempty"`
	TCB         *evidence.TCB        `json:"tcb,omitempty"` // of the certificate, which the report's equals
	RTMR        []string             `json:"rtmr,omitempty"`
	Failed      []string             `json:"failed,omitempty"`
	NotChecked  []string             `json:"not_checked,omitempty"`
	Unproven    []string             `json:"unproven,omitempty"`
}

// verifyEvidence judges evidence by itself, without a receipt around it.
func verifyEvidence(std stdio, f evidenceFlags, want verify.Expect, allowSample, asJSON bool) error {
	o := verify.Options{Roots: want.Roots, Intel: want.Intel, Measurements: want.Measurements, AllowSample: allowSample}
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
	}
	if f.initData != "" {
		b, err := hex.DecodeString(f.initData)
		if err != nil || len(b) != 32 && len(b) != 48 && len(b) != 64 {
			return usagef("--init-data %.140q: want a digest of 32, 48 or 64 bytes in hex; ampoule manifest digest prints it", f.initData)
		}
		o.InitData = b
	}
	if f.at != "" {
		t, err := time.Parse(time.DateOnly, f.at)
		if err != nil {
			return usagef("--at %q: want a date as 2026-01-31", f.at)
		}
		o.Now = t
	}
	ev, err := readEvidence(std, f)
	if err != nil {
		return err
	}
	c, err := verify.Evidence(ev, o)
	if c.Kind == "" {
		return &exitError{3, err} // nothing that it says is true
	}
	facts.Proven, facts.Product, facts.Simulated, facts.Measurement = err == nil, c.Product, c.Simulated, c.Measurement
	facts.Register, facts.InitData, facts.ReportData = c.Register, hex.EncodeToString(c.InitData), hex.EncodeToString(c.ReportData[:])
	facts.Unproven = c.Unproven
	switch c.Kind {
	case evidence.SNP:
		facts.VMPL, facts.TCB = &c.VMPL, &c.TCB
	case evidence.TDX:
		for _, r := range c.TDX.RTMR {
			facts.RTMR = append(facts.RTMR, hex.EncodeToString(r[:]))
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
			return ev, fmt.Errorf("%s: %w", f.file, err)
		}
		return ev, nil
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
	for i, r := range f.RTMR {
		fmt.Fprintf(w, "  RTMR%d        %s\n", i, r)
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
