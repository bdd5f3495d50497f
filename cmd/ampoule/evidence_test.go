package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/psp"
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
	for name, c := range map[string]struct {
		args  []string
		code  int // 0: proven
		wants []string
	}{
		"SNP as JSON":           {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json")}, 0, []string{"PROVEN", "Genoa", "HOST_DATA", "not checked: report data"}},
		"SNP raw":               {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-v3-genoa.bin"), "--cert", at("snp/snp-vcek-genoa.der")}, 0, []string{"PROVEN"}},
		"SNP with another cert": {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-v3-genoa.bin"), "--cert", at("snp/snp-vcek-trustee.der")}, 3, nil},
		"SNP at VMPL 1":         {[]string{"--kind", "snp", "--evidence", at("snp/snp-report-trustee-vlek.bin"), "--cert", at("snp/snp-vlek-trustee.der"), "--at", "2025-06-01"}, 3, []string{"REFUSED", "vmpl"}},
		"TDX with its log":      {[]string{"--kind", "tdx", "--evidence", at("ccel/cos-113-tdx-quote.dat"), "--eventlog", at("ccel/ccel_data.dat"), "--at", "2024-08-01"}, 0, []string{"PROVEN", "MRCONFIGID", "RTMR3", "not proven"}},
		"TDX with another log":  {[]string{"--kind", "tdx", "--evidence", at("tdx/tdx_quote_6.dat"), "--eventlog", at("ccel/ccel_data.dat"), "--at", "2025-06-01"}, 3, []string{"REFUSED", "rtmr0"}},
		"TDX that is debugged":  {[]string{"--kind", "tdx", "--evidence", at("tdx/tdx_quote_4.dat"), "--at", "2024-06-01"}, 3, []string{"REFUSED", "debug"}},
		"an empty MRCONFIGID":   {[]string{"--kind", "tdx", "--evidence", at("ccel/cos-113-tdx-quote.dat"), "--at", "2024-08-01", "--init-data", strings.Repeat("ab", 32)}, 3, []string{"MRCONFIGID is zero"}},
		"other report data":     {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json"), "--report-data", "00"}, 3, []string{"report_data"}},
		"another measurement":   {[]string{"--kind", "snp", "--evidence", at("snp/snp-evidence-v3-genoa.json"), "--measurement", strings.Repeat("ab", 48)}, 3, []string{"measurement"}},
		"TDX called SNP":        {[]string{"--kind", "snp", "--evidence", at("tdx/tdx_quote_6.dat")}, 3, nil},
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
		"no kind":          {"--evidence", file},
		"a log with JSON":  {"--kind", "tdx", "--evidence", write("j", []byte("{}")), "--eventlog", file},
		"hex that is none": {"--kind", "tdx", "--evidence", file, "--report-data", "xy"},
		"a short digest":   {"--kind", "tdx", "--evidence", file, "--init-data", "ab"},
		"no date":          {"--kind", "tdx", "--evidence", file, "--at", "yesterday"},
	} {
		if _, err := judge(t, args...); err == nil || refusedWith(err, 3) {
			t.Errorf("%s: %v, want a usage error", name, err)
		}
	}
}
