package evidence

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// SNPReportSize is the length of an SNP ATTESTATION_REPORT in bytes.
const SNPReportSize = 1184

// Bits of SNPReport.Policy that a verifier looks at.
const (
	SNPPolicyMigrateMA = 1 << 18 // a migration agent may move the guest elsewhere
	SNPPolicyDebug     = 1 << 19 // the host may read and write guest memory
)

const (
	familyTurin = 0x1A // Zen 5: the TCB bytes moved
	signedSize  = 0x2A0
)

// An SNPReport is the decoded ATTESTATION_REPORT (wire/SPEC.md §2.1). Numbers are little-endian in the report.
type SNPReport struct {
	Version, GuestSVN                               uint32
	Policy                                          uint64
	FamilyID, ImageID                               [16]byte
	VMPL, SigAlgo                                   uint32
	CurrentTCB                                      TCB
	PlatInfo                                        uint64
	KeyInfo                                         uint32
	ReportData                                      [64]byte
	Measurement                                     Measurement
	HostData                                        [32]byte
	IDKeyDigest, AuthorKeyDigest                    [48]byte
	ReportID, ReportIDMA                            [32]byte
	ReportedTCB                                     TCB
	CPUFamily, CPUModel, CPUStepping                uint8 // zero before version 3
	ChipID                                          [64]byte
	CommittedTCB                                    TCB
	CurrentFirmware, CommittedFirmware              Firmware
	LaunchTCB                                       TCB
	LaunchMitigationVector, CurrentMitigationVector uint64   // zero before version 5
	SignatureR, SignatureS                          [72]byte // ECDSA P-384, little-endian
}

// A TCB is the set of security patch levels of one TCB_VERSION. FMC exists on Turin only.
type TCB struct {
	FMC, Bootloader, TEE, SNP, Microcode uint8
}

// Firmware is a version of the AMD secure processor's firmware.
type Firmware struct{ Major, Minor, Build uint8 }

// A Signer is the sort of key that signed a report.
type Signer uint8

const (
	VCEK Signer = 0 // the chip's own key
	VLEK Signer = 1 // a key that AMD gave to the cloud
)

func (s Signer) String() string {
	switch s {
	case VCEK:
		return "VCEK"
	case VLEK:
		return "VLEK"
	}
	return fmt.Sprintf("signer %d", uint8(s))
}

// Signer reads bits 2 to 4 of KEY_INFO.
func (r *SNPReport) Signer() Signer { return Signer(r.KeyInfo >> 2 & 7) }

// Turin says whether the report lays out its TCBs as Zen 5 does.
func (r *SNPReport) Turin() bool { return r.Version >= 3 && r.CPUFamily == familyTurin }

// ParseSNP decodes a report of 1184 bytes, versions 2 to 5. Every byte must be one that SNPReport can hold, so that
// Marshal gives the same bytes again: brokers rebuild the report from its fields and check the signature over that.
func ParseSNP(report []byte) (SNPReport, error) {
	var r SNPReport
	if len(report) != SNPReportSize {
		return r, fmt.Errorf("SNP report: %d bytes, want %d", len(report), SNPReportSize)
	}
	r.Version = binary.LittleEndian.Uint32(report)
	if r.Version < 2 || r.Version > 5 {
		return r, fmt.Errorf("SNP report: version %d, this build knows 2 to 5", r.Version)
	}
	if r.Version >= 3 {
		// Read ahead: where the bytes of every TCB lie depends on the family.
		r.CPUFamily = report[0x188]
	}
	r.layout(func(off int, field any) { get(report[off:], field, r.Turin()) })
	if again := r.Marshal(); !bytes.Equal(again, report) {
		off := 0
		for again[off] == report[off] {
			off++
		}
		return r, fmt.Errorf("SNP report: reserved byte %#x is %#02x, want 0 in version %d", off, report[off], r.Version)
	}
	return r, nil
}

// Marshal encodes the report to its 1184 bytes, reserved ones zero.
func (r *SNPReport) Marshal() []byte {
	b := make([]byte, SNPReportSize)
	r.layout(func(off int, field any) { put(b[off:], field, r.Turin()) })
	return b
}

// layout is the one table of offsets, for reading and for writing.
func (r *SNPReport) layout(at func(off int, field any)) {
	at(0x00, &r.Version)
	at(0x04, &r.GuestSVN)
	at(0x08, &r.Policy)
	at(0x10, r.FamilyID[:])
	at(0x20, r.ImageID[:])
	at(0x30, &r.VMPL)
	at(0x34, &r.SigAlgo)
	at(0x38, &r.CurrentTCB)
	at(0x40, &r.PlatInfo)
	at(0x48, &r.KeyInfo)
	at(0x50, r.ReportData[:])
	at(0x90, r.Measurement[:])
	at(0xC0, r.HostData[:])
	at(0xE0, r.IDKeyDigest[:])
	at(0x110, r.AuthorKeyDigest[:])
	at(0x140, r.ReportID[:])
	at(0x160, r.ReportIDMA[:])
	at(0x180, &r.ReportedTCB)
	if r.Version >= 3 {
		at(0x188, &r.CPUFamily)
		at(0x189, &r.CPUModel)
		at(0x18A, &r.CPUStepping)
	}
	at(0x1A0, r.ChipID[:])
	at(0x1E0, &r.CommittedTCB)
	at(0x1E8, &r.CurrentFirmware)
	at(0x1EC, &r.CommittedFirmware)
	at(0x1F0, &r.LaunchTCB)
	if r.Version >= 5 {
		at(0x1F8, &r.LaunchMitigationVector)
		at(0x200, &r.CurrentMitigationVector)
	}
	at(signedSize, r.SignatureR[:])
	at(signedSize+len(r.SignatureR), r.SignatureS[:])
}

func get(b []byte, field any, turin bool) {
	switch f := field.(type) {
	case *uint8:
		*f = b[0]
	case *uint32:
		*f = binary.LittleEndian.Uint32(b)
	case *uint64:
		*f = binary.LittleEndian.Uint64(b)
	case []byte:
		copy(f, b)
	case *Firmware:
		*f = Firmware{Build: b[0], Minor: b[1], Major: b[2]}
	case *TCB:
		if turin {
			*f = TCB{FMC: b[0], Bootloader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
		} else {
			*f = TCB{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
		}
	}
}

func put(b []byte, field any, turin bool) {
	switch f := field.(type) {
	case *uint8:
		b[0] = *f
	case *uint32:
		binary.LittleEndian.PutUint32(b, *f)
	case *uint64:
		binary.LittleEndian.PutUint64(b, *f)
	case []byte:
		copy(b, f)
	case *Firmware:
		b[0], b[1], b[2] = f.Build, f.Minor, f.Major
	case *TCB:
		if turin {
			b[0], b[1], b[2], b[3], b[7] = f.FMC, f.Bootloader, f.TEE, f.SNP, f.Microcode
		} else {
			b[0], b[1], b[6], b[7] = f.Bootloader, f.TEE, f.SNP, f.Microcode
		}
	}
}
