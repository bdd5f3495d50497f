package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var azureFiles = []struct {
	name    string
	kind    Kind
	version int
}{
	{"az-snp-vtpm/evidence-genoa.json", AzSNPvTPM, 0},
	{"az-snp-vtpm/evidence-v0.json", AzSNPvTPM, 0},
	{"az-snp-vtpm/evidence-v1.json", AzSNPvTPM, 1},
	{"az-snp-vtpm/evidence-v2.json", AzSNPvTPM, 2},
	{"az-tdx-vtpm/evidence-v0.json", AzTDXvTPM, 0},
	{"az-tdx-vtpm/evidence-v1.json", AzTDXvTPM, 1},
}

// TestRecordedAzureEvidence: every form of real evidence is read whole, holds, and comes back as it was.
func TestRecordedAzureEvidence(t *testing.T) {
	for _, c := range azureFiles {
		t.Run(c.name, func(t *testing.T) {
			raw := fixture(t, c.name)
			e, err := FromJSON(c.kind, raw)
			if err != nil {
				t.Fatal(err)
			}
			h, a, err := e.azure()
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(e.TPM.Message)
			if err := rsa.VerifyPKCS1v15(h.AK, crypto.SHA256, sum[:], e.TPM.Signature); err != nil {
				t.Error(err)
			}
			checkQuote(t, c.name, e.TPM, len(a.ExtraData))
			data, launched := hardwareOf(t, e, h)
			if sum := sha256.Sum256(h.VarData); !bytes.Equal(sum[:], data[:32]) {
				t.Error("the hardware signed other variable data")
			}
			l, err := e.Launch()
			if err != nil || l.Measurement != launched || l.Register != PCR8 || l.FixedAtLaunch() ||
				!bytes.Equal(l.InitData, e.TPM.PCRs[8][:]) {
				t.Errorf("launch %+v, %v", l, err)
			}
			same := e.JSON
			if c.version == 0 {
				same = e.Legacy
			}
			again, err := same()
			if err != nil {
				t.Fatal(err)
			}
			equalJSON(t, raw, again)
			if c.version == 2 {
				var want bytes.Buffer
				if err := json.Compact(&want, raw); err != nil || want.String() != string(again) {
					t.Errorf("same meaning, but other bytes than serde writes: %v", err)
				}
			}
			newest := []byte(`{"version":1,"tpm_quote":{"signature":"`)
			if c.version == 2 {
				newest[len(`{"version":`)] = '2'
			}
			for _, form := range []func() (json.RawMessage, error){e.JSON, e.Legacy} {
				b, err := form()
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(b, []byte("version")) != bytes.HasPrefix(b, newest) {
					t.Errorf("starts with %.50s", b)
				}
				back, err := FromJSON(c.kind, b)
				if diff := cmp.Diff(e, back); err != nil || diff != "" {
					t.Errorf("%v\n%s", err, diff)
				}
			}
			other := map[Kind]Kind{AzSNPvTPM: AzTDXvTPM, AzTDXvTPM: AzSNPvTPM}[c.kind]
			for _, kind := range []Kind{other, SNP, TDX, Sample} {
				if _, err := FromJSON(kind, raw); err == nil {
					t.Errorf("taken as %s", kind)
				}
			}
		})
	}
}

// hardwareOf is the report data that the hardware signed, and what it measured.
func hardwareOf(t *testing.T, e Evidence, h HCLReport) ([64]byte, Measurement) {
	t.Helper()
	if e.Kind == AzTDXvTPM {
		q, err := ParseTDX(e.Aux)
		if err != nil {
			t.Fatal(err)
		}
		return q.Report.ReportData, q.Report.MRTD
	}
	r, err := ParseSNP(h.Hardware)
	if err != nil {
		t.Fatal(err)
	}
	return r.ReportData, r.Measurement
}

func equalJSON(t *testing.T, want, got []byte) {
	t.Helper()
	var w, g any
	if err := json.Unmarshal(want, &w); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(got, &g); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w, g); diff != "" {
		t.Error(diff)
	}
}

