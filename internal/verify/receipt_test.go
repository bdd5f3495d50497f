package verify

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
)

func status(v *Verdict, name string) string {
	for _, c := range v.Checks {
		if c.Name == name {
			return c.Status
		}
	}
	return ""
}

// TestReceiptExpectations: each thing that a receipt is held against, alone.
func TestReceiptExpectations(t *testing.T) {
	receipt := vector(t, evidence.SNP, "receipt.json")
	for name, c := range map[string]struct {
		set  func(e *Expect)
		fail string // the check; "": none. "-": there is no verdict
	}{
		"as it is":                    {func(*Expect) {}, ""},
		"another measurement":         {func(e *Expect) { e.Measurements = []evidence.Measurement{{1}} }, "measurement"},
		"another manifest":            {func(e *Expect) { e.Manifest = append(e.Manifest, ' ') }, "manifest"},
		"another result":              {func(e *Expect) { e.ResultSHA256 = make([]byte, 32) }, "result"},
		"another tar":                 {func(e *Expect) { e.TarSHA256 = make([]byte, 32) }, "contents"},
		"the tar for the result":      {func(e *Expect) { e.ResultSHA256 = e.TarSHA256 }, ""},
		"the result for the tar":      {func(e *Expect) { e.TarSHA256 = e.ResultSHA256 }, "contents"},
		"no manifest, strictly":       {func(e *Expect) { e.Manifest = nil }, "manifest"},
		"no manifest":                 {func(e *Expect) { e.Manifest, e.Strict = nil, false }, ""},
		"AMD's own roots":             {func(e *Expect) { e.Roots = nil }, "-"},
		"before the chip was made":    {func(e *Expect) { e.Now = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) }, "-"},
		"after its certificate ended": {func(e *Expect) { e.Now = time.Now().AddDate(30, 0, 0) }, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			e := vectorExpect(t, evidence.SNP)
			c.set(&e)
			v, err := Receipt(receipt, e)
			switch {
			case c.fail == "-":
				if v != nil || err == nil {
					t.Errorf("%+v, %v", v, err)
				}
			case (err != nil) != (c.fail != "") || v.Proven != (err == nil):
				t.Errorf("%+v, %v", v, err)
			case c.fail != "" && status(v, c.fail) != "failed":
				t.Errorf("%s is %s: %v", c.fail, status(v, c.fail), err)
			}
		})
	}
}

var testChip = func() func(t testing.TB) *psp.PSP {
	var chip *psp.PSP
	return func(t testing.TB) *psp.PSP {
		if chip == nil {
			var err error
			if chip, err = psp.New(t.TempDir()); err != nil {
				t.Fatal(err)
			}
		}
		return chip
	}
}()

