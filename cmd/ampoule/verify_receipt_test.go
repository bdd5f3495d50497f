package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// vectorDir has receipts that are documented, docs/RECEIPTS.md.
const vectorDir = "../../docs/receipts/vectors"

// TestVerifyReceipts: verdicts and exit codes, on the documented receipts.
func TestVerifyReceipts(t *testing.T) {
	for _, kind := range []string{"snp", "tdx"} {
		at := func(name string) string { return filepath.Join(vectorDir, kind, name) }
		hardware := map[string]string{"snp": "AMD SEV-SNP, Milan, TCB bootloader 4", "tdx": "Intel TDX, TCB 0201"}[kind]
		all := []string{"--test-root", at("root.pem"), "--measurements", at("measurements.json"), "--manifest", at("manifest.json")}
		with := func(more ...string) []string { return append(append([]string{}, all...), more...) }
		for name, c := range map[string]struct {
			args  []string
			code  int
			wants []string
		}{
			"all of it": {with("--result", at("result.tar.zst.age"), "--identity", at("identity.txt"), "--strict", at("receipt.json")), 0,
				[]string{"PROVEN: ", "SIMULATED", "ran          docker://registry.example/linear-regression@", "(algorithm, encrypted)", "datasets[0]",
					"exit status 0, after 1.5s", "1.2s of CPU time", hardware, "which the launch fixed", "contents     ok", "over plain http"}},
			"the tar":            {with("--result", at("result.tar"), "--strict", at("receipt.json")), 0, []string{"result.tar, sha256"}},
			"the tar opened":     {with("--result", at("result.tar"), "--identity", at("identity.txt"), at("receipt.json")), 1, nil},
			"without a result":   {with(at("receipt.json")), 0, []string{"PROVEN as far as it was checked; not checked: result"}},
			"that, strictly":     {with("--strict", at("receipt.json")), 3, []string{"REFUSED", "result       failed"}},
			"as the guest's":     {with("--result", at("result.tar"), at("receipt-bare.json")), 0, []string{"not checked: collateral", "ampoule verify --collect"}},
			"another result":     {with("--result", at("root.pem"), at("receipt.json")), 3, []string{"REFUSED", "result       failed"}},
			"at another time":    {with("--at", "2020-01-31", at("receipt.json")), 3, []string{"certificate has expired or is not yet valid"}},
			"now":                {with("--at", "now", at("receipt.json")), 0, []string{"judged as of 2"}},
			"at no time":         {with("--at", "soon", at("receipt.json")), 2, []string{"2026-01-31, or now"}},
			"identity alone":     {with("--identity", at("identity.txt"), at("receipt.json")), 2, []string{"--identity goes with --result"}},
			"beside evidence":    {[]string{"--evidence", at("receipt.json"), "--kind", kind, "--strict"}, 2, []string{"flags about receipts"}},
			"collect from stdin": {with("--collect", "-"), 2, []string{"cannot be standard input"}},
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				out, err := judge(t, c.args...)
				if (err == nil) != (c.code == 0) || err != nil && c.code != 1 && !refusedWith(err, c.code) {
					t.Errorf("exits otherwise than with %d: %v", c.code, err)
				}
				if err != nil {
					out += err.Error()
				}
				for _, s := range c.wants {
					if !strings.Contains(out, s) {
						t.Errorf("no %q in\n%s", s, out)
					}
				}
			})
		}
		refused, err := filepath.Glob(at("refused/*.json"))
		if err != nil || len(refused) == 0 {
			t.Fatalf("%q, %v", refused, err)
		}
		for _, path := range refused {
			if out, err := judge(t, with(path)...); !refusedWith(err, 3) {
				t.Errorf("%s: %v\n%s", path, err, out)
			}
		}
		out, err := judge(t, with("--json", at("receipt.json"))...)
		var v verify.Verdict
		if err != nil || json.Unmarshal([]byte(out), &v) != nil || !v.Proven || string(v.Kind) != kind || v.JudgedAt != v.Statement.Predicate.Completed {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// TestCompleteReceipts: what run and demo add for a simulated chip, and what --collect asks for.
func TestCompleteReceipts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipt.json")
	bare, full := readFile(t, filepath.Join(vectorDir, "snp", "receipt-bare.json")), readFile(t, filepath.Join(vectorDir, "snp", "receipt.json"))
	r, _, err := result.ParseReceipt(full)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/vcek/v1/Milan/crl" {
			http.NotFound(w, req)
			return
		}
		w.Write(r.Collateral.AMD.CRL)
	}))
	defer s.Close()
	root, err := verify.LoadRoot(readFile(t, filepath.Join(vectorDir, "snp", "root.pem")))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	std := stdio{strings.NewReader(""), &out, &out}
	f := receiptFlags{file: path, collect: true, vendors: verify.Vendors{KDS: s.URL}}
	for range 2 { // the second time nothing is lacking
		if err := std.write(path, bare); err != nil {
			t.Fatal(err)
		}
		if err := f.verify(t.Context(), std, verify.Expect{Roots: []verify.Root{root}}, false); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, path); !bytes.Equal(got, full) {
			t.Errorf("the completed receipt is %d bytes, want the %d of the vector", len(got), len(full))
		}
		bare = full
		s.Close()
	}
	if err := f.verify(t.Context(), std, verify.Expect{}, false); !refusedWith(err, 3) {
		t.Errorf("under AMD's roots: %v", err)
	}

	dir := t.TempDir()
	for name, c := range map[string]struct {
		path string
		want bool // an error
	}{"a run without a receipt": {"", false}, "one that is there no more": {path + ".gone", true}, "one that is complete": {path, true}} {
		if err := completeSimulated(std, c.path, dir, evidence.SNP); (err != nil) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
