package evidence

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// maxJSON bounds the JSON form: a report is 5 KiB, three certificates as number arrays 20 KiB.
const maxJSON = 1 << 20

// sampleSize is the length of the hash that RCAR binds (wire/SPEC.md §2.5): sample evidence carries it unpadded.
const sampleSize = 48

// octets is a byte string that JSON spells as an array of numbers, as serde does.
type octets []byte

func (o octets) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 4*len(o)+2)
	b = append(b, '[')
	for i, v := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(v), 10)
	}
	return append(b, ']'), nil
}

type (
	tcbJSON struct {
		FMC        *uint8 `json:"fmc"`
		Bootloader uint8  `json:"bootloader"`
		TEE        uint8  `json:"tee"`
		SNP        uint8  `json:"snp"`
		Microcode  uint8  `json:"microcode"`
	}
	firmwareJSON struct {
		Major uint8 `json:"major"`
		Minor uint8 `json:"minor"`
		Build uint8 `json:"build"`
	}
	signatureJSON struct {
		R octets `json:"r"`
		S octets `json:"s"`
	}
	certJSON struct {
		Type string `json:"cert_type"`
		Data octets `json:"data"`
	}
	reportJSON struct {
		Version          uint32        `json:"version"`
		GuestSVN         uint32        `json:"guest_svn"`
		Policy           uint64        `json:"policy"`
		FamilyID         octets        `json:"family_id"`
		ImageID          octets        `json:"image_id"`
		VMPL             uint32        `json:"vmpl"`
		SigAlgo          uint32        `json:"sig_algo"`
		CurrentTCB       tcbJSON       `json:"current_tcb"`
		PlatInfo         uint64        `json:"plat_info"`
		KeyInfo          uint32        `json:"key_info"`
		ReportData       octets        `json:"report_data"`
		Measurement      octets        `json:"measurement"`
		HostData         octets        `json:"host_data"`
		IDKeyDigest      octets        `json:"id_key_digest"`
		AuthorKeyDigest  octets        `json:"author_key_digest"`
		ReportID         octets        `json:"report_id"`
		ReportIDMA       octets        `json:"report_id_ma"`
		ReportedTCB      tcbJSON       `json:"reported_tcb"`
		CPUFamily        *uint8        `json:"cpuid_fam_id"`
		CPUModel         *uint8        `json:"cpuid_mod_id"`
		CPUStepping      *uint8        `json:"cpuid_step"`
		ChipID           octets        `json:"chip_id"`
		CommittedTCB     tcbJSON       `json:"committed_tcb"`
		Current          firmwareJSON  `json:"current"`
		Committed        firmwareJSON  `json:"committed"`
		LaunchTCB        tcbJSON       `json:"launch_tcb"`
		LaunchMitVector  *uint64       `json:"launch_mit_vector,omitempty"`
		CurrentMitVector *uint64       `json:"current_mit_vector,omitempty"`
		Signature        signatureJSON `json:"signature"`
	}
	snpJSON struct {
		Report reportJSON `json:"attestation_report"`
		Certs  []certJSON `json:"cert_chain"` // null when empty: Trustee refuses []
	}
	sampleJSON struct {
		SVN        string `json:"svn"`
		ReportData []byte `json:"report_data"`
	}
)

// JSON is the newest form that Trustee takes as primary_evidence (wire/SPEC.md §2). Bytes that are no evidence are an
// error, and so is an SNP report that would not come out of that form byte for byte: its signature would not hold there.
func (e Evidence) JSON() (json.RawMessage, error) {
	switch e.Kind {
	case SNP:
		return snpToJSON(e)
	case TDX:
		return tdxToJSON(e)
	case AzSNPvTPM, AzTDXvTPM:
		return azureToJSON(e)
	case Sample:
		if len(e.Report) != 64 {
			return nil, fmt.Errorf("sample evidence: %d bytes of report data, want 64", len(e.Report))
		}
		data := e.Report
		if !slices.ContainsFunc(data[sampleSize:], func(b byte) bool { return b != 0 }) {
			data = data[:sampleSize]
		}
		return json.Marshal(sampleJSON{"1", data})
	}
	return nil, fmt.Errorf("evidence kind %q: unknown", e.Kind)
}

