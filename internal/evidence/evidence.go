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
	SNP    Kind = "snp"    // AMD SEV-SNP attestation report, VMPL 0
	Sample Kind = "sample" // CoCo's sample attester: proves nothing, simulation images only
)

// Evidence is one answer of a TEE to one report data.
type Evidence struct {
	Kind   Kind
	Report []byte // SNP: the 1184-byte ATTESTATION_REPORT
	Aux    []byte // SNP: the GHCB certificate table, or empty when the host gave none
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
