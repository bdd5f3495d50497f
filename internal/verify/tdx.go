package verify

import (
	"bytes"
	"crypto"
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

// Subjects of the certificates of every platform, and of the one that signs what Intel says of platforms.
const (
	pckName = "Intel SGX PCK Certificate"
	tcbName = "Intel SGX TCB Signing"
)

// Bits of TDATTRIBUTES besides those that make a guest debuggable.
const (
	sepVEDisable = 1 << 28
	migratable   = 1 << 29
)

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
// and the claims of o; the event log, if there is one, must lead to all four RTMRs. An initdata document may be in
// MRCONFIGID or, where that is zero, in RTMR3 and nothing else in there. Nothing is fetched: without collateral, whether
// the platform's patch level is still good is in Claims.Unproven. When the signature holds the Claims are filled even if
// err is not nil; err then joins one *ClaimError for each claim that failed, and says what of the collateral cannot be used.
func TDX(ev evidence.Evidence, o Options) (Claims, error) {
	if ev.Kind != evidence.TDX {
		return Claims{}, fmt.Errorf("evidence of kind %q: proves nothing to a TDX verifier", ev.Kind)
	}
	c, errs, err := tdxClaims(ev.Report, o)
	if err != nil {
		return Claims{}, err
	}
	if len(o.InitData) == sha256.Size && empty(c.InitData) && c.TDX.RTMR[3] == extended([32]byte(o.InitData)) {
		c.Register, c.InitData = evidence.RTMR3, c.TDX.RTMR[3][:]
		c.Unproven = append(c.Unproven, "that the launch fixed the initdata: the guest measured it itself, which is worth what the measurement and RTMR0 to RTMR2 say of the guest")
	}
	c.Unproven = append(c.Unproven, "what the firmware measured after MRTD, unless the RTMRs are compared")
	if ev.EventLog == nil {
		c.Unproven = append(c.Unproven, "what the RTMRs are made of: there is no event log")
	} else if c.events, err = replays(ev.EventLog, c.TDX); err != nil {
		errs = append(errs, err)
	}
	return c, errors.Join(append(errs, expected(&c, o)...)...)
}

// tdxClaims proves a quote, whoever asked for it: its signatures, what no option may switch off, and the patch level.
func tdxClaims(quote []byte, o Options) (c Claims, failed []error, err error) {
	q, err := evidence.ParseTDX(quote)
	if err != nil {
		return c, nil, err
	}
	p, err := checkQuote(&q, o)
	if err != nil {
		return c, nil, fmt.Errorf("TDX quote: %w", err)
	}
	r := &q.Report
	c = Claims{
		Kind: evidence.TDX, Measurement: r.MRTD, ReportData: r.ReportData, Product: "TDX", Simulated: o.Intel != nil,
		Register: evidence.MRConfigID, InitData: r.MRConfigID[:], TDX: r, header: quoteHeader(&q), instance: p.instance(),
	}
	failed = inherentTDX(r)
	if o.whole {
		failed = append(failed, p.whole(&q, quote)...)
	}
	if r.Attributes&sepVEDisable == 0 {
		c.Unproven = append(c.Unproven, "that the host cannot make the guest fault on memory it took away: SEPT_VE_DISABLE is off")
	}
	if o.Collateral == nil {
		c.Unproven = append(c.Unproven,
			"whether Intel still considers this platform's patch level good: TCB status not evaluated, there is no collateral",
			"that Intel has not revoked the platform's certificate: no revocation list was consulted")
		return c, failed, nil
	}
	l, bad := o.Collateral.judge(p, r, o)
	if l != nil {
		c.TCBStatus, c.TCBDate, c.Advisory = l.Status.String(), l.Date, l.Advisories
	}
	if bad != nil {
		failed = append(failed, bad)
	}
	return c, failed, nil
}

// quoteHeader is the header of a quote, and in version 5 the type and size of the body, which stand behind it.
func quoteHeader(q *evidence.TDXQuote) []byte {
	n := 48
	if q.Version == 5 {
		n += 6
	}
	return q.Signed[:n]
}

// An intelPlatform is what signed a quote.
type intelPlatform struct {
	pck, ca, root *x509.Certificate
	qe            []byte              // the report of the quoting enclave
	chain         []byte              // PEM, as the quote brings it
	path          []*x509.Certificate // from the PCK to the root
}

// checkQuote follows the signatures from the root to the quote.
func checkQuote(q *evidence.TDXQuote, o Options) (p intelPlatform, err error) {
	r := &span{b: q.Auth}
	signature, key := r.take(p256Pair), r.take(p256Pair)
	qe := r.data(certDataQE)
	if r.err != nil || len(r.b) > 0 {
		return p, fmt.Errorf("signature data: %w", cmpErr(r.err, "bytes after its end"))
	}
	report, qeSignature := qe.take(qeReportSize), qe.take(p256Pair)
	auth := qe.take(int(qe.u16()))
	chain := qe.data(certDataPCK)
	if qe.err != nil || len(qe.b) > 0 || chain.err != nil {
		return p, fmt.Errorf("certification data: %w", cmpErr(errors.Join(qe.err, chain.err), "bytes after its end"))
	}
	if p, err = checkPCK(chain.b, o); err != nil {
		return p, err
	}
	p.qe = report
	if err := verifyP256(p.pck.PublicKey, report, qeSignature); err != nil {
		return p, fmt.Errorf("report of the quoting enclave: %w", err)
	}
	if err := checkEnclave(report, append(bytes.Clone(key), auth...), o); err != nil {
		return p, fmt.Errorf("quoting enclave: %w", err)
	}
	attestation, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, key...))
	if err != nil {
		return p, fmt.Errorf("attestation key: %w", err)
	}
	return p, verifyP256(attestation, q.Signed, signature)
}

