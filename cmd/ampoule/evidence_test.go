package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// judge runs ampoule verify.
func judge(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	var b bytes.Buffer
	err = verifyVerb(t.Context(), args, stdio{strings.NewReader(""), &b, &b})
	return b.String(), err
}

func refusedWith(err error, code int) bool {
	e, ok := errors.AsType[*exitError](err)
	return ok && e.code == code
}

// TestVerifyRecordedEvidence: real evidence as its owners have it, raw and as Trustee's JSON.
func TestVerifyRecordedEvidence(t *testing.T) {
	dir := "../../../shared/wire/fixtures"
	if _, err := os.Stat(dir); err != nil {
		t.Skip("the recorded evidence in ../shared is not here")
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	certs, list, doc := t.TempDir(), filepath.Join(t.TempDir(), "list"), filepath.Join(t.TempDir(), "doc")
	vcek, err := os.ReadFile(at("snp/snp-vcek-genoa.der"))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		filepath.Join(certs, "a.der"): vcek, list: []byte(`["` + strings.Repeat("ab", 48) + `"]`), doc: []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n"),
	} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		args  []string
		code  int // 0: proven
		wants []string
	}{
		"SNP as JSON":               {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json")}, 0, []string{"PROVEN", "Genoa", "HOST_DATA", "not checked: report data"}},
		"SNP raw":                   {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-v3-genoa.bin"), "--cert", at("snp/snp-vcek-genoa.der")}, 0, []string{"PROVEN"}},
		"SNP with another cert":     {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-v3-genoa.bin"), "--cert", at("snp/snp-vcek-trustee.der")}, 3, nil},
		"SNP at VMPL 1":             {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-trustee-vlek.bin"), "--cert", at("snp/snp-vlek-trustee.der"), "--at", "2025-06-01"}, 3, []string{"REFUSED", "vmpl"}},
		"TDX with its log":          {[]string{"--kind", "tdx", "--evidence", at("ccel/cos-113-tdx-quote.dat"), "--eventlog", at("ccel/ccel_data.dat"), "--at", "2024-08-01"}, 0, []string{"PROVEN", "MRCONFIGID", "RTMR3", "not proven"}},
		"TDX with another log":      {[]string{"--kind", "tdx", "--evidence", at("tdx/tdx_quote_6.dat"), "--eventlog", at("ccel/ccel_data.dat"), "--at", "2025-06-01"}, 3, []string{"REFUSED", "rtmr0"}},
		"TDX that is debugged":      {[]string{"--kind", "tdx", "--evidence", at("tdx/tdx_quote_4.dat"), "--at", "2024-06-01"}, 3, []string{"REFUSED", "debug"}},
		"an empty MRCONFIGID":       {[]string{"--kind", "tdx", "--evidence", at("ccel/cos-113-tdx-quote.dat"), "--at", "2024-08-01", "--init-data", strings.Repeat("ab", 32)}, 3, []string{"MRCONFIGID is zero"}},
		"other report data":         {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json"), "--report-data", "00"}, 3, []string{"report_data"}},
		"another measurement":       {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json"), "--measurement", strings.Repeat("ab", 48)}, 3, []string{"measurement"}},
		"Azure of version 0":        {[]string{"--kind", "az-snp-vtpm", "--evidence", at("az-snp-vtpm/evidence-v0.json"), "--report-data", "6368616c6c656e6765", "--at", "2026-01-01"}, 0, []string{"PROVEN", "PCR 0 ", "not proven: which image runs", "of this moment"}},
		"Azure of version 2":        {[]string{"--kind", "az-snp-vtpm", "--evidence", at("az-snp-vtpm/evidence-v2.json"), "--at", "2026-01-01"}, 0, []string{"PROVEN"}},
		"Azure on TDX":              {[]string{"--kind", "az-tdx-vtpm", "--evidence", at("az-tdx-vtpm/evidence-v1.json"), "--at", "2026-01-01"}, 0, []string{"PROVEN", "RTMR0", "PCR 0 ", "TCB status not evaluated"}},
		"Azure with an empty PCR 8": {[]string{"--kind", "az-tdx-vtpm", "--evidence", at("az-tdx-vtpm/evidence-v1.json"), "--at", "2026-01-01", "--init-data", strings.Repeat("ab", 32)}, 3, []string{"REFUSED", "PCR 8 is zero"}},
		"Azure on SNP called TDX":   {[]string{"--kind", "az-tdx-vtpm", "--evidence", at("az-snp-vtpm/evidence-v2.json")}, 3, nil},
		"a folder of certificates":  {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-v3-genoa.bin"), "--collateral", certs}, 0, []string{"PROVEN"}},
		"no certificate":            {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-v3-genoa.bin")}, 3, nil},
		"measurements in a file":    {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json"), "--measurements", list}, 3, []string{"measurement"}},
		"an initdata document":      {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json"), "--init-data", doc}, 3, []string{"init_data"}},
		"TDX called SNP":            {[]string{"--kind", "snp", "--evidence", at("tdx/tdx_quote_6.dat")}, 3, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := judge(t, c.args...)
			if c.code == 0 && err != nil || c.code != 0 && !refusedWith(err, c.code) {
				t.Errorf("error %v, want exit code %d", err, c.code)
			}
			for _, want := range c.wants {
				if !strings.Contains(out, want) {
					t.Errorf("the output lacks %q:\n%s", want, out)
				}
			}
		})
	}
	out, err := judge(t, "--json", "--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json"))
	var facts evidenceFacts
	if err != nil || json.Unmarshal([]byte(out), &facts) != nil || !facts.Proven || facts.VMPL == nil || facts.TCB == nil || facts.Measurement == (evidence.Measurement{}) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestVerifySimulatedEvidence: a test root is of one maker, and nothing of the other passes beside it.
func TestVerifySimulatedEvidence(t *testing.T) {
	dir := t.TempDir()
	chip, err := psp.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	data := [64]byte{1, 2, 3}
	q, err := chip.Quote(psp.Launch{Measurement: evidence.Measurement{7}, HostData: [32]byte{9}}, data)
	if err != nil {
		t.Fatal(err)
	}
	file, intel, amd := write("quote", q), write("tdx.pem", chip.TDXRootPEM()), write("snp.pem", chip.RootPEM())
	digest := hex.EncodeToString(append([]byte{9}, make([]byte, 31)...))
	out, err := judge(t, "--kind", "tdx", "--evidence", file, "--test-root", intel, "--report-data", "010203", "--init-data", digest,
		"--measurement", evidence.Measurement{7}.String())
	if err != nil || !strings.Contains(out, "SIMULATED") {
		t.Errorf("%v\n%s", err, out)
	}
	for name, args := range map[string][]string{
		"Intel's root":  {"--kind", "tdx", "--evidence", file},
		"an AMD root":   {"--kind", "tdx", "--evidence", file, "--test-root", amd},
		"sample":        {"--kind", "sample", "--evidence", write("sample", []byte(`{"svn":"1","report_data":"`+strings.Repeat("A", 64)+`"}`))},
		"unknown kinds": {"--kind", "sgx", "--evidence", file},
	} {
		if _, err := judge(t, args...); !refusedWith(err, 3) && name != "unknown kinds" || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := judge(t, "--kind", "sample", "--allow-sample", "--evidence", filepath.Join(dir, "sample")); err != nil {
		t.Errorf("sample, allowed: %v", err)
	}
	for name, args := range map[string][]string{
		"no kind":           {"--evidence", file},
		"raw Azure":         {"--kind", "az-tdx-vtpm", "--evidence", file},
		"a cert with TDX":   {"--kind", "tdx", "--evidence", file, "--cert", file},
		"a log with SNP":    {"--kind", "snp", "--evidence", file, "--eventlog", file},
		"fetching for none": {"--kind", "sample", "--evidence", file, "--fetch"},
		"fetching twice":    {"--kind", "tdx", "--evidence", file, "--fetch", "--collateral", dir},
		"status alone":      {"--kind", "tdx", "--evidence", file, "--tcb-status", "OutOfDate"},
		"no such document":  {"--kind", "tdx", "--evidence", file, "--init-data", filepath.Join(dir, "none")},
		"not a document":    {"--kind", "tdx", "--evidence", file, "--init-data", intel},
		"no list":           {"--kind", "tdx", "--evidence", file, "--measurements", intel},
		"an empty list":     {"--kind", "tdx", "--evidence", file, "--measurements", write("empty", []byte("[]"))},
		"a list of null":    {"--kind", "tdx", "--evidence", file, "--measurements", write("null", []byte("[null]"))},
		"no collateral":     {"--kind", "tdx", "--evidence", file, "--collateral", filepath.Join(dir, "none")},
		"a receipt's":       {"--fetch", file},
		"a log with JSON":   {"--kind", "tdx", "--evidence", write("j", []byte("{}")), "--eventlog", file},
		"hex that is none":  {"--kind", "tdx", "--evidence", file, "--report-data", "xy"},
		"a short digest":    {"--kind", "tdx", "--evidence", file, "--init-data", "ab"},
		"no date":           {"--kind", "tdx", "--evidence", file, "--at", "yesterday"},
	} {
		if _, err := judge(t, args...); err == nil || refusedWith(err, 3) {
			t.Errorf("%s: %v, want a usage error", name, err)
		}
	}
}

// TestVerifyFetches: what AMD answers is held against the root like any certificate. AMD itself is not asked here.
func TestVerifyFetches(t *testing.T) {
	chip, err := psp.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	report, err := chip.Report(psp.Launch{}, [64]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	table, err := chip.Certs()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := evidence.ParseCerts(table)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		w.Write(certs[len(certs)-1].DER)
	}))
	defer s.Close()
	dir := t.TempDir()
	file, root := filepath.Join(dir, "report"), filepath.Join(dir, "root")
	if err := errors.Join(os.WriteFile(file, report, 0o600), os.WriteFile(root, chip.RootPEM(), 0o600)); err != nil {
		t.Fatal(err)
	}
	std := stdio{strings.NewReader(""), io.Discard, io.Discard}
	f := evidenceFlags{file: file, kind: "snp", fetch: true, kds: s.URL}
	var want verify.Expect
	if want.Roots, want.Intel, err = testRoots(std, root); err != nil {
		t.Fatal(err)
	}
	if err := verifyEvidence(t.Context(), std, f, want, false, false); err != nil || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	if err := verifyEvidence(t.Context(), std, f, verify.Expect{}, false, false); !refusedWith(err, 3) {
		t.Errorf("under AMD's root: %v", err)
	}
	f.fetch = false
	if err := verifyEvidence(t.Context(), std, f, want, false, false); !refusedWith(err, 3) || asked != 2 {
		t.Errorf("without --fetch, asked %d times: %v", asked, err)
	}
}

// TestFetchForTDX: Intel is asked about a quote whose signatures hold; a service that does not answer is no verdict.
func TestFetchForTDX(t *testing.T) {
	chip, err := psp.New(filepath.Join(t.TempDir(), "psp"))
	if err != nil {
		t.Fatal(err)
	}
	quote, err := chip.Quote(psp.Launch{Measurement: evidence.Measurement{1}}, [64]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		http.NotFound(w, r)
	}))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "quote")
	if err := os.WriteFile(file, quote, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := verify.LoadIntelRoot(chip.TDXRootPEM())
	if err != nil {
		t.Fatal(err)
	}
	std := stdio{strings.NewReader(""), io.Discard, io.Discard}
	f := evidenceFlags{file: file, kind: "tdx", fetch: true, pcs: verify.PCS{API: s.URL, RootCRL: s.URL}}
	if err := verifyEvidence(t.Context(), std, f, verify.Expect{Intel: root}, false, false); err == nil || refusedWith(err, 3) || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	if err := verifyEvidence(t.Context(), std, f, verify.Expect{}, false, false); !refusedWith(err, 3) || asked != 1 {
		t.Errorf("under Intel's root, asked %d times: %v", asked, err)
	}
}
