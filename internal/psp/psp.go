// Package psp simulates a secure processor: it signs SNP reports and TDX quotes with chains that no real verifier trusts.
//
// It lets a VM without SEV-SNP or TDX run the whole product. The chains of certificates have the shape that go-sev-guest
// and go-tdx-guest check, under roots made on this machine, so its evidence is worth nothing to whoever is not told of
// those roots.
package psp

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// The simulated chip is a Milan B1: the first three numbers are in the report, the name is in the certificate.
const (
	productName = "Milan-B1"
	cpuFamily   = 0x19
	cpuModel    = 0x01
	cpuStepping = 0x01
)

// tcb is a set of patch levels that a chip of that line has had.
var tcb = evidence.TCB{Bootloader: 4, SNP: 22, Microcode: 213}

// policy allows SMT and nothing else; bit 17 is reserved and must be one.
const policy = 1<<16 | 1<<17

// A PSP is one simulated chip with its certificates; it speaks for AMD and for Intel.
type PSP struct {
	ark, ask, vcek *x509.Certificate
	key            *ecdsa.PrivateKey // of the VCEK
	crl            []byte            // of the ark; nil in the file of an older version
	chipID         [64]byte
	tdx            *tdxModule
}

// A Launch is what the hypervisor and the chip fix when a guest starts; every report of that guest carries it.
type Launch struct {
	Measurement evidence.Measurement
	HostData    [32]byte // TDX: MRCONFIGID, padded with zeros
	ReportID    [32]byte // SNP only; names the guest; Serve draws one where it is zero
}

// Report signs a report of version 3 and VMPL 0: 1184 bytes.
func (p *PSP) Report(l Launch, reportData [64]byte) ([]byte, error) {
	firmware := evidence.Firmware{Major: 1, Minor: 55, Build: 40}
	r := evidence.SNPReport{
		Version:           3,
		Policy:            policy,
		SigAlgo:           1, // ECDSA P-384 with SHA-384
		PlatInfo:          1, // SMT is on
		CurrentTCB:        tcb,
		ReportedTCB:       tcb,
		CommittedTCB:      tcb,
		LaunchTCB:         tcb,
		ReportData:        reportData,
		Measurement:       l.Measurement,
		HostData:          l.HostData,
		ReportID:          l.ReportID,
		CPUFamily:         cpuFamily,
		CPUModel:          cpuModel,
		CPUStepping:       cpuStepping,
		ChipID:            p.chipID,
		CurrentFirmware:   firmware,
		CommittedFirmware: firmware,
	}
	for i := range r.ReportIDMA {
		r.ReportIDMA[i] = 0xff // no migration agent
	}
	sum := sha512.Sum384(abi.SignedComponent(r.Marshal()))
	R, S, err := ecdsa.Sign(rand.Reader, p.key, sum[:])
	if err != nil {
		return nil, fmt.Errorf("simulated report: %w", err)
	}
	littleEndian(r.SignatureR[:], R)
	littleEndian(r.SignatureS[:], S)
	return r.Marshal(), nil
}

// Certs is the certificate table of the host (GHCB layout): ARK, ASK and VCEK.
func (p *PSP) Certs() ([]byte, error) {
	return evidence.MarshalCerts([]evidence.Cert{
		{Type: "ARK", DER: p.ark.Raw}, {Type: "ASK", DER: p.ask.Raw}, {Type: "VCEK", DER: p.vcek.Raw},
	})
}

// RootPEM is what a verifier must be told before it takes this chip's reports: the ASK and the ARK, as PEM.
func (p *PSP) RootPEM() []byte {
	return slices.Concat(certPEM(p.ask), certPEM(p.ark))
}

// TDXRootPEM is the same for this chip's quotes: one certificate that stands in for Intel's SGX Root CA.
func (p *PSP) TDXRootPEM() []byte { return certPEM(p.tdx.root) }

func littleEndian(dst []byte, n *big.Int) {
	n.FillBytes(dst)
	slices.Reverse(dst)
}

func tcbParts() kds.TCBParts {
	return kds.TCBParts{BlSpl: tcb.Bootloader, TeeSpl: tcb.TEE, SnpSpl: tcb.SNP, UcodeSpl: tcb.Microcode}
}
