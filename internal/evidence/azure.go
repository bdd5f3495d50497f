package evidence

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
)

// azureData is the length of the hash that RCAR binds: a vTPM of Azure takes no more than 50 bytes.
const azureData = 48

// The three forms of Azure evidence (wire/SPEC.md §2.3, §2.4). Version 1 and 2 differ in what is promised: from 2 on the
// HCL report carries the report data itself. Version 0 says no version.
type (
	azSNPJSON struct {
		Version int          `json:"version"`
		Quote   tpmQuoteJSON `json:"tpm_quote"`
		HCL     string       `json:"hcl_report"` // base64url with padding, as td_quote and vcek
		VCEK    string       `json:"vcek"`
	}
	azTDXJSON struct {
		Version int          `json:"version"`
		Quote   tpmQuoteJSON `json:"tpm_quote"`
		HCL     string       `json:"hcl_report"`
		TDQuote string       `json:"td_quote"`
	}
	tpmQuoteJSON struct {
		Signature string     `json:"signature"` // hex, as message and pcrs
		Message   string     `json:"message"`
		PCRs      [24]string `json:"pcrs"`
	}
	azSNPJSON0 struct {
		Quote tpmQuoteJSON0 `json:"quote"`
		HCL   octets        `json:"report"`
		VCEK  string        `json:"vcek"` // PEM
	}
	azTDXJSON0 struct {
		Quote   tpmQuoteJSON0 `json:"tpm_quote"`
		HCL     octets        `json:"hcl_report"`
		TDQuote octets        `json:"td_quote"`
	}
	tpmQuoteJSON0 struct {
		Signature octets     `json:"signature"`
		Message   octets     `json:"message"`
		PCRs      [24]octets `json:"pcrs"`
	}
)

// azure takes evidence of an Azure VM apart, so that what is no evidence is neither sent nor taken. Nothing is verified.
func (e Evidence) azure() (HCLReport, TPMAttest, error) {
	h, err := ParseHCL(e.Report)
	if err != nil {
		return h, TPMAttest{}, err
	}
	if h.Kind != e.Kind {
		return h, TPMAttest{}, fmt.Errorf("HCL report: of kind %s, want %s", h.Kind, e.Kind)
	}
	if e.Kind == AzSNPvTPM {
		if _, err := ParseSNP(h.Hardware); err != nil {
			return h, TPMAttest{}, err
		}
		if _, err := x509.ParseCertificate(e.Aux); err != nil {
			return h, TPMAttest{}, fmt.Errorf("VCEK: %w", err)
		}
	} else if _, err := ParseTDX(e.Aux); err != nil {
		return h, TPMAttest{}, err
	}
	if e.TPM == nil {
		return h, TPMAttest{}, errors.New("TPM quote: missing")
	}
	if n := len(e.TPM.Signature); n != tpmSignature {
		return h, TPMAttest{}, fmt.Errorf("TPM quote: signature of %d bytes, want %d", n, tpmSignature)
	}
	a, err := ParseTPMAttest(e.TPM.Message)
	return h, a, err
}

// azureToJSON writes version 2, or version 1 where the HCL report is older than the report data: a broker holds version 2
// to its promise.
func azureToJSON(e Evidence) (json.RawMessage, error) {
	h, a, err := e.azure()
	if err != nil {
		return nil, err
	}
	version := 1
	if h.carries(a.ExtraData) {
		version = 2
	}
	q := tpmQuoteJSON{Signature: hex.EncodeToString(e.TPM.Signature), Message: hex.EncodeToString(e.TPM.Message)}
	for i, pcr := range e.TPM.PCRs {
		q.PCRs[i] = hex.EncodeToString(pcr[:])
	}
	b64 := base64.URLEncoding.EncodeToString
	if e.Kind == AzSNPvTPM {
		return json.Marshal(azSNPJSON{version, q, b64(e.Report), b64(e.Aux)})
	}
	return json.Marshal(azTDXJSON{version, q, b64(e.Report), b64(e.Aux)})
}

func azureToJSON0(e Evidence) (json.RawMessage, error) {
	if _, _, err := e.azure(); err != nil {
		return nil, err
	}
	q := tpmQuoteJSON0{Signature: e.TPM.Signature, Message: e.TPM.Message}
	for i, pcr := range e.TPM.PCRs {
		q.PCRs[i] = bytes.Clone(pcr[:])
	}
	if e.Kind == AzSNPvTPM {
		vcek := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Aux})
		return json.Marshal(azSNPJSON0{q, e.Report, string(vcek)})
	}
	return json.Marshal(azTDXJSON0{q, e.Report, e.Aux})
}

func azureFromJSON(kind Kind, raw []byte) (Evidence, error) {
	m, err := Object(raw)
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Kind: kind, TPM: new(TPMQuote)}
	version := 0
	if v, there := m["version"]; !there {
		err = e.readAzure0(raw)
	} else if string(v) != "1" && string(v) != "2" {
		err = fmt.Errorf("version: is %.20s, this build knows 1, 2 and none", v)
	} else {
		version = int(v[0] - '0')
		err = e.readAzure(raw)
	}
	if err != nil {
		return Evidence{}, err
	}
	h, a, err := e.azure()
	if err != nil {
		return Evidence{}, err
	}
	if version == 2 && !h.carries(a.ExtraData) {
		return Evidence{}, errors.New("version 2, and the HCL report does not carry the data of the TPM quote")
	}
	return e, nil
}

// aux is the member that vouches for the HCL report.
func (e *Evidence) aux() string {
	if e.Kind == AzSNPvTPM {
		return "vcek"
	}
	return "td_quote"
}

func (e *Evidence) readAzure(raw []byte) error {
	top := open("", raw, []string{"version", "tpm_quote", "hcl_report", e.aux()}, nil)
	*e.TPM = readQuote(top.object("tpm_quote", []string{"signature", "message", "pcrs"}, nil))
	e.Report = top.text("hcl_report", base64URL)
	e.Aux = top.text(e.aux(), base64URL)
	return top.failure()
}

func readQuote(f *fields) (q TPMQuote) {
	q.Signature = f.text("signature", hex.DecodeString)
	q.Message = f.text("message", hex.DecodeString)
	f.pcrs("pcrs", &q.PCRs, func(raw json.RawMessage) ([]byte, error) { return hex.DecodeString(text(raw)) })
	return q
}

func (e *Evidence) readAzure0(raw []byte) error {
	quote, report := "tpm_quote", "hcl_report"
	if e.Kind == AzSNPvTPM {
		quote, report = "quote", "report"
	}
	top := open("", raw, []string{quote, report, e.aux()}, nil)
	q := top.object(quote, []string{"signature", "message", "pcrs"}, nil)
	e.TPM.Signature = q.bytes("signature")
	e.TPM.Message = q.bytes("message")
	q.pcrs("pcrs", &e.TPM.PCRs, numbers)
	e.Report = top.bytes(report)
	if e.Kind == AzSNPvTPM {
		e.Aux = top.text("vcek", onePEM)
	} else {
		e.Aux = top.bytes("td_quote")
	}
	return top.failure()
}

func base64URL(s string) ([]byte, error) { return decode64(base64.URLEncoding, s) }

// onePEM reads one certificate in PEM, and nothing else.
func onePEM(s string) ([]byte, error) {
	block, rest := pem.Decode([]byte(s))
	if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 ||
		!bytes.HasPrefix([]byte(s), []byte("-----BEGIN ")) {
		return nil, errors.New("not one PEM certificate")
	}
	return block.Bytes, nil
}