// Legacy is the form for older servers where there is one, otherwise JSON. SNP: as Trustee v0.12 and v0.13 take it. Azure:
// version 0, which every Trustee takes (wire/SPEC.md §2.1, §2.3).
func (e Evidence) Legacy() (json.RawMessage, error) {
	switch e.Kind {
	case SNP:
		return snpToJSON40(e)
	case AzSNPvTPM, AzTDXvTPM:
		return azureToJSON0(e)
	}
	return e.JSON()
}

// FromJSON reads what JSON and Legacy write, and what Trustee's own attester writes for the same kinds. At most 1 MiB;
// unknown, repeated, missing members and wrong lengths are errors. SNP reports come back as 1184 bytes, certificates of
// known types as a GHCB table in Aux. Nothing is verified.
func FromJSON(kind Kind, raw []byte) (Evidence, error) {
	if len(raw) > maxJSON {
		return Evidence{}, fmt.Errorf("%s evidence: %d bytes, at most %d", kind, len(raw), maxJSON)
	}
	e, err := Evidence{}, error(nil)
	switch kind {
	case SNP:
		e, err = snpFromJSON(raw)
	case TDX:
		e, err = tdxFromJSON(raw)
	case AzSNPvTPM, AzTDXvTPM:
		e, err = azureFromJSON(kind, raw)
	case Sample:
		e, err = sampleFromJSON(raw)
	default:
		return e, fmt.Errorf("evidence kind %q: unknown", kind)
	}
	if err != nil {
		return Evidence{}, fmt.Errorf("%s evidence: %w", kind, err)
	}
	return e, nil
}

func snpToJSON(e Evidence) (json.RawMessage, error) {
	r, err := ParseSNP(e.Report)
	if err != nil {
		return nil, err
	}
	certs, err := certsToJSON(e.Aux, r.Signer())
	if err != nil {
		return nil, err
	}
	tcb := func(t TCB) tcbJSON {
		j := tcbJSON{nil, t.Bootloader, t.TEE, t.SNP, t.Microcode}
		if r.Turin() {
			j.FMC = &t.FMC
		}
		return j
	}
	fw := func(f Firmware) firmwareJSON { return firmwareJSON(f) }
	j := snpJSON{Report: reportJSON{
		Version: r.Version, GuestSVN: r.GuestSVN, Policy: r.Policy, FamilyID: r.FamilyID[:], ImageID: r.ImageID[:],
		VMPL: r.VMPL, SigAlgo: r.SigAlgo, CurrentTCB: tcb(r.CurrentTCB), PlatInfo: r.PlatInfo, KeyInfo: r.KeyInfo,
		ReportData: r.ReportData[:], Measurement: r.Measurement[:], HostData: r.HostData[:],
		IDKeyDigest: r.IDKeyDigest[:], AuthorKeyDigest: r.AuthorKeyDigest[:],
		ReportID: r.ReportID[:], ReportIDMA: r.ReportIDMA[:], ReportedTCB: tcb(r.ReportedTCB), ChipID: r.ChipID[:],
		CommittedTCB: tcb(r.CommittedTCB), Current: fw(r.CurrentFirmware), Committed: fw(r.CommittedFirmware),
		LaunchTCB: tcb(r.LaunchTCB), Signature: signatureJSON{r.SignatureR[:], r.SignatureS[:]},
	}}
	if r.Version >= 3 {
		j.Report.CPUFamily, j.Report.CPUModel, j.Report.CPUStepping = &r.CPUFamily, &r.CPUModel, &r.CPUStepping
	}
	if r.Version >= 5 {
		j.Report.LaunchMitVector, j.Report.CurrentMitVector = &r.LaunchMitigationVector, &r.CurrentMitigationVector
	}
	j.Certs = certs
	return json.Marshal(j)
}

// certsToJSON is the chain. Trustee wants exactly one key that signs reports in it, or none at all: then it looks for the
// VCEK elsewhere.
func certsToJSON(table []byte, by Signer) (chain []certJSON, err error) {
	certs, err := ParseCerts(table)
	if err != nil {
		return nil, err
	}
	signer := by.String()
	if slices.ContainsFunc(certs, func(c Cert) bool { return c.Type == signer }) {
		for _, c := range certs {
			if endorses := c.Type == "VCEK" || c.Type == "VLEK"; !endorses || c.Type == signer {
				chain = append(chain, certJSON{c.Type, c.DER})
			}
		}
	}
	return chain, nil
}

