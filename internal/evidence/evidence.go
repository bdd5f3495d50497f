// Package evidence holds what a TEE says about itself, as bytes and as the JSON that key brokers take.
//
// It is a leaf: PID 1 makes evidence, host tools judge it (package verify), and neither imports the other.
package evidence

import (
	"encoding/hex"
	"fmt"
)

// A Kind names a sort of evidence by the word that Trustee's "tee" member uses (wire/SPEC.md §1.2).
type Kind string

const (
	SNP       Kind = "snp"         // AMD SEV-SNP attestation report, VMPL 0
	TDX       Kind = "tdx"         // Intel TDX quote
	AzSNPvTPM Kind = "az-snp-vtpm" // Azure: TPM quote by a key that an SNP report of the paravisor vouches for
	AzTDXvTPM Kind = "az-tdx-vtpm" // Azure: the same with a TD quote
	Sample    Kind = "sample"      // CoCo's sample attester: proves nothing, simulation images only
)

// Evidence is one answer of a TEE to one report data.
type Evidence struct {
	Kind Kind
	// Report is what the hardware signed. SNP: the 1184-byte ATTESTATION_REPORT. TDX: the DCAP quote, version 4 or 5.
	// Azure: the HCL report as NV index 0x01400001 holds it. Sample: the 64 bytes of report data.
	Report []byte
	// Aux is what vouches for the signer. SNP: the GHCB certificate table, or empty when the host gave none.
	// az-snp-vtpm: the VCEK certificate, DER. az-tdx-vtpm: the TD quote. Otherwise empty.
	Aux []byte
	// EventLog is the log that the RTMRs of a TDX quote replay to, in TCG2 form; nil where there is none.
	EventLog []byte
	// TPM is the quote of the vTPM, for the Azure kinds only.
	TPM *TPMQuote
}

// A TPMQuote is the answer of TPM2_Quote over the SHA-256 bank, slots 0 to 23 (wire/SPEC.md §2.3).
type TPMQuote struct {
	Signature []byte // RSASSA with SHA-256, 256 bytes
	Message   []byte // TPMS_ATTEST
	PCRs      [24][32]byte
}

// A Measurement is a 48-byte launch digest (SNP MEASUREMENT, TDX MRTD). Its text form is 96 lower-case hex digits.
type Measurement [48]byte

// ParseMeasurement reads 96 hex digits.
func ParseMeasurement(s string) (Measurement, error) {
	var m Measurement
	b, err := hex.DecodeString(s)
	if err != nil {
		return m, fmt.Errorf("measurement %q: %w", s, err)
	}
	if len(b) != len(m) {
		return m, fmt.Errorf("measurement %q: %d bytes, want %d", s, len(b), len(m))
	}
	return Measurement(b), nil
}

func (m Measurement) String() string               { return hex.EncodeToString(m[:]) }
func (m Measurement) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m *Measurement) UnmarshalText(b []byte) (err error) {
	*m, err = ParseMeasurement(string(b))
	return err
}
