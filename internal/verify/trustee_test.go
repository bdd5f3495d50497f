package verify

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// TestTrusteeTDX holds the claims of a quote and of a log against what Trustee's own tests expect of both. The details of
// events, which it reads out of some, are not made here.
func TestTrusteeTDX(t *testing.T) {
	var want map[string]any
	if err := json.Unmarshal(fixture(t, "tdx/parse_tdx_claims_expected.json"), &want); err != nil {
		t.Fatal(err)
	}
	for _, e := range want["uefi_event_logs"].([]any) {
		e.(map[string]any)["details"] = map[string]any{}
	}
	c, err := TDX(evidence.Evidence{Kind: evidence.TDX, Report: fixture(t, "tdx/tdx_quote_4.dat")}, Options{Now: time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)})
	if !fails(err, "td_attributes.debug") {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(fixture(t, "ccel/trustee-CCEL_data.gz")))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	log, err := evidence.CutEventLog(raw)
	if err != nil {
		t.Fatal(err)
	}
	if c.events, err = evidence.ParseEventLog(log); err != nil { // they are not of one machine
		t.Fatal(err)
	}
	var got map[string]any
	b, err := json.Marshal(c.Trustee())
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	tdx := got["tdx"].(map[string]any)
	for _, name := range []string{"init_data", "report_data"} {
		tdx[name] = got[name]
	}
	if diff := cmp.Diff(want, tdx); diff != "" {
		t.Error(diff)
	}
}

func TestTrusteeOthers(t *testing.T) {
	ev := simulated(t, func(r *evidence.SNPReport) { r.Policy, r.PlatInfo = 0x3001f, 1 })
	c, err := SNP(ev, Options{Roots: []Root{testRoot(t)}})
	if err != nil {
		t.Fatal(err)
	}
	got := c.Trustee()
	snp := got["snp"].(map[string]any)
	if snp["policy_abi_minor"] != uint64(0x1f) || snp["policy_smt_allowed"] != true || snp["policy_debug_allowed"] != false ||
		snp["platform_smt_enabled"] != true || snp["platform_tsme_enabled"] != false || snp["measurement"] != c.Measurement.String() ||
		got["init_data"] != hex.EncodeToString(c.HostData[:]) || got["report_data"] != hex.EncodeToString(c.ReportData[:]) {
		t.Errorf("%v", got)
	}
	p := newParavisor(t, evidence.AzSNPvTPM)
	if c, err = Azure(p.evidence(t), Options{Roots: []Root{testRoot(t)}}); err != nil {
		t.Fatal(err)
	}
	got = c.Trustee()
	snp = got["az-snp-vtpm"].(map[string]any)
	if snp["policy_debug_allowed"] != "false" || snp["reported_tcb_snp"] != "0" || snp["measurement"] != base64.StdEncoding.EncodeToString(c.Measurement[:]) ||
		snp["tpm"].(map[string]any)["pcr08"] != got["init_data"] || len(snp["tpm"].(map[string]any)) != 24 {
		t.Errorf("%v", got)
	}
	if c, err = sample(evidence.Evidence{Kind: evidence.Sample, Report: make([]byte, 64)}, Options{AllowSample: true}); err != nil {
		t.Fatal(err)
	}
	if got = c.Trustee(); got["sample"] == nil || got["init_data"] != nil || got["report_data"] != base64.StdEncoding.EncodeToString(make([]byte, 48)) {
		t.Errorf("%v", got)
	}
}

// TestBoundAs: what a receipt says of its binding, against each kind of register.
func TestBoundAs(t *testing.T) {
	digest := hex.EncodeToString(initdata[:])
	at := Claims{Kind: evidence.TDX, TDX: &evidence.TDXReport{}, Register: evidence.MRConfigID, InitData: make([]byte, 48)}
	atLaunch, atRuntime := at, at
	atLaunch.InitData = evidence.InRegister(evidence.MRConfigID, initdata[:])
	atRuntime.TDX = &evidence.TDXReport{RTMR: [4][48]byte{3: extended(initdata)}}
	azure := Claims{Kind: evidence.AzSNPvTPM, Register: evidence.PCR8, InitData: evidence.InRegister(evidence.PCR8, initdata[:])}
	empty := azure
	empty.InitData = make([]byte, 32)
	for name, c := range map[string]struct {
		claims  Claims
		binding string
		ok      bool
	}{
		"MRCONFIGID":             {atLaunch, result.BindLaunch, true},
		"an empty one":           {at, result.BindLaunch, false},
		"RTMR3":                  {atRuntime, result.BindRuntime, true},
		"an empty RTMR3":         {at, result.BindRuntime, false},
		"RTMR3 called launch":    {atRuntime, result.BindLaunch, false},
		"PCR 8":                  {azure, result.BindRuntime, true},
		"an empty PCR 8":         {empty, result.BindRuntime, false},
		"PCR 8 called launch":    {azure, result.BindLaunch, false},
		"SNP has nothing at all": {Claims{Kind: evidence.SNP, Register: evidence.HostData, InitData: initdata[:]}, result.BindRuntime, false},
		"none":                   {azure, result.BindNone, false},
	} {
		if err := boundAs(result.Predicate{Binding: c.binding, InitdataSHA256: digest}, c.claims); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]Claims{"MRCONFIGID": atLaunch, "RTMR3": atRuntime, "PCR 8": azure} {
		if !c.Holds(initdata) || c.Holds([32]byte{}) {
			t.Errorf("%s does not hold it", name)
		}
	}
	if at.Holds(initdata) || at.Holds([32]byte{}) {
		t.Error("registers of zeros hold a document")
	}
}
