package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// intelRoot is the SHA-256 of the SubjectPublicKeyInfo of the Intel SGX Root CA, from which every PCK certificate hangs.
const intelRoot = "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"

// Intel's quoting enclave for TDX: the SHA-256 of the key that signs Intel's enclaves, and its product number. Without
// them any enclave that a host starts could report an attestation key.
const (
	intelQESigner  = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	intelQEProduct = 2
)

// pckName is the subject of every platform's certificate.
const pckName = "Intel SGX PCK Certificate"

// Parts of a quote's signature data and of a report of an enclave (Intel DCAP quote format), bytes.
const (
	qeReportSize = 384
	p256Pair     = 64 // a signature, r and s, or a point, x and y; big-endian
	certDataQE   = 6
	certDataPCK  = 5
	enclaveDebug = 1 << 1 // in the attributes of an enclave
)

// LoadIntelRoot reads the root of a simulated TDX platform: one PEM certificate, signed by itself.
func LoadIntelRoot(pemBytes []byte) ([]*x509.Certificate, error) {
	block, rest := pem.Decode(pemBytes)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("TDX root: want one PEM certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err == nil {
		err = c.CheckSignatureFrom(c)
	}
	if err != nil {
		return nil, fmt.Errorf("TDX root: %w", err)
	}
	return []*x509.Certificate{c}, nil
}

// TDX checks an Intel TDX quote: the PCK certificates inside it up to a root, the quoting enclave, its key's signature,
// and the claims of o; the event log, if there is one, must lead to all four RTMRs. Nothing is fetched: whether the
// platform's patch level is still good is in Claims.Unproven. When the signature holds the Claims are filled even if
// err is not nil; err then joins one *ClaimError for each claim that failed.
func TDX(ev evidence.Evidence, o Options) (Claims, error) {
	if ev.Kind != evidence.TDX {
		return Claims{}, fmt.Errorf("evidence of kind %q: proves nothing to a TDX verifier", ev.Kind)
	}
	q, err := evidence.ParseTDX(ev.Report)
	if err != nil {
		return Claims{}, err
	}
	if err := checkQuote(&q, o); err != nil {
		return Claims{}, fmt.Errorf("TDX quote: %w", err)
	}
	r := q.Report
	c := Claims{
		Kind: evidence.TDX, Measurement: r.MRTD, ReportData: r.ReportData, Product: "TDX", Simulated: o.Intel != nil,
		Register: evidence.MRConfigID, InitData: r.MRConfigID[:], TDX: &r,
		Unproven: []string{
			"whether Intel still considers this platform's patch level good, or has revoked its certificate: no TCB info and no CRL was consulted",
			"what the firmware measured after MRTD, unless the RTMRs are compared",
		},
	}
	errs := inherentTDX(&r, o)
	if ev.EventLog != nil {
		if err := replays(ev.EventLog, &r); err != nil {
			errs = append(errs, err)
		}
	} else {
		c.Unproven = append(c.Unproven, "what the RTMRs are made of: there is no event log")
	}
	return c, errors.Join(append(errs, expected(&c, o)...)...)
}

// checkQuote follows the signatures from the root to the quote.
func checkQuote(q *evidence.TDXQuote, o Options) error {
	r := &span{b: q.Auth}
	signature, key := r.take(p256Pair), r.take(p256Pair)
	qe := r.data(certDataQE)
	if r.err != nil || len(r.b) > 0 {
		return fmt.Errorf("signature data: %w", cmpErr(r.err, "bytes after its end"))
	}
	report, qeSignature := qe.take(qeReportSize), qe.take(p256Pair)
	auth := qe.take(int(qe.u16()))
	chain := qe.data(certDataPCK)
	if qe.err != nil || len(qe.b) > 0 || chain.err != nil {
		return fmt.Errorf("certification data: %w", cmpErr(errors.Join(qe.err, chain.err), "bytes after its end"))
	}
	pck, err := checkPCK(chain.b, o)
	if err != nil {
		return err
	}
	if err := verifyP256(pck, report, qeSignature); err != nil {
		return fmt.Errorf("report of the quoting enclave: %w", err)
	}
	if err := checkEnclave(report, append(bytes.Clone(key), auth...), o); err != nil {
		return fmt.Errorf("quoting enclave: %w", err)
	}
	attestation, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, key...))
	if err != nil {
		return fmt.Errorf("attestation key: %w", err)
	}
	return verifyP256(attestation, q.Signed, signature)
}

