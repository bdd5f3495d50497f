package vtpm

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/paravisor"
)

func mustAK(t testing.TB, p *paravisor.Paravisor) *rsa.PublicKey {
	t.Helper()
	raw, err := chip{p}.report()
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseHCL(raw)
	if err != nil {
		t.Fatal(err)
	}
	return r.ak
}

// TestRealReports reads what real paravisors gave.
func TestRealReports(t *testing.T) {
	for name, kind := range map[string]evidence.Kind{
		"az-snp-vtpm/hcl-report.bin": evidence.AzSNPvTPM,
		"hcl/hcl-report-snp.bin":     evidence.AzSNPvTPM,
		"az-tdx-vtpm/hcl-report.bin": evidence.AzTDXvTPM,
		"hcl/hcl-report-tdx.bin":     evidence.AzTDXvTPM,
	} {
		raw, err := os.ReadFile(filepath.Join("../../../../shared/wire/fixtures", name))
		if errors.Is(err, fs.ErrNotExist) {
			t.Skip("no fixtures here: ../shared is absent")
		}
		if err != nil {
			t.Fatal(err)
		}
		r, err := parseHCL(raw)
		if err != nil || r.kind != kind {
			t.Errorf("%s: %q, %v", name, r.kind, err)
			continue
		}
		data := [64]byte{}
		if kind == evidence.AzSNPvTPM {
			report, err := evidence.ParseSNP(r.hardware)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			data = report.ReportData
		} else {
			copy(data[:], r.hardware[tdReportDataAt:])
		}
		if err := r.vouchedBy(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tdReportDataAt is REPORTDATA in a TDREPORT's REPORTMACSTRUCT, bytes.
const tdReportDataAt = 128

func FuzzParseHCL(f *testing.F) {
	// Any odd number of 2048 bits: a fuzz target's seeds must be the same in each process.
	key := rsa.PublicKey{N: new(big.Int).SetBytes(bytes.Repeat([]byte{0xff}, 256)), E: 65537}
	for _, o := range []paravisor.Options{onSNP, onTDX} {
		b, err := paravisor.HCLReport(o, &key, data[:48])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte("HCLA"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseHCL(b); err == nil && (r.ak == nil || r.ak.Size() > 256 || len(r.varData) > len(b)) {
			t.Errorf("took %x", b)
		}
	})
}
