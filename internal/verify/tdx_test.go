package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../shared/wire/fixtures", name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the recorded evidence in ../shared is not here")
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recorded is when all certificates of the recorded quotes were good.
var recorded = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// TestRecordedQuotes: real quotes hold under Intel's root, and no signed byte of them may change.
func TestRecordedQuotes(t *testing.T) {
	for name, now := range map[string]time.Time{
		"tdx/tdx_quote_4.dat":                        time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC),
		"tdx/tdx_quote_5.dat":                        time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC),
		"tdx/tdx_quote_6.dat":                        time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC),
		"tdx/go-tdx-guest-tdx_prod_quote_SPR_E4.dat": recorded,
		"tdx/go-tdx-guest-quote_v5_sample.dat":       time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC),
		"ccel/cos-113-tdx-quote.dat":                 time.Date(2024, 8, 1, 0, 0, 0, 0, time.UTC),
		"az-tdx-vtpm/td-quote.bin":                   time.Date(2024, 8, 1, 0, 0, 0, 0, time.UTC),
	} {
		t.Run(name, func(t *testing.T) {
			raw := fixture(t, name)
			o := Options{Now: now}
			claims, err := TDX(evidence.Evidence{Kind: evidence.TDX, Report: raw}, o)
			if claims.Kind != evidence.TDX || claims.Simulated {
				t.Fatalf("the signature does not hold: %v", err)
			}
			claim, refused := errors.AsType[*ClaimError](err)
			if debug := name == "tdx/tdx_quote_4.dat"; refused != debug || debug && claim.Claim != "td_attributes.debug" {
				t.Errorf("claims: %v; want a refusal only of the guest that can be debugged", err)
			}
			q, err := evidence.ParseTDX(raw)
			if err != nil {
				t.Fatal(err)
			}
			end := len(q.Signed) + 4 + len(q.Auth)
			for at := 0; at < end; at += 37 {
				b := append([]byte(nil), raw[:end]...)
				b[at] ^= 1
				got, err := TDX(evidence.Evidence{Kind: evidence.TDX, Report: b}, o)
				// Intel's chain is PEM: a changed line feed between certificates is no change of any of them.
				if err == nil && at < len(q.Signed)+4+128 || got.Kind != "" && at < len(q.Signed)+4+64 {
					t.Errorf("byte %d of %d may change", at, end)
				}
			}
			o.Intel = []*x509.Certificate{newPlatform(t).root}
			if _, err := TDX(evidence.Evidence{Kind: evidence.TDX, Report: raw}, o); err == nil {
				t.Error("a real quote holds under a test root")
			}
		})
	}
}

func TestRecordedEventLog(t *testing.T) {
	log, err := evidence.CutEventLog(fixture(t, "ccel/ccel_data.dat"))
	if err != nil {
		t.Fatal(err)
	}
	ev := evidence.Evidence{Kind: evidence.TDX, Report: fixture(t, "ccel/cos-113-tdx-quote.dat"), EventLog: log}
	o := Options{Now: time.Date(2024, 8, 1, 0, 0, 0, 0, time.UTC)}
	nonce := [64]byte(fixture(t, "ccel/nonce.dat"))
	o.ReportData = &nonce
	c, err := Evidence(ev, o)
	if err != nil || c.TDX == nil || c.Register != evidence.MRConfigID {
		t.Fatalf("%+v: %v", c, err)
	}
	entry, _ := evidence.InitDataEvent([32]byte{1})
	ev.EventLog = evidence.AppendEvent(log, entry)
	_, err = TDX(ev, o)
	if claim, ok := errors.AsType[*ClaimError](err); !ok || claim.Claim != "rtmr3" {
		t.Errorf("a log with an event too many: %v", err)
	}
}

// An issuer signs certificates, revocation lists or answers.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// A platform is a test-only chain in the shape of Intel's, and a quoting enclave. The serial numbers are 1 for the root, 2
// for the CA, 3 for the platform.
type platform struct {
	rootIssuer, ca          *issuer
	root                    *x509.Certificate
	chain                   []byte
	pck, attestation, caKey *ecdsa.PrivateKey
	attributes, mrsigner    byte
	boundTo                 []byte // what the enclave vouches for; nil: its key
	report                  evidence.TDXReport
}

func newPlatform(t testing.TB) *platform { return newPlatformOf(t, pckName) }

