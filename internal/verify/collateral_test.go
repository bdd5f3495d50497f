package verify

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"
	tdxtest "github.com/google/go-tdx-guest/testing"
	tdxverify "github.com/google/go-tdx-guest/verify"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// judged is a day on which the recorded collateral was good.
var judged = time.Date(2023, 7, 1, 1, 0, 0, 0, time.UTC)

func recordedCollateral(t testing.TB) *Collateral {
	t.Helper()
	return &Collateral{
		TCBInfo: fixture(t, "tdx/go-tdx-guest-sample_tcbInfo_response"), QEIdentity: fixture(t, "tdx/go-tdx-guest-sample_qeIdentity_response"),
		Issuers: []byte(tdxtest.TcbInfoHeader[pcs.TcbInfoIssuerChainPhrase][0]),
		PCKCRL:  fixture(t, "tdx/go-tdx-guest-pckcrl"), RootCRL: fixture(t, "tdx/go-tdx-guest-rootcrl.der"),
	}
}

// tooOld is what is wrong with the recorded platform: the recorded answers are about newer ones of its family.
const tooOld = "has no level as low as the platform's"

// TestRecordedCollateral: Intel's own answers of 2023 hold, and Google's verifier says the same of the recorded platform.
func TestRecordedCollateral(t *testing.T) {
	ev := evidence.Evidence{Kind: evidence.TDX, Report: fixture(t, "tdx/go-tdx-guest-tdx_prod_quote_SPR_E4.dat")}
	o := Options{Now: judged, Collateral: recordedCollateral(t)}
	c, err := TDX(ev, o)
	if err == nil || !strings.Contains(err.Error(), tooOld) || c.Kind == "" || c.TCBStatus != "" {
		t.Errorf("%q of %q: %v", c.TCBStatus, c.TCBDate, err)
	}
	for _, s := range c.Unproven {
		if strings.Contains(s, "TCB status") || strings.Contains(s, "revoked") {
			t.Errorf("not proven, although it is: %s", s)
		}
	}
	quote, err := abi.QuoteToProto(ev.Report)
	if err != nil {
		t.Fatal(err)
	}
	at := tdxverify.TimeSet{TcbInfo: judged, QeIdentity: judged, PckCrl: judged, RootCaCrl: judged, PckCertChain: judged}
	if err := tdxverify.TdxQuote(quote, &tdxverify.Options{CheckRevocations: true, GetCollateral: true, Getter: tdxtest.TestGetter, Now: &at}); err == nil || !strings.Contains(err.Error(), "no matching TCB level") {
		t.Errorf("Google's verifier: %v", err)
	}
	// A byte of any answer that is turned must be seen. Spaces around what is signed are not signed.
	for name, part := range map[string]func(c *Collateral) *[]byte{
		"TCB info": func(c *Collateral) *[]byte { return &c.TCBInfo }, "QE identity": func(c *Collateral) *[]byte { return &c.QEIdentity },
		"PCK CRL": func(c *Collateral) *[]byte { return &c.PCKCRL }, "root CRL": func(c *Collateral) *[]byte { return &c.RootCRL },
	} {
		n := len(*part(o.Collateral))
		for i := 0; i < n; i += 23 {
			o := o
			c := *o.Collateral
			o.Collateral = &c
			b := append([]byte(nil), *part(&c)...)
			b[i] ^= 1
			*part(&c) = b
			if _, err := TDX(ev, o); err == nil || strings.Contains(err.Error(), tooOld) {
				t.Errorf("byte %d of %s may change", i, name)
			}
		}
	}
	for name, c := range map[string]struct {
		set  func(o *Options)
		want string
	}{
		"the year after": {func(o *Options) { o.Now = judged.AddDate(1, 0, 0) }, "root CRL: good from"},
		"a week before":  {func(o *Options) { o.Now = judged.AddDate(0, -1, 0) }, "good from"},
		"no TCB info":    {func(o *Options) { o.Collateral.TCBInfo = nil }, "TCB info"},
		"TCB info twice": {func(o *Options) { o.Collateral.QEIdentity = o.Collateral.TCBInfo }, "QE identity"},
		"no issuers":     {func(o *Options) { o.Collateral.Issuers = nil }, "issuers"},
		"a PCK's issuers": {func(o *Options) {
			o.Collateral.Issuers = []byte(tdxtest.PckCrlHeader[pcs.SgxPckCrlIssuerChainPhrase][0])
		}, "issuers"},
		"no CRL":             {func(o *Options) { o.Collateral.PCKCRL = nil }, "PCK CRL"},
		"the CRLs swapped":   {func(o *Options) { o.Collateral.PCKCRL = o.Collateral.RootCRL }, "PCK CRL"},
		"another platform's": {func(o *Options) { o.Collateral.TCBInfo = fixture(t, "tdx/go-tdx-guest-sample_tcbinfo_response_v5") }, "TCB info"},
	} {
		o := Options{Now: judged, Collateral: recordedCollateral(t)}
		c.set(&o)
		claims, err := TDX(ev, o)
		if err == nil || !strings.Contains(err.Error(), c.want) || claims.Kind == "" || claims.TCBStatus != "" {
			t.Errorf("%s: %v, want %q; status %q", name, err, c.want, claims.TCBStatus)
		}
	}
}