func snpFromJSON(raw []byte) (Evidence, error) {
	top := open("", raw, []string{"attestation_report"}, []string{"cert_chain"})
	if is40(top.m["attestation_report"]) {
		report := make([]byte, SNPReportSize)
		top.members40("attestation_report", report40, report)
		return snpWithCerts(top, report)
	}
	f := top.object("attestation_report", []string{
		"version", "guest_svn", "policy", "family_id", "image_id", "vmpl", "sig_algo", "current_tcb", "plat_info", "key_info",
		"report_data", "measurement", "host_data", "id_key_digest", "author_key_digest", "report_id", "report_id_ma",
		"reported_tcb", "chip_id", "committed_tcb", "current", "committed", "launch_tcb", "signature",
	}, []string{"cpuid_fam_id", "cpuid_mod_id", "cpuid_step", "launch_mit_vector", "current_mit_vector"})
	var r SNPReport
	f.number("version", &r.Version)
	f.number("guest_svn", &r.GuestSVN)
	f.number("policy", &r.Policy)
	f.octets("family_id", r.FamilyID[:])
	f.octets("image_id", r.ImageID[:])
	f.number("vmpl", &r.VMPL)
	f.number("sig_algo", &r.SigAlgo)
	f.number("plat_info", &r.PlatInfo)
	f.number("key_info", &r.KeyInfo)
	f.octets("report_data", r.ReportData[:])
	f.octets("measurement", r.Measurement[:])
	f.octets("host_data", r.HostData[:])
	f.octets("id_key_digest", r.IDKeyDigest[:])
	f.octets("author_key_digest", r.AuthorKeyDigest[:])
	f.octets("report_id", r.ReportID[:])
	f.octets("report_id_ma", r.ReportIDMA[:])
	f.octets("chip_id", r.ChipID[:])
	f.onlyFrom(r.Version, 3, "cpuid_fam_id", "cpuid_mod_id", "cpuid_step")
	f.onlyFrom(r.Version, 5, "launch_mit_vector", "current_mit_vector")
	if f.has("cpuid_fam_id") {
		f.number("cpuid_fam_id", &r.CPUFamily)
		f.number("cpuid_mod_id", &r.CPUModel)
		f.number("cpuid_step", &r.CPUStepping)
	}
	if f.has("launch_mit_vector") {
		f.number("launch_mit_vector", &r.LaunchMitigationVector)
		f.number("current_mit_vector", &r.CurrentMitigationVector)
	}
	f.tcb("current_tcb", &r.CurrentTCB, r.Turin())
	f.tcb("reported_tcb", &r.ReportedTCB, r.Turin())
	f.tcb("committed_tcb", &r.CommittedTCB, r.Turin())
	f.tcb("launch_tcb", &r.LaunchTCB, r.Turin())
	f.firmware("current", &r.CurrentFirmware)
	f.firmware("committed", &r.CommittedFirmware)
	sig := f.object("signature", []string{"r", "s"}, nil)
	sig.octets("r", r.SignatureR[:])
	sig.octets("s", r.SignatureS[:])
	return snpWithCerts(top, r.Marshal())
}

func snpWithCerts(top *fields, report []byte) (Evidence, error) {
	certs := top.certs("cert_chain")
	if err := top.failure(); err != nil {
		return Evidence{}, err
	}
	aux, err := MarshalCerts(certs)
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Kind: SNP, Report: report, Aux: aux}
	if _, err := ParseSNP(e.Report); err != nil {
		return Evidence{}, err
	}
	return e, nil
}

func sampleFromJSON(raw []byte) (Evidence, error) {
	m, err := ObjectOf(raw, []string{"svn", "report_data"}, nil)
	if err != nil {
		return Evidence{}, err
	}
	var svn, data string
	if err := json.Unmarshal(m["svn"], &svn); err != nil || svn != "1" {
		return Evidence{}, fmt.Errorf("svn: is %.40s, want \"1\"", m["svn"])
	}
	if err := json.Unmarshal(m["report_data"], &data); err != nil {
		return Evidence{}, fmt.Errorf("report_data: %w", err)
	}
	b, err := decode64(base64.StdEncoding, data)
	if err != nil {
		return Evidence{}, fmt.Errorf("report_data: %w", err)
	}
	if len(b) != sampleSize && len(b) != 64 {
		return Evidence{}, fmt.Errorf("report_data: %d bytes, want %d or 64", len(b), sampleSize)
	}
	return Evidence{Kind: Sample, Report: append(b, make([]byte, 64-len(b))...)}, nil
}