// checkPCK verifies the chain that a quote brings: PEM, the leaf first.
func checkPCK(chain []byte, o Options) (p intelPlatform, err error) {
	found, err := underIntel(chain, pckName, o)
	if err != nil {
		return p, fmt.Errorf("PCK certificates: %w", err)
	}
	p = intelPlatform{pck: found[0], ca: found[1], root: found[len(found)-1], chain: chain, path: found}
	if key, ok := p.pck.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() || p.pck.IsCA {
		return p, errors.New("PCK certificate: not a leaf with a P-256 key")
	}
	return p, nil
}

// underIntel reads certificates, at most three, PEM with the leaf first, and gives the chain from the leaf to the root that
// o trusts. The leaf must be of name: Intel's root signs leaves for other uses too, and their keys vouch for nothing else.
func underIntel(chain []byte, name string, o Options) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, c); len(certs) > 3 {
			return nil, errors.New("more than three")
		}
	}
	if len(certs) < 2 {
		return nil, fmt.Errorf("%d, want the leaf and what it hangs from", len(certs))
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
	// Intel's certificates name no use of their keys that x509 knows.
	found, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: o.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil, err
	}
	if cn := certs[0].Subject.CommonName; cn != name {
		return nil, fmt.Errorf("is of %.80q, want %q", cn, name)
	}
	return found[0], nil
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
func inherentTDX(r *evidence.TDXReport) (errs []error) {
	fail := func(claim, want, got string) { errs = append(errs, &ClaimError{claim, want, got}) }
	if r.Attributes&0xff != 0 {
		fail("td_attributes.debug", "off", fmt.Sprintf("%#x (the host can read the guest's memory)", r.Attributes))
	}
	if r.Attributes&migratable != 0 {
		fail("td_attributes.migratable", "off", fmt.Sprintf("%#x (a service guest can move the guest elsewhere)", r.Attributes))
	}
	// Zero is Intel's own module, not one of somebody else's.
	if r.MRSignerSeam != [48]byte{} {
		fail("mr_signer_seam", "zero (Intel's TDX module)", hex.EncodeToString(r.MRSignerSeam[:]))
	}
	if r.SeamAttributes != 0 {
		fail("seam_attributes", "0", fmt.Sprintf("%#x", r.SeamAttributes))
	}
	return errs
}

// replays holds an event log against the registers.
func replays(log []byte, r *evidence.TDXReport) ([]evidence.LogEvent, error) {
	events, err := evidence.ParseEventLog(log)
	if err != nil {
		return nil, err
	}
	for i, got := range evidence.Replay(events) {
		if got != r.RTMR[i] {
			return nil, &ClaimError{fmt.Sprintf("rtmr%d", i), hex.EncodeToString(got[:]) + " as the event log has it", hex.EncodeToString(r.RTMR[i][:])}
		}
	}
	return events, nil
}

// verifyP256 takes signatures as DCAP has them: r, then s, 32 bytes each.
func verifyP256(key crypto.PublicKey, signed, signature []byte) error {
	pub, ok := key.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() || len(signature) != p256Pair {
		return errors.New("not a signature of a P-256 key")
	}
	sum := sha256.Sum256(signed)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(pub, sum[:], r, s) {
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