func TestLoadCollateral(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadCollateral(dir); err == nil {
		t.Error("of nothing")
	}
	c := recordedCollateral(t)
	for name, b := range map[string][]byte{
		"tcb_info.json": c.TCBInfo, "qe_identity.json": c.QEIdentity, "tcb_signing_chain.pem": c.Issuers, "pck_crl.der": c.PCKCRL,
		"root_ca_crl.der": []byte(hex.EncodeToString(c.RootCRL)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadCollateral(dir)
	if err != nil {
		t.Fatal(err)
	}
	ev := evidence.Evidence{Kind: evidence.TDX, Report: fixture(t, "tdx/go-tdx-guest-tdx_prod_quote_SPR_E4.dat")}
	if _, err := TDX(ev, Options{Now: judged, Collateral: got}); err == nil || !strings.Contains(err.Error(), tooOld) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tcb_info.json"), make([]byte, maxCollateral+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCollateral(dir); err == nil {
		t.Error("of any length")
	}
}

// TestLevels holds the walk over Intel's levels against its own answer for version 5 quotes, which has module identities.
func TestLevels(t *testing.T) {
	var answer struct {
		TCBInfo tcbInfo `json:"tcbInfo"`
	}
	if err := json.Unmarshal(fixture(t, "tdx/go-tdx-guest-sample_tcbinfo_response_v5"), &answer); err != nil {
		t.Fatal(err)
	}
	info := answer.TCBInfo
	q, err := evidence.ParseTDX(fixture(t, "tdx/go-tdx-guest-quote_v5_sample.dat"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := checkQuote(&q, Options{Now: info.Issued})
	if err != nil {
		t.Fatal(err)
	}
	pck, err := parsePCK(p.pck)
	if err != nil {
		t.Fatal(err)
	}
	// The answer is of another family than the quote; only the walk is tried.
	pck.fmspc, pck.pceID = [6]byte(info.FMSPC), [2]byte(info.PCEID)
	top := info.Levels[0]
	for i := range pck.components {
		pck.components[i] = top.TCB.SGX[i].SVN
	}
	pck.pceSVN = uint16(top.TCB.PCESVN)
	for i := range q.Report.TEETCBSVN {
		q.Report.TEETCBSVN[i] = top.TCB.TDX[i].SVN
	}
	id := info.Identities[0]
	fmt.Sscanf(id.ID, "TDX_%02x", &q.Report.TEETCBSVN[1])
	q.Report.TEETCBSVN[0] = uint8(id.Levels[0].TCB.ISVSVN)
	level := func() (tcbLevel, error) { return info.level(&pck, &q.Report, info.Issued) }
	l, err := level()
	if err != nil || l.Status != top.Status|id.Levels[0].Status {
		t.Errorf("%s: %v", l.Status, err)
	}
	last := len(pck.components) - 1
	for pck.components[last] == 0 {
		last--
	}
	pck.components[last]--
	if lower, err := level(); err == nil && lower.Status == 0 {
		t.Errorf("an older platform is %s", lower.Status)
	}
	pck.components[last]++
	q.Report.TEETCBSVN[0] = 0
	if lower, err := level(); err == nil && lower.Status == 0 {
		t.Errorf("an older module is %s", lower.Status)
	}
	q.Report.TEETCBSVN[0], q.Report.TEETCBSVN[1] = 99, 99
	if _, err := level(); err == nil || !strings.Contains(err.Error(), "TDX_63") {
		t.Errorf("a module that nobody knows: %v", err)
	}
}

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		of   []string
		want string
	}{
		{[]string{"UpToDate", "UpToDate"}, "UpToDate"},
		{[]string{"UpToDate", "OutOfDate"}, "OutOfDate"},
		{[]string{"SWHardeningNeeded", "OutOfDate"}, "OutOfDate"},
		{[]string{"ConfigurationNeeded", "OutOfDate"}, "OutOfDateConfigurationNeeded"},
		{[]string{"ConfigurationAndSWHardeningNeeded", "OutOfDate"}, "OutOfDateConfigurationNeeded"},
		{[]string{"ConfigurationNeeded", "SWHardeningNeeded"}, "ConfigurationAndSWHardeningNeeded"},
		{[]string{"OutOfDate", "Revoked"}, "Revoked"},
	} {
		var all tcbStatus
		for _, word := range c.of {
			var s tcbStatus
			if err := s.UnmarshalText([]byte(word)); err != nil {
				t.Fatal(err)
			}
			all |= s
		}
		if all.String() != c.want || all.accepted(nil) != (c.want == "UpToDate") || all.accepted([]string{c.want}) != (c.want != "Revoked") {
			t.Errorf("%v is %s", c.of, all)
		}
	}
	if err := new(tcbStatus).UnmarshalText([]byte("Fine")); err == nil {
		t.Error("a word that Intel does not have")
	}
}

// forgedCollateral is all that Intel publishes, under a test root.
func forgedCollateral(t testing.TB, p *platform, status string, revoke ...int64) *Collateral {
	t.Helper()
	text := func(b []byte) string { return hex.EncodeToString(b) }
	var parts [16]component
	info := map[string]any{
		"id": "TDX", "version": 3, "issueDate": recorded.AddDate(0, 0, -1), "nextUpdate": recorded.AddDate(0, 0, 29), "fmspc": text(make([]byte, 6)), "pceId": "0000",
		"tdxModule": map[string]string{"mrsigner": text(make([]byte, 48)), "attributes": text(make([]byte, 8)), "attributesMask": strings.Repeat("ff", 8)},
		"tcbLevels": []any{map[string]any{"tcb": map[string]any{"sgxtcbcomponents": parts, "pcesvn": 0, "tdxtcbcomponents": parts}, "tcbDate": "2023-08-09T00:00:00Z",
			"tcbStatus": status, "advisoryIDs": []string{"INTEL-SA-00837"}}},
	}
	qe := map[string]any{
		"id": "TD_QE", "version": 2, "issueDate": recorded.AddDate(0, 0, -1), "nextUpdate": recorded.AddDate(0, 0, 29), "miscselect": "00000000", "miscselectMask": "ffffffff",
		"attributes": text(make([]byte, 16)), "attributesMask": strings.Repeat("ff", 16), "mrsigner": text(make([]byte, 32)), "isvprodid": 2,
		"tcbLevels": []any{map[string]any{"tcb": map[string]any{"isvsvn": 0}, "tcbDate": "2023-02-15T00:00:00Z", "tcbStatus": "UpToDate"}},
	}
	signer := p.signer(t)
	answer := func(member string, v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Appendf(nil, `{"%s":%s,"signature":"%x"}`, member, b, signP256(t, signer.key, b))
	}
	crl := func(by *issuer) []byte {
		l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: recorded.AddDate(0, 0, -1), NextUpdate: recorded.AddDate(0, 0, 29)}
		for _, n := range revoke {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: recorded.AddDate(0, -1, 0)})
		}
		b, err := x509.CreateRevocationList(rand.Reader, l, by.cert, by.key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signer.cert.Raw})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.root.Raw})...)
	return &Collateral{TCBInfo: answer("tcbInfo", info), QEIdentity: answer("enclaveIdentity", qe), Issuers: chain, PCKCRL: crl(p.ca), RootCRL: crl(p.rootIssuer)}
}