func newPlatformOf(t testing.TB, leafName string) *platform {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	p := &platform{pck: key(), attestation: key(), caKey: key()}
	rootKey := key()
	p.root = certify(t, 1, "Intel SGX Root CA", true, &rootKey.PublicKey, &issuer{key: rootKey})
	p.rootIssuer = &issuer{p.root, rootKey}
	p.ca = &issuer{certify(t, 2, "Intel SGX PCK Platform CA", true, &p.caKey.PublicKey, p.rootIssuer), p.caKey}
	leaf := certify(t, 3, leafName, false, &p.pck.PublicKey, p.ca)
	for _, c := range []*x509.Certificate{leaf, p.ca.cert, p.root} {
		p.chain = append(p.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return p
}

// signer is who signs Intel's answers about platforms.
func (p *platform) signer(t testing.TB) *issuer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{certify(t, 4, tcbName, false, &k.PublicKey, p.rootIssuer), k}
}

// certify makes a certificate; an issuer without one signs itself. A leaf says of its platform that all is zero.
func certify(t testing.TB, serial int64, name string, ca bool, pub *ecdsa.PublicKey, by *issuer) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: ca, BasicConstraintsValid: true,
		NotBefore: recorded.AddDate(-1, 0, 0), NotAfter: recorded.AddDate(5, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	if !ca {
		c.ExtraExtensions = []pkix.Extension{{Id: sgxArc, Value: sgxExtension(t)}}
	}
	parent := by.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, by.key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type sgxMember struct {
	ID    asn1.ObjectIdentifier
	Value any
}

func sgxExtension(t testing.TB) []byte {
	t.Helper()
	id := func(n ...int) asn1.ObjectIdentifier { return append(append(asn1.ObjectIdentifier{}, sgxArc...), n...) }
	var tcb []sgxMember
	for i := range 17 {
		tcb = append(tcb, sgxMember{id(2, i+1), 0})
	}
	tcb = append(tcb, sgxMember{id(2, 18), make([]byte, 16)})
	der, err := asn1.Marshal([]sgxMember{
		{id(1), make([]byte, 16)}, {id(2), tcb}, {id(3), make([]byte, 2)}, {id(4), make([]byte, 6)}, {id(5), asn1.Enumerated(1)}, {id(6), make([]byte, 16)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func signP256(t testing.TB, key *ecdsa.PrivateKey, b []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(b)
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

func (p *platform) quote(t testing.TB) evidence.Evidence {
	t.Helper()
	out := make([]byte, 48)
	out[0], out[2], out[4] = 4, 2, 0x81
	out = append(out, p.report.Marshal()...)
	point, err := p.attestation.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	auth := make([]byte, 32)
	bound := append(append([]byte{}, point[1:]...), auth...)
	if p.boundTo != nil {
		bound = p.boundTo
	}
	sum := sha256.Sum256(bound)
	enclave := make([]byte, 384)
	enclave[48], enclave[128], enclave[256] = p.attributes, p.mrsigner, 2
	copy(enclave[320:], sum[:])
	le := binary.LittleEndian
	inner := append(append(enclave, signP256(t, p.pck, enclave)...), 32, 0)
	inner = append(inner, auth...)
	inner = le.AppendUint32(le.AppendUint16(inner, 5), uint32(len(p.chain)))
	inner = append(inner, p.chain...)
	data := append(signP256(t, p.attestation, out), point[1:]...)
	data = le.AppendUint32(le.AppendUint16(data, 6), uint32(len(inner)))
	data = append(data, inner...)
	return evidence.Evidence{Kind: evidence.TDX, Report: append(le.AppendUint32(out, uint32(len(data))), data...)}
}

// TestForgedQuotes: everything between the root and the claims must hold.
func TestForgedQuotes(t *testing.T) {
	digest := sha256.Sum256([]byte("initdata"))
	for name, c := range map[string]struct {
		set  func(*platform, *Options)
		want string // "": taken
	}{
		"a good one":                           {func(*platform, *Options) {}, ""},
		"under Intel's root":                   {func(_ *platform, o *Options) { o.Intel = nil }, "PCK certificates"},
		"under another test root":              {func(_ *platform, o *Options) { o.Intel = []*x509.Certificate{newPlatform(t).root} }, "PCK certificates"},
		"under no root":                        {func(_ *platform, o *Options) { o.Intel = []*x509.Certificate{} }, "PCK certificates"},
		"certificates that ended":              {func(_ *platform, o *Options) { o.Now = recorded.AddDate(6, 0, 0) }, "PCK certificates"},
		"an enclave that can be debugged":      {func(p *platform, _ *Options) { p.attributes = 2 }, "debugged"},
		"an enclave that vouches for another":  {func(p *platform, _ *Options) { p.boundTo = make([]byte, 96) }, "another attestation key"},
		"an enclave's report signed by the CA": {func(p *platform, _ *Options) { p.pck = p.caKey }, "report of the quoting enclave"},
		"a debug guest":                        {func(p *platform, _ *Options) { p.report.Attributes = 1 }, "td_attributes.debug"},
		"another TDX module's key":             {func(p *platform, _ *Options) { p.report.MRSignerSeam[0] = 1 }, "mr_signer_seam"},
		"a debug TDX module":                   {func(p *platform, _ *Options) { p.report.SeamAttributes = 1 }, "seam_attributes"},
		"MRCONFIGID as wanted":                 {func(p *platform, o *Options) { copy(p.report.MRConfigID[:], digest[:]); o.InitData = digest[:] }, ""},
		"MRCONFIGID of another":                {func(p *platform, o *Options) { p.report.MRConfigID[0] = 1; o.InitData = digest[:] }, "init_data"},
		"RTMR3 as wanted":                      {func(p *platform, o *Options) { p.report.RTMR[3], o.InitData = extended(digest), digest[:] }, ""},
		"RTMR3 beside another MRCONFIGID": {func(p *platform, o *Options) {
			p.report.MRConfigID[0], p.report.RTMR[3], o.InitData = 1, extended(digest), digest[:]
		}, "init_data"},
		"RTMR3 with more in it": {func(p *platform, o *Options) {
			p.report.RTMR[3], o.InitData = evidence.Extend384(extended(digest), [48]byte{}), digest[:]
		}, "MRCONFIGID is zero"},
		"host data, which it has not": {func(_ *platform, o *Options) { o.HostData = new([32]byte) }, "host_data"},
		"a guest that can be moved":   {func(p *platform, _ *Options) { p.report.Attributes = 1 << 29 }, "td_attributes.migratable"},
		"an empty MRCONFIGID":         {func(_ *platform, o *Options) { o.InitData = digest[:] }, "MRCONFIGID is zero"},
		"another measurement":         {func(_ *platform, o *Options) { o.Measurements = []evidence.Measurement{{1}} }, "measurement"},
		"other report data":           {func(_ *platform, o *Options) { o.ReportData = &[64]byte{1} }, "report_data"},
		"a log of nothing":            {func(p *platform, _ *Options) { p.report.RTMR[1][0] = 1 }, "rtmr1"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t)
			o := Options{Intel: []*x509.Certificate{p.root}, Now: recorded}
			c.set(p, &o)
			ev := p.quote(t)
			if strings.HasPrefix(c.want, "rtmr") {
				data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0)
				ev.EventLog = append([]byte{1, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
				ev.EventLog = append(append(ev.EventLog, byte(len(data)), 0, 0, 0), data...)
			}
			claims, err := Evidence(ev, o)
			if c.want == "" && (err != nil || !claims.Simulated || len(claims.Unproven) == 0) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%+v, error %v; want %q", claims, err, c.want)
			}
		})
	}
	p := newPlatformOf(t, "Intel SGX TCB Signing")
	if _, err := TDX(p.quote(t), Options{Intel: []*x509.Certificate{p.root}, Now: recorded}); err == nil || !strings.Contains(err.Error(), "TCB Signing") {
		t.Errorf("a leaf for other uses: %v", err)
	}
	// Intel's own key signs enclaves of other makers too: under Intel's root the enclave must be Intel's.
	report := make([]byte, 384)
	sum := sha256.Sum256(nil)
	copy(report[320:], sum[:])
	if err := checkEnclave(report, nil, Options{}); err == nil || !strings.Contains(err.Error(), "MRSIGNER") {
		t.Errorf("another maker's enclave: %v", err)
	}
}

func TestSampleEvidence(t *testing.T) {
	ev := evidence.Evidence{Kind: evidence.Sample, Report: make([]byte, 64)}
	if _, err := Evidence(ev, Options{}); err == nil {
		t.Error("taken without permission")
	}
	c, err := Evidence(ev, Options{AllowSample: true, ReportData: new([64]byte)})
	if err != nil || !c.Simulated || len(c.Unproven) == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := Evidence(ev, Options{AllowSample: true, ReportData: &[64]byte{48: 1}}); err != nil {
		t.Errorf("report data whose first 48 bytes it holds: %v", err)
	}
	for name, o := range map[string]Options{
		"other report data": {ReportData: &[64]byte{1}}, "a measurement": {Measurements: []evidence.Measurement{{}, {1}}[1:]}, "an initdata": {InitData: make([]byte, 32)},
	} {
		o.AllowSample = true
		if _, err := Evidence(ev, o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := Evidence(evidence.Evidence{Kind: "sgx"}, Options{}); err == nil {
		t.Error("an unknown kind is taken")
	}
}

func FuzzTDX(f *testing.F) {
	p := newPlatform(f)
	p.report.MRTD = evidence.Measurement{1}
	ev := p.quote(f)
	f.Add(ev.Report, []byte(nil))
	f.Add(ev.Report, []byte("Spec ID Event03"))
	o := Options{Intel: []*x509.Certificate{p.root}, Now: recorded}
	f.Fuzz(func(t *testing.T, quote, log []byte) {
		claims, err := TDX(evidence.Evidence{Kind: evidence.TDX, Report: quote, EventLog: log}, o)
		if err == nil && claims.Measurement != p.report.MRTD {
			t.Error("a quote that was never signed is accepted")
		}
	})
}
