package verify

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// TestCertStore: reports that come without certificates find theirs in a folder, and nobody else's.
func TestCertStore(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("readme.txt", []byte("not a certificate"))
	put("a.der", shared(t, "snp-vcek-genoa.der"))
	put("b.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shared(t, "snp-vcek-trustee.der")}))
	put("c.cer", shared(t, "snp-vlek-trustee.der"))
	put("d.der", shared(t, "test-vcek-invalid-new.der"))
	store, err := LoadCerts(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Now: time.Date(2025, 9, 1, 0, 0, 0, 0, time.UTC), VCEKs: store}
	for report, want := range map[string]string{
		"snp-report-v3-genoa.bin": "", "snp-report-trustee-vcek.bin": "", "snp-report-trustee-vlek.bin": "vmpl",
		"snp-report-go-sev-guest-milan.bin": "none of the 4 given",
	} {
		_, err := SNP(evidence.Evidence{Kind: evidence.SNP, Report: shared(t, report)}, o)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", report, err, want)
		}
	}
	// A store is no root.
	if _, err := SNP(evidence.Evidence{Kind: evidence.SNP, Report: shared(t, "snp-report-v3-genoa.bin")}, Options{VCEKs: store, Roots: []Root{testRoot(t)}}); err == nil {
		t.Error("a store vouches for its certificates")
	}
	// Nor does it help evidence that brings another's certificate.
	ev := evidence.Evidence{Kind: evidence.SNP, Report: shared(t, "snp-report-v3-genoa.bin"), Aux: table(t, "VCEK", shared(t, "snp-vcek-trustee.der"))}
	if _, err := SNP(ev, o); err == nil {
		t.Error("the evidence's certificate is passed over")
	}
	put("e.der", []byte("no DER"))
	if _, err := LoadCerts(dir); err == nil || !strings.Contains(err.Error(), "e.der") {
		t.Errorf("%v", err)
	}
	if _, err := LoadCerts(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there")
	}
}

// TestFetchVCEK: what is asked of AMD, and that its answers are bounded and not followed. AMD itself is not asked here.
func TestFetchVCEK(t *testing.T) {
	var asked string
	h := func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		switch {
		case strings.HasPrefix(r.URL.Path, "/away"):
			http.Redirect(w, r, "/vcek", http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/long"):
			w.Write(make([]byte, maxCertFile+1))
		default:
			w.Write([]byte("DER"))
		}
	}
	s := httptest.NewServer(http.HandlerFunc(h))
	defer s.Close()
	r := evidence.SNPReport{Version: 3, SigAlgo: 1, CPUFamily: 0x19, CPUModel: 0x11, ReportedTCB: evidence.TCB{Bootloader: 10, SNP: 23, Microcode: 25}, ChipID: [64]byte{0xab}}
	der, err := FetchVCEK(t.Context(), s.URL, r.Marshal())
	if want := "/vcek/v1/Genoa/ab" + strings.Repeat("00", 63) + "?blSPL=10&snpSPL=23&teeSPL=0&ucodeSPL=25"; err != nil || string(der) != "DER" || asked != want {
		t.Errorf("%q, asked %s, want %s: %v", der, asked, want, err)
	}
	r = evidence.SNPReport{Version: 4, SigAlgo: 1, CPUFamily: 0x1A, CPUModel: 0x11, ReportedTCB: evidence.TCB{FMC: 1}, ChipID: [64]byte{0xab}}
	if _, err := FetchVCEK(t.Context(), s.URL, r.Marshal()); err != nil || !strings.HasPrefix(asked, "/vcek/v1/Turin/ab00000000000000?blSPL=0&fmcSPL=1&") {
		t.Errorf("asked %s: %v", asked, err)
	}
	vlek, masked := r, r
	vlek.KeyInfo, masked.ChipID = 1<<2, [64]byte{}
	for name, c := range map[string]struct {
		path   string
		report []byte
		want   string
	}{
		"a redirect":    {"/away", r.Marshal(), "302"},
		"a long answer": {"/long", r.Marshal(), "more than"},
		"a VLEK":        {"", vlek.Marshal(), "VLEK"},
		"a masked chip": {"", masked.Marshal(), "masks"},
		"no report":     {"", nil, "SNP"},
	} {
		if _, err := FetchVCEK(t.Context(), s.URL+c.path, c.report); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