func TestForgedCollateral(t *testing.T) {
	for name, c := range map[string]struct {
		status string
		also   []string
		revoke []int64
		want   string
	}{
		"good":                     {"UpToDate", nil, nil, ""},
		"outdated":                 {"OutOfDate", nil, nil, "tcb_status"},
		"outdated, which is taken": {"OutOfDate", []string{"OutOfDate"}, nil, ""},
		"revoked":                  {"Revoked", []string{"Revoked"}, nil, "tcb_status"},
		"the PCK is revoked":       {"UpToDate", nil, []int64{3}, "revoked on"},
		"its CA is revoked":        {"UpToDate", nil, []int64{2}, "revoked on"},
		"another is revoked":       {"UpToDate", nil, []int64{99}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform(t)
			o := Options{Intel: []*x509.Certificate{p.root}, Now: recorded, Collateral: forgedCollateral(t, p, c.status, c.revoke...), TCBStatus: c.also}
			claims, err := TDX(p.quote(t), o)
			if c.want == "" && (err != nil || claims.TCBStatus != c.status) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%q: %v", claims.TCBStatus, err)
			}
			if e, ok := errors.AsType[*ClaimError](err); c.want == "tcb_status" && (!ok || !strings.Contains(e.Got, "INTEL-SA-00837")) {
				t.Errorf("%v", err)
			}
			o.Intel = nil
			if _, err := TDX(p.quote(t), o); err == nil {
				t.Error("under Intel's root")
			}
			real := evidence.Evidence{Kind: evidence.TDX, Report: fixture(t, "tdx/go-tdx-guest-tdx_prod_quote_SPR_E4.dat")}
			if _, err := TDX(real, Options{Now: recorded, Collateral: o.Collateral}); err == nil || !strings.Contains(err.Error(), "issuers") {
				t.Errorf("a real platform with a forger's collateral: %v", err)
			}
		})
	}
}

func FuzzCollateral(f *testing.F) {
	p := newPlatform(f)
	good := forgedCollateral(f, p, "OutOfDate")
	f.Add(good.TCBInfo, good.QEIdentity, good.Issuers, good.PCKCRL, good.RootCRL)
	ev := p.quote(f)
	f.Fuzz(func(t *testing.T, info, qe, issuers, pck, root []byte) {
		c := &Collateral{TCBInfo: info, QEIdentity: qe, Issuers: issuers, PCKCRL: pck, RootCRL: root}
		if _, err := TDX(ev, Options{Intel: []*x509.Certificate{p.root}, Now: recorded, Collateral: c}); err == nil {
			t.Error("an outdated platform is taken")
		}
	})
}