// checkPCK verifies the chain, PEM with the leaf first, and returns the leaf's key.
func checkPCK(chain []byte, o Options) (*ecdsa.PublicKey, error) {
	var certs []*x509.Certificate
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PCK certificates: %w", err)
		}
		if certs = append(certs, c); len(certs) > 3 {
			return nil, errors.New("PCK certificates: more than three")
		}
	}
	if len(certs) < 2 {
		return nil, fmt.Errorf("PCK certificates: %d, want the leaf, Intel's CA and its root", len(certs))
	}
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range o.Intel {
		roots.AddCert(c)
	}
	for _, c := range certs[1:] {
		// The chain brings its root along; it is one only by its key.
		if sum := sha256.Sum256(c.RawSubjectPublicKeyInfo); o.Intel == nil && hex.EncodeToString(sum[:]) == intelRoot {
			roots.AddCert(c)
		}
		others.AddCert(c)
	}
	now := o.Now
	if now.IsZero() {
		now = time.Now()
	}
	// PCK certificates name no use of their keys that x509 knows.
	_, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, fmt.Errorf("PCK certificates: %w", err)
	}
	key, ok := certs[0].PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() || certs[0].IsCA {
		return nil, errors.New("PCK certificate: not a leaf with a P-256 key")
	}
	// Intel's root signs other leaves too, such as the one for TCB info: their keys vouch for no enclave.
	if cn := certs[0].Subject.CommonName; cn != pckName {
		return nil, fmt.Errorf("PCK certificate: is of %.80q, want %q", cn, pckName)
	}
	return key, nil
}

// checkEnclave holds the report of the quoting enclave against who it must be, and against the key that it vouches for.
func checkEnclave(report, bound []byte, o Options) error {
	want := sha256.Sum256(bound)
	if !bytes.Equal(report[320:352], want[:]) || !bytes.Equal(report[352:384], make([]byte, 32)) {
		return errors.New("it vouches for another attestation key")
	}
	if report[48]&enclaveDebug != 0 {
		return errors.New("it can be debugged, so the host has its key")
	}
	if o.Intel != nil {
		return nil // a test root signs for an enclave of its own
	}
	if got := hex.EncodeToString(report[128:160]); got != intelQESigner {
		return fmt.Errorf("MRSIGNER is %s, want Intel's %s", got, intelQESigner)
	}
	if got := binary.LittleEndian.Uint16(report[256:]); got != intelQEProduct {
		return fmt.Errorf("ISVPRODID is %d, want %d", got, intelQEProduct)
	}
	return nil
}

// inherentTDX checks what no option may switch off.
func inherentTDX(r *evidence.TDXReport, o Options) (errs []error) {
	if r.Attributes&0xff != 0 {
		errs = append(errs, &ClaimError{"td_attributes.debug", "off", fmt.Sprintf("%#x (the host can read the guest's memory)", r.Attributes)})
	}
	// Zero is Intel's own module, not one of somebody else's.
	if r.MRSignerSeam != [48]byte{} {
		errs = append(errs, &ClaimError{"mr_signer_seam", "zero (Intel's TDX module)", hex.EncodeToString(r.MRSignerSeam[:])})
	}
	if r.SeamAttributes != 0 {
		errs = append(errs, &ClaimError{"seam_attributes", "0", fmt.Sprintf("%#x", r.SeamAttributes)})
	}
	return errs
}

// replays holds an event log against the registers.
func replays(log []byte, r *evidence.TDXReport) error {
	events, err := evidence.ParseEventLog(log)
	if err != nil {
		return err
	}
	for i, got := range evidence.Replay(events) {
		if got != r.RTMR[i] {
			return &ClaimError{fmt.Sprintf("rtmr%d", i), hex.EncodeToString(got[:]) + " as the event log has it", hex.EncodeToString(r.RTMR[i][:])}
		}
	}
	return nil
}

func verifyP256(key *ecdsa.PublicKey, signed, signature []byte) error {
	sum := sha256.Sum256(signed)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(key, sum[:], r, s) {
		return errors.New("signature does not hold")
	}
	return nil
}

// A span reads through bytes; its first error stays.
type span struct {
	b   []byte
	err error
}

// take gives n bytes, zeros after an error.
func (s *span) take(n int) []byte {
	if s.err != nil || n > len(s.b) {
		if s.err == nil {
			s.err = errors.New("ends in the middle")
		}
		return make([]byte, n)
	}
	out := s.b[:n]
	s.b = s.b[n:]
	return out
}

func (s *span) u16() uint16 { return binary.LittleEndian.Uint16(s.take(2)) }

// data gives certification data of the one kind that is expected: u16 kind, u32 size, bytes.
func (s *span) data(kind uint16) *span {
	got, size := s.u16(), binary.LittleEndian.Uint32(s.take(4))
	if s.err == nil && got != kind {
		s.err = fmt.Errorf("certification data of type %d, want %d", got, kind)
	}
	if s.err == nil && uint64(size) > uint64(len(s.b)) {
		s.err = errors.New("ends in the middle")
	}
	if s.err != nil {
		return &span{err: s.err}
	}
	return &span{b: s.take(int(size))}
}

func cmpErr(err error, otherwise string) error {
	if err != nil {
		return err
	}
	return errors.New(otherwise)
}