// TestStatementsThatDisagree: PID 1 of an image that is not ours could say anything, and the hardware would sign it.
func TestStatementsThatDisagree(t *testing.T) {
	chip, raw := testChip(t), []byte(`{"version":1}`)
	root, err := LoadRoot(chip.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	launch := psp.Launch{Measurement: evidence.Measurement{7}, HostData: manifest.InitdataDigest(manifest.Wrap(raw))}
	for name, c := range map[string]struct {
		set  func(p *result.Predicate)
		fail string
	}{
		"nothing":                     {func(*result.Predicate) {}, ""},
		"another TEE":                 {func(p *result.Predicate) { p.TEE.Kind = "tdx" }, "statement"},
		"an event log that is absent": {func(p *result.Predicate) { p.Build.EventLog = strings.Repeat("00", 32) }, "statement"},
		"another measurement":         {func(p *result.Predicate) { p.Measurement = strings.Repeat("00", 48) }, "statement"},
		"production":                  {func(p *result.Predicate) { p.Profile = "production" }, "statement"},
		"another initdata":            {func(p *result.Predicate) { p.InitdataSHA256 = strings.Repeat("00", 32) }, "binding"},
		"no binding":                  {func(p *result.Predicate) { p.Binding = result.BindNone }, "binding"},
	} {
		t.Run(name, func(t *testing.T) {
			p := vectorPredicate(evidence.SNP, raw, launch)
			c.set(&p)
			v, err := Receipt(signedReceipt(t, chip, evidence.SNP, launch, p, nil, nil), Expect{Roots: []Root{root}})
			if v == nil || (err != nil) != (c.fail != "") || c.fail != "" && status(v, c.fail) != "failed" {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
}

// TestRunsToCome: a machine whose clock is ahead, or whose host moved it on so that other certificates count.
func TestRunsToCome(t *testing.T) {
	p, raw := newPlatform(t), []byte(`{}`)
	for name, c := range map[string]struct {
		at   time.Time
		fail bool
	}{
		"the day of the certificates": {recorded, false},
		"a year on":                   {time.Now().AddDate(1, 0, 0), true},
	} {
		st, launch := vectorPredicate(evidence.TDX, raw, psp.Launch{}), manifest.InitdataDigest(manifest.Wrap(raw))
		st.Completed, st.Measurement, st.InitdataSHA256 = c.at.Format(result.TimeFormat), "", hex.EncodeToString(launch[:])
		copy(p.report.MRConfigID[:], launch[:])
		v, err := Receipt(forgedReceipt(t, p, st), Expect{Intel: []*x509.Certificate{p.root}, Now: recorded})
		if v == nil || (status(v, "time") == "failed") != c.fail || (err != nil) != c.fail {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

// forgedReceipt is of a platform whose keys tests have.
func forgedReceipt(t testing.TB, p *platform, st result.Predicate) []byte {
	t.Helper()
	sum := sha256.Sum256(nil)
	b, err := result.NewStatement(st, result.NewSubject(result.SealedName, sum[:]), result.NewSubject(result.TarName, sum[:]))
	if err != nil {
		t.Fatal(err)
	}
	p.report.ReportData = result.ReportData(b)
	body, err := p.quote(t).JSON()
	if err != nil {
		t.Fatal(err)
	}
	receipt, err := result.NewReceipt(b, string(evidence.TDX), body)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

// TestReceiptsOfIntel: patch levels are judged by what the receipt brings, when that was issued if it is newer than the run.
func TestReceiptsOfIntel(t *testing.T) {
	p, raw := newPlatform(t), []byte(`{}`)
	digest := manifest.InitdataDigest(manifest.Wrap(raw))
	copy(p.report.MRConfigID[:], digest[:])
	st := vectorPredicate(evidence.TDX, raw, psp.Launch{})
	st.InitdataSHA256, st.Measurement = hex.EncodeToString(digest[:]), ""
	for name, c := range map[string]struct {
		status string
		days   int // from the collateral's being judged to the run's end
		also   []string
		revoke []int64
		want   string // "": proven
		none   bool   // no verdict at all
	}{
		"good":                        {"UpToDate", 0, nil, nil, "", false},
		"fetched days after":          {"UpToDate", -20, nil, nil, "", false},
		"older than a month":          {"UpToDate", 60, nil, nil, "good from", true},
		"outdated":                    {"OutOfDate", 0, nil, nil, "patch level", false},
		"outdated, which is taken":    {"OutOfDate", 0, []string{"OutOfDate"}, nil, "", false},
		"revoked":                     {"Revoked", 0, []string{"Revoked"}, nil, "tcb_status", true},
		"the platform is revoked":     {"UpToDate", 0, nil, []int64{3}, "revoked on", true},
		"outdated, and another quote": {"OutOfDate", 0, nil, []int64{2}, "revoked on", true},
	} {
		t.Run(name, func(t *testing.T) {
			st := st
			st.Completed = recorded.AddDate(0, 0, c.days).Format(result.TimeFormat)
			normal, err := forgedCollateral(t, p, c.status, c.revoke...).Normal()
			if err != nil {
				t.Fatal(err)
			}
			receipt, err := Attach(forgedReceipt(t, p, st), &result.Collateral{Intel: normal})
			if err != nil {
				t.Fatal(err)
			}
			v, err := Receipt(receipt, Expect{Intel: []*x509.Certificate{p.root}, TCBStatus: c.also})
			if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) || (v == nil) != c.none {
				t.Errorf("%+v, %v; want %q", v, err, c.want)
			}
		})
	}
}

// TestRevokedByAMD: the list that a receipt brings is read, and one that names its certificates refuses it.
func TestRevokedByAMD(t *testing.T) {
	s := signer(t)
	for name, c := range map[string]struct {
		serial *big.Int
		want   string
	}{
		"another certificate": {big.NewInt(12345), ""},
		"the VCEK":            {s.Vcek.SerialNumber, "revoked on"},
		"the ASK":             {s.Ask.SerialNumber, "revoked on"},
	} {
		l := &x509.RevocationList{
			SignatureAlgorithm: x509.SHA384WithRSAPSS, Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
			RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: c.serial, RevocationTime: time.Now()}},
		}
		crl, err := x509.CreateRevocationList(rand.Reader, l, s.Ark, s.Keys.Ark)
		if err != nil {
			t.Fatal(err)
		}
		var o Options
		if err := o.take(evidence.SNP, &result.Collateral{AMD: &result.AMDCollateral{Certificates: [][]byte{s.Vcek.Raw, s.Ask.Raw, s.Ark.Raw}, CRL: crl}}); err != nil {
			t.Fatal(err)
		}
		ev := simulated(t, nil)
		ev.Aux, o.whole, o.Roots = nil, true, []Root{testRoot(t)}
		if _, err := SNP(ev, o); (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestRecordedEvidenceIsWhole: what real processors gave passes the checks that only receipts go through.
func TestRecordedEvidenceIsWhole(t *testing.T) {
	raw, o := fixture(t, "tdx/go-tdx-guest-tdx_prod_quote_SPR_E4.dat"), Options{Now: judged, whole: true}
	ev := evidence.Evidence{Kind: evidence.TDX, Report: raw}.Whole()
	if _, err := TDX(ev, o); err != nil {
		t.Errorf("a quote: %v", err)
	}
	ev.Report = append(bytes.Clone(ev.Report), 0)
	if _, err := TDX(ev, o); err == nil || !strings.Contains(err.Error(), "bytes after its end") {
		t.Errorf("a quote with a byte more: %v", err)
	}
	if n, err := recordedCollateral(t).Normal(); err != nil {
		t.Errorf("Intel's collateral: %v", err)
	} else {
		o.Collateral = &Collateral{n.TCBInfo, n.QEIdentity, n.Issuers, n.PCKCRL, n.RootCRL}
		if _, err := TDX(ev.Whole(), o); err == nil || !strings.Contains(err.Error(), tooOld) {
			t.Errorf("Intel's collateral in the form of receipts: %v", err)
		}
	}
	for report, cert := range map[string]string{"snp-report-v3-genoa.bin": "snp-vcek-genoa.der", "snp-report-trustee-vcek.bin": "snp-vcek-trustee.der"} {
		ev := evidence.Evidence{Kind: evidence.SNP, Report: shared(t, report), Aux: table(t, "VCEK", shared(t, cert))}
		if _, err := SNP(ev, Options{Now: time.Date(2025, 9, 1, 0, 0, 0, 0, time.UTC), whole: true}); err != nil {
			t.Errorf("%s: %v", report, err)
		}
	}
}

// TestCollectOfAMD: the VCEK and the list are asked for, and the receipt verifies with them alone.
func TestCollectOfAMD(t *testing.T) {
	chip := testChip(t)
	amd := chip.Collateral(evidence.SNP).AMD
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		if strings.HasSuffix(r.URL.Path, "/crl") {
			w.Write(amd.CRL)
			return
		}
		w.Write(amd.Certificates[0])
	}))
	defer s.Close()
	root, err := LoadRoot(chip.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	raw := []byte(`{}`)
	launch := psp.Launch{Measurement: sha512.Sum384(nil), HostData: manifest.InitdataDigest(manifest.Wrap(raw))}
	receipt := signedReceipt(t, chip, evidence.SNP, launch, vectorPredicate(evidence.SNP, raw, launch), nil, nil)
	var bare result.Receipt
	if err := json.Unmarshal(receipt, &bare); err != nil {
		t.Fatal(err)
	}
	none, _, _ := bytes.Cut(bare.Evidence.Evidence, []byte(`"cert_chain":`))
	bare.Evidence.Evidence = append(none, `"cert_chain":null}`...)
	o, e := Options{Roots: []Root{root}}, Expect{Roots: []Root{root}}
	for name, b := range map[string][]byte{"with a certificate": receipt, "without": encodeAny(t, &bare)} {
		asked = nil
		if _, err := Receipt(b, e); (err != nil) != (name == "without") || err != nil && !errors.Is(err, ErrNoCertificate) {
			t.Errorf("%s: %v", name, err)
		}
		full, err := Collect(t.Context(), Vendors{KDS: s.URL}, b, o)
		if err != nil {
			t.Fatal(err)
		}
		v, err := Receipt(full, e)
		if err != nil || status(v, "collateral") != "ok" || strings.Contains(v.Text(), "no revocation list") {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
		if n := len(asked); n != map[string]int{"with a certificate": 1, "without": 2}[name] || asked[n-1] != "/vcek/v1/Milan/crl" {
			t.Errorf("%s: asked for %q", name, asked)
		}
		if again, err := Collect(t.Context(), Vendors{}, full, o); err != nil || !bytes.Equal(again, full) {
			t.Errorf("%s, a second time: %v", name, err)
		}
	}
	if _, err := Collect(t.Context(), Vendors{KDS: s.URL + "/%"}, receipt, o); err == nil {
		t.Error("of nobody")
	}
}

// TestReceiptsOfAzure: a receipt whose evidence is a vTPM's quote, with the collateral of the processor below.
func TestReceiptsOfAzure(t *testing.T) {
	s, raw := signer(t), []byte(`{}`)
	l := &x509.RevocationList{SignatureAlgorithm: x509.SHA384WithRSAPSS, Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	crl, err := x509.CreateRevocationList(rand.Reader, l, s.Ark, s.Keys.Ark)
	if err != nil {
		t.Fatal(err)
	}
	digest := manifest.InitdataDigest(manifest.Wrap(raw))
	for _, kind := range []evidence.Kind{evidence.AzSNPvTPM, evidence.AzTDXvTPM} {
		t.Run(string(kind), func(t *testing.T) {
			p := newParavisor(t, kind)
			p.pcrs[8] = sha256.Sum256(append(make([]byte, 32), digest[:]...))
			st := vectorPredicate(kind, raw, psp.Launch{Measurement: evidence.Measurement{5}, HostData: digest})
			st.Binding, st.Completed = result.BindRuntime, time.Now().UTC().Format(result.TimeFormat)
			e := Expect{Roots: []Root{testRoot(t)}, Intel: []*x509.Certificate{p.tdx.root}, Manifest: raw}
			c := &result.Collateral{AMD: &result.AMDCollateral{Certificates: [][]byte{s.Ask.Raw, s.Ark.Raw}, CRL: crl}}
			if kind == evidence.AzTDXvTPM {
				st.Completed = recorded.Format(result.TimeFormat)
				normal, err := forgedCollateral(t, p.tdx, "UpToDate").Normal()
				if err != nil {
					t.Fatal(err)
				}
				c = &result.Collateral{Intel: normal}
			}
			sum := sha256.Sum256(nil)
			b, err := result.NewStatement(st, result.NewSubject(result.SealedName, sum[:]), result.NewSubject(result.TarName, sum[:]))
			if err != nil {
				t.Fatal(err)
			}
			data := result.ReportData(b)
			p.nonce, p.userData = data[:48], data[:]
			ev := p.evidence(t)
			receipt := func(ev evidence.Evidence) []byte {
				body, err := ev.JSON()
				if err != nil {
					t.Fatal(err)
				}
				r, err := result.NewReceipt(b, string(kind), body)
				if err == nil {
					r, err = Attach(r, c)
				}
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			v, err := Receipt(receipt(ev), e)
			if err != nil || !v.Proven || status(v, "collateral") != "ok" || !strings.Contains(v.hardware(), "paravisor") {
				t.Fatalf("%+v, %v", v, err)
			}
			more := ev
			more.Report = append(bytes.Clone(ev.Report), 1)
			if _, err := Receipt(receipt(more), e); err == nil || !strings.Contains(err.Error(), "bytes behind") {
				t.Errorf("with a byte behind the HCL report: %v", err)
			}
		})
	}
}

// TestCertificatesOfTheHost: a receipt as the guest made it has what its host gave, and nothing in there passes unsigned.
func TestCertificatesOfTheHost(t *testing.T) {
	s, o := signer(t), Options{Roots: []Root{testRoot(t)}, whole: true}
	altered := bytes.Clone(s.Ask.Raw)
	altered[len(altered)-1] ^= 1
	leaf := evidence.Cert{Type: "VCEK", DER: s.Vcek.Raw}
	for name, c := range map[string]struct {
		more []evidence.Cert
		want string
	}{
		"the key's alone":         {nil, ""},
		"all of AMD's":            {[]evidence.Cert{{Type: "ARK", DER: s.Ark.Raw}, {Type: "ASK", DER: s.Ask.Raw}}, ""},
		"an altered ASK":          {[]evidence.Cert{{Type: "ASK", DER: altered}}, "its ASK is not of"},
		"another ARK":             {[]evidence.Cert{{Type: "ARK", DER: s.Ask.Raw}}, "its ARK is not"},
		"a list of nobody's":      {[]evidence.Cert{{Type: "CRL", DER: s.Ask.Raw}}, "revocation list"},
		"a key that did not sign": {[]evidence.Cert{{Type: "VLEK", DER: s.Vlek.Raw}}, "has a VLEK"},
	} {
		ev := simulated(t, nil)
		var err error
		if ev.Aux, err = evidence.MarshalCerts(append([]evidence.Cert{leaf}, c.more...)); err != nil {
			t.Fatal(err)
		}
		if _, err := SNP(ev, o); (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestVerdictSaysWhatIsNotProven: of real hardware, what its kind leaves open and what no receipt proves; of a failed check, that first.
func TestVerdictSaysWhatIsNotProven(t *testing.T) {
	v, err := Receipt(vector(t, evidence.SNP, "receipt.json"), vectorExpect(t, evidence.SNP))
	if err != nil {
		t.Fatal(err)
	}
	v.Simulated = false
	v.Statement.Predicate.Images = append(v.Statement.Predicate.Images, result.Image{Name: "runtime", URI: "docker://r.example/python"})
	text := v.Text()
	for _, want := range append(append([]string{}, v.Unproven...), neverProven...) {
		if !strings.Contains(text, "not proven   "+want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "no revocation list") || !strings.HasPrefix(text, "PROVEN: ") || strings.Contains(text, "SIMULATED:") ||
		!strings.Contains(text, "with         docker://r.example/python (runtime, not encrypted, not pinned)") {
		t.Errorf("%s", text)
	}
	v.Proven, v.Statement.Predicate.TEE.TCB = false, "0300000000001600"
	v.Statement.Predicate.Workload = result.Ending{Signal: "SIGSEGV", Started: 1, Ended: 2}
	if text := v.Text(); !strings.HasPrefix(text, "REFUSED: ") || !strings.Contains(text, "when it started, bootloader 3") || !strings.Contains(text, "killed by SIGSEGV") {
		t.Errorf("%s", text)
	}
}
