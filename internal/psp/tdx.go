package psp

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Numbers of Intel's quote format, version 4 (Intel TDX DCAP quoting library API, appendix 3; wire/SPEC.md §2.2).
const (
	quoteVersion = 4
	ecdsaP256    = 2    // attestation key type
	teeTDX       = 0x81 // TEE type
	dataQEReport = 6    // certification data: the quoting enclave's own report, and what certifies that
	dataPCKChain = 5    // certification data: PEM, leaf first
	qeReportSize = 384  // bytes
	maxQuote     = 16 << 10
)

// tdAttributes has SEPT_VE_DISABLE and nothing else: without it the host may make the guest fault where it likes. Bit 0,
// debug, is clear. xfam is what x87, SSE, AVX, AVX-512, PKRU and AMX take.
const (
	tdAttributes = 1 << 28
	xfam         = 0x618e7
)

// teeTCBSVN is the patch level of the simulated TDX module: its own SVN, its major version, and that of the SEAM loader.
var teeTCBSVN = [16]byte{2, 1, 6}

// enclaveName is what the simulated quoting enclave has for code: its SHA-256 is MRENCLAVE, and MRSIGNER.
const enclaveName = "ampoule simulated quoting enclave"

// intelVendor is the id of Intel's quoting enclave, 939a7233-f79c-4ca9-940a-0db3957f0607: verifiers know no other.
var intelVendor, _ = hex.DecodeString("939a7233f79c4ca9940a0db3957f0607")

// Quote signs a TDX quote of version 4, certificates included: 4 to 5 KB, never over 16 KiB. The measurement of l is its
// MRTD and the host data, padded with zeros, its MRCONFIGID. The RTMRs are zero: nothing was measured after the launch.
func (p *PSP) Quote(l Launch, reportData [64]byte) ([]byte, error) {
	r := evidence.TDXReport{
		TEETCBSVN:  teeTCBSVN,
		MRSeam:     sha512.Sum384([]byte("ampoule simulated TDX module")),
		Attributes: tdAttributes,
		XFAM:       xfam,
		MRTD:       l.Measurement,
		ReportData: reportData,
	}
	copy(r.MRConfigID[:], l.HostData[:])
	out := binary.LittleEndian.AppendUint16(nil, quoteVersion)
	out = binary.LittleEndian.AppendUint16(out, ecdsaP256)
	out = binary.LittleEndian.AppendUint32(out, teeTDX)
	out = append(out, 0, 0, 0, 0) // reserved
	out = append(out, intelVendor...)
	out = append(out, make([]byte, 20)...) // user data
	out = append(out, r.Marshal()...)

	signature, err := signP256(p.tdx.attestation, out)
	if err != nil {
		return nil, fmt.Errorf("simulated quote: %w", err)
	}
	auth := slices.Concat(signature, p.tdx.publicKey[:], certData(dataQEReport, p.tdx.certification))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(auth)))
	if out = append(out, auth...); len(out) > maxQuote {
		return nil, fmt.Errorf("simulated quote: %d bytes, the kernel takes %d", len(out), maxQuote)
	}
	return out, nil
}

// A tdxModule is one simulated platform: Intel's certificates of it, and a quoting enclave.
type tdxModule struct {
	tdxChain
	attestation   *ecdsa.PrivateKey // drawn at every start: the enclave's report names it, and no certificate does
	publicKey     [64]byte          // of attestation, x and y
	certification []byte            // the enclave's report, its signature, and the PCK chain
}

func newTDXModule(c tdxChain) (*tdxModule, error) {
	m := &tdxModule{tdxChain: c}
	var err error
	if m.attestation, err = newP256(); err != nil {
		return nil, err
	}
	point, err := m.attestation.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	m.publicKey = [64]byte(point[1:]) // without the byte that says "not compressed"
	return m, m.certify()
}

// certify has the quoting enclave report its attestation key, and the platform sign that report.
func (m *tdxModule) certify() error {
	auth := make([]byte, 32) // any bytes: the enclave's choice
	rand.Read(auth)
	keyHash := sha256.Sum256(slices.Concat(m.publicKey[:], auth))
	signer := sha256.Sum256([]byte(enclaveName))

	report := make([]byte, qeReportSize)
	copy(report, cpuSVN[:])
	report[48], report[56] = 0x15, 0xe7 // attributes: initialised, 64-bit, may use the key for quotes; XFRM
	copy(report[64:], signer[:])        // MRENCLAVE
	copy(report[128:], signer[:])       // MRSIGNER
	report[256], report[258] = 2, 5     // ISVPRODID of a TD quoting enclave, ISVSVN
	copy(report[320:], keyHash[:])

	signature, err := signP256(m.pckKey, report)
	if err != nil {
		return fmt.Errorf("report of the simulated quoting enclave: %w", err)
	}
	chain := slices.Concat(certPEM(m.pck), certPEM(m.platform), certPEM(m.root), []byte{0}) // Intel's ends in a zero byte as well
	m.certification = slices.Concat(report, signature, binary.LittleEndian.AppendUint16(nil, uint16(len(auth))), auth, certData(dataPCKChain, chain))
	return nil
}

func certData(kind uint16, data []byte) []byte {
	out := binary.LittleEndian.AppendUint16(nil, kind)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(data)))
	return append(out, data...)
}

// signP256 returns r and s, 32 bytes each, big endian.
func signP256(key *ecdsa.PrivateKey, b []byte) ([]byte, error) {
	sum := sha256.Sum256(b)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}