func TestAzureFixturesAgreeOnTheVCEK(t *testing.T) {
	e, err := FromJSON(AzSNPvTPM, fixture(t, "az-snp-vtpm/evidence-genoa.json"))
	if err != nil {
		t.Fatal(err)
	}
	if block, _ := pem.Decode(fixture(t, "az-snp-vtpm/vcek-genoa.pem")); block == nil || !bytes.Equal(block.Bytes, e.Aux) {
		t.Error("another certificate")
	}
	e, err = FromJSON(AzTDXvTPM, fixture(t, "az-tdx-vtpm/evidence-v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseTDX(fixture(t, "az-tdx-vtpm/td-quote.bin")); err != nil || len(e.Aux) != 5006 {
		t.Errorf("a TD quote of %d bytes, %v", len(e.Aux), err)
	}
}

// testCert is any certificate.
func testCert(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// testAzure makes evidence that parses and that nobody signed; its HCL report carries userData.
func testAzure(kind Kind, data, userData, cert []byte) Evidence {
	e := Evidence{Kind: kind, TPM: &TPMQuote{Signature: make([]byte, tpmSignature)}}
	e.TPM.PCRs[8][0] = 8
	e.TPM.Message = testAttest(data, e.TPM.PCRs)
	if kind == AzSNPvTPM {
		e.Report, e.Aux = testHCL(kind, report(3, 0x19), testVarData(userData)), cert
		return e
	}
	r := TDXReport{}
	r.MRTD[0] = 7
	e.Report = testHCL(kind, make([]byte, tdReport), testVarData(userData))
	e.Aux = append(append(testQuoteHeader(), r.Marshal()...), 0, 0, 0, 0)
	return e
}

// TestAzureVersions: version 2 is a promise that the HCL report carries the report data, so it is given only then.
func TestAzureVersions(t *testing.T) {
	data, cert := bytes.Repeat([]byte{5}, azureData), testCert(t)
	for name, c := range map[string]struct {
		data, user []byte
		want       string
	}{
		"a fresh report":     {data, append(bytes.Clone(data), make([]byte, 16)...), `{"version":2,`},
		"a stale report":     {data, make([]byte, 64), `{"version":1,`},
		"a report cut short": {data, data[:47], `{"version":1,`},
		"no data":            {nil, make([]byte, 64), `{"version":1,`},
		"another size":       {data[:32], data, `{"version":1,`},
	} {
		for _, kind := range []Kind{AzSNPvTPM, AzTDXvTPM} {
			e := testAzure(kind, c.data, c.user, cert)
			b, err := e.JSON()
			if err != nil || !strings.HasPrefix(string(b), c.want) {
				t.Errorf("%s, %s: %.30s, %v", kind, name, b, err)
				continue
			}
			back, err := FromJSON(kind, b)
			if diff := cmp.Diff(e, back); err != nil || diff != "" {
				t.Errorf("%s, %s: %v\n%s", kind, name, err, diff)
			}
			lie := strings.Replace(string(b), `"version":1`, `"version":2`, 1)
			if _, err := FromJSON(kind, []byte(lie)); (err == nil) != (lie == string(b)) {
				t.Errorf("%s, %s, said to be of version 2: %v", kind, name, err)
			}
		}
	}
}

func TestBadAzureJSON(t *testing.T) {
	data, cert := bytes.Repeat([]byte{0xfb}, azureData), testCert(t)
	e := testAzure(AzSNPvTPM, data, data, cert)
	for len(e.Report)%3 != 1 { // what lies behind the variable data is free, and shows how base64 is written
		e.Report = append(e.Report, 0xff)
	}
	e.Report = append(e.Report, 0xff, 0xff, 0xff)
	good, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	old, err := e.Legacy()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(in []byte, from, to string) string {
		s := strings.Replace(string(in), from, to, 1)
		if s == string(in) {
			t.Fatalf("no %.40q in the evidence", from)
		}
		return s
	}
	hcl := base64.URLEncoding.EncodeToString(e.Report)
	if !strings.HasSuffix(hcl, "=") || !strings.ContainsAny(hcl, "-_") {
		t.Fatal("the report shows neither padding nor the alphabet")
	}
	vcek := `"vcek":"` + base64.URLEncoding.EncodeToString(cert)
	pcr := `"` + strings.Repeat("00", 32) + `"`
	for name, c := range map[string]struct{ json, want string }{
		"base64 without padding":   {edit(good, hcl, strings.TrimRight(hcl, "=")), "hcl_report"},
		"the other alphabet":       {edit(good, hcl, base64.StdEncoding.EncodeToString(e.Report)), "hcl_report"},
		"base64 with a line break": {edit(good, hcl, hcl[:4]+`\n`+hcl[4:]), "hcl_report"},
		"numbers for base64":       {edit(good, `"`+hcl+`"`, "[72]"), "hcl_report"},
		"dashes in names":          {edit(good, "hcl_report", "hcl-report"), "unknown"},
		"a member of the other":    {edit(good, `"vcek"`, `"td_quote"`), "unknown"},
		"PEM in the newer forms":   {edit(good, vcek, `"vcek":"-----BEGIN CERTIFICATE-----\n`), "vcek"},
		"a certificate and a byte": {edit(good, vcek, `"vcek":"`+base64.URLEncoding.EncodeToString(append(bytes.Clone(cert), 0))), "VCEK"},
		"an empty certificate":     {edit(good, vcek, `"vcek":"`), "VCEK"},
		"version 3":                {edit(good, `"version":2`, `"version":3`), "version: is 3"},
		"version 0":                {edit(good, `"version":2`, `"version":0`), "version: is 0"},
		"version null":             {edit(good, `"version":2`, `"version":null`), "version: is null"},
		"a version as text":        {edit(good, `"version":2`, `"version":"2"`), `version: is "2"`},
		"two versions":             {edit(good, `"version":2`, `"version":2,"version":1`), "twice"},
		"no version":               {edit(good, `"version":2,`, ``), "unknown"},
		"a version on the oldest":  {edit(old, `{"quote"`, `{"version":1,"quote"`), "unknown"},
		"23 PCRs":                  {edit(good, pcr+",", ""), "23 values"},
		"25 PCRs":                  {edit(good, pcr, pcr+","+pcr), "25 values"},
		"a short PCR":              {edit(good, pcr, pcr[:63]+`"`), "pcrs[0]: 31 bytes"},
		"a PCR null":               {edit(good, pcr, "null"), "pcrs[0]: 0 bytes"},
		"no PCRs":                  {edit(good, `"pcrs":[`, `"pcrs":null,"x":[`), "unknown"},
		"a signature that is none": {edit(good, `"signature":"00`, `"signature":"`), "255 bytes"},
		"a message that is none":   {edit(good, `"message":"ff`, `"message":"fe`), "magic"},
		"a message in base64":      {edit(good, `"message":"ff`, `"message":"/w`), "message"},
		"an HCL report of nothing": {edit(good, hcl, ""), "HCL report"},
		"hex in the oldest":        {edit(old, `"signature":[0,`, `"signature":"00","x":[`), "unknown"},
		"two certificates": {edit(old, `"vcek":"`, `"vcek":"`+strings.ReplaceAll(string(pem.EncodeToMemory(
			&pem.Block{Type: "CERTIFICATE", Bytes: cert})), "\n", `\n`)), "vcek"},
		"words before the PEM":   {edit(old, `"vcek":"`, `"vcek":"x\n`), "vcek"},
		"a null among numbers":   {edit(old, `"signature":[0`, `"signature":[null`), "null"},
		"a number over 255":      {edit(old, `"report":[72`, `"report":[256`), "uint8"},
		"an array for an object": {"[]", "starts with"},
		"trailing data":          {string(good) + "{}", "after its end"},
		"too much":               {strings.Repeat(" ", maxJSON) + string(good), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := FromJSON(AzSNPvTPM, []byte(c.json)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestBadAzureEvidence: what a broker would refuse is not sent.
func TestBadAzureEvidence(t *testing.T) {
	data, cert := make([]byte, azureData), testCert(t)
	for name, change := range map[string]func(*Evidence){
		"no TPM quote":          func(e *Evidence) { e.TPM = nil },
		"no signature":          func(e *Evidence) { e.TPM.Signature = nil },
		"no message":            func(e *Evidence) { e.TPM.Message = nil },
		"no HCL report":         func(e *Evidence) { e.Report = nil },
		"nothing that vouches":  func(e *Evidence) { e.Aux = nil },
		"the other kind":        func(e *Evidence) { e.Kind = map[Kind]Kind{AzSNPvTPM: AzTDXvTPM, AzTDXvTPM: AzSNPvTPM}[e.Kind] },
		"a kind without a vTPM": func(e *Evidence) { e.Kind = TDX },
	} {
		for _, kind := range []Kind{AzSNPvTPM, AzTDXvTPM} {
			e := testAzure(kind, data, data, cert)
			change(&e)
			_, err1 := e.JSON()
			_, err2 := e.Legacy()
			_, err3 := e.Launch()
			if err1 == nil || err2 == nil || err3 == nil {
				t.Errorf("%s, %s: JSON %v, Legacy %v, Launch %v", kind, name, err1, err2, err3)
			}
		}
	}
	bad := testAzure(AzSNPvTPM, data, data, cert)
	bad.Report = testHCL(AzSNPvTPM, make([]byte, SNPReportSize), testVarData(data))
	if _, err := bad.JSON(); err == nil {
		t.Error("an SNP report of zeros is sent")
	}
}

// TestAzureLaunchHoldsInitdata: PCR 8 holds a document as it was extended once from zero, and in no other form.
func TestAzureLaunchHoldsInitdata(t *testing.T) {
	digest := sha256.Sum256([]byte("initdata"))
	for _, kind := range []Kind{AzSNPvTPM, AzTDXvTPM} {
		e := testAzure(kind, make([]byte, azureData), nil, testCert(t))
		e.Report = testHCL(kind, report(3, 0x19), `{"keys":[`+testAK+`]}`)
		for want, pcr := range map[bool][32]byte{true: sha256.Sum256(append(make([]byte, 32), digest[:]...)), false: digest} {
			e.TPM.PCRs[8] = pcr
			if l, err := e.Launch(); err != nil || l.Holds(digest) != want || l.Empty() {
				t.Errorf("%s: PCR 8 of %x: %+v, %v", kind, pcr, l, err)
			}
		}
		e.TPM.PCRs[8] = [32]byte{}
		if l, err := e.Launch(); err != nil || !l.Empty() || l.Holds(digest) {
			t.Errorf("%s: PCR 8 of zeros: %+v, %v", kind, l, err)
		}
	}
}

// The seed for az-snp-vtpm is recorded evidence: a made certificate would differ from process to process.
func FuzzAzureJSON(f *testing.F) {
	data := make([]byte, azureData)
	for _, form := range []func(Evidence) (json.RawMessage, error){Evidence.JSON, Evidence.Legacy} {
		b, err := form(testAzure(AzTDXvTPM, data, data, nil))
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(b))
	}
	for _, c := range azureFiles {
		if b, err := os.ReadFile("../../../shared/wire/fixtures/" + c.name); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, kind := range []Kind{AzSNPvTPM, AzTDXvTPM} {
			e, err := FromJSON(kind, b)
			if err != nil {
				continue
			}
			if _, err := e.Launch(); err != nil {
				t.Errorf("%s: taken, but %v", kind, err)
			}
			for _, form := range []func() (json.RawMessage, error){e.JSON, e.Legacy} {
				j, err := form()
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				again, err := FromJSON(kind, j)
				if diff := cmp.Diff(e, again); err != nil || diff != "" {
					t.Errorf("%s does not come back: %v\n%s", kind, err, diff)
				}
			}
		}
	})
}
