package verify

import (
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	sevtest "github.com/google/go-sev-guest/testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func shared(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../shared/wire/fixtures/snp", name))
	if os.IsNotExist(err) {
		t.Skipf("no shared fixtures beside this checkout: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func table(t testing.TB, kind string, der []byte) []byte {
	t.Helper()
	b, err := evidence.MarshalCerts([]evidence.Cert{{Type: kind, DER: der}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var testSigner = sync.OnceValues(func() (*sevtest.AmdSigner, error) {
	return sevtest.DefaultTestOnlyCertChain("Milan-B1", time.Now().Add(-time.Hour))
})

func signer(t testing.TB) *sevtest.AmdSigner {
	t.Helper()
	s, err := testSigner()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testRoot(t testing.TB) Root {
	t.Helper()
	r, err := LoadRoot(rootPEM(signer(t)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func rootPEM(s *sevtest.AmdSigner) (out []byte) {
	for _, der := range [][]byte{s.Ask.Raw, s.Ark.Raw} {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

// simulated signs a report as the simulated PSP does; change may spoil it before.
func simulated(t testing.TB, change func(r *evidence.SNPReport)) evidence.Evidence {
	t.Helper()
	s := signer(t)
	r := evidence.SNPReport{Version: 3, Policy: 0x30000, SigAlgo: 1, CPUFamily: 0x19, CPUModel: 1, CPUStepping: 1}
	copy(r.ReportData[:], "asked for this")
	copy(r.Measurement[:], "launched that")
	copy(r.HostData[:], "with this manifest")
	if change != nil {
		change(&r)
	}
	return sign(t, s, r)
}

func sign(t testing.TB, s *sevtest.AmdSigner, r evidence.SNPReport) evidence.Evidence {
	t.Helper()
	raw := r.Marshal()
	R, S, err := s.Sign(abi.SignedComponent(raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := abi.SetSignature(R, S, raw); err != nil {
		t.Fatal(err)
	}
	certs, err := s.CertTableBytes()
	if err != nil {
		t.Fatal(err)
	}
	return evidence.Evidence{Kind: evidence.SNP, Report: raw, Aux: certs}
}

func TestRealReportsHoldUnderAMDRoots(t *testing.T) {
	for _, c := range []struct {
		name, report, cert string
		signer             evidence.Signer
		product            string
		claim              string // that fails all the same
	}{
		{"a Genoa of version 3", "snp-report-v3-genoa.bin", "snp-vcek-genoa.der", evidence.VCEK, "Genoa", ""},
		{"a Milan of version 2", "snp-report-trustee-vcek.bin", "snp-vcek-trustee.der", evidence.VCEK, "Milan", ""},
		{"a Milan that can be debugged", "snp-report-go-sev-guest-milan.bin", "snp-vcek-go-sev-guest-milan.der", evidence.VCEK, "Milan", "policy.debug"},
		{"a VLEK at VMPL 1", "snp-report-trustee-vlek.bin", "snp-vlek-trustee.der", evidence.VLEK, "Milan", "vmpl"},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := shared(t, c.report)
			ev := evidence.Evidence{Kind: evidence.SNP, Report: raw, Aux: table(t, c.signer.String(), shared(t, c.cert))}
			claims, err := SNP(ev, Options{Now: time.Date(2025, 9, 1, 0, 0, 0, 0, time.UTC)})
			if c.claim == "" && err != nil {
				t.Fatal(err)
			}
			if e, ok := errors.AsType[*ClaimError](err); c.claim != "" && (!ok || e.Claim != c.claim) {
				t.Fatalf("error %v, want one about %s", err, c.claim)
			}
			if claims.Signer != c.signer || claims.Product != c.product || claims.Simulated || string(claims.Measurement[:]) != string(raw[0x90:0xC0]) {
				t.Errorf("claims %+v", claims)
			}

			if _, err := SNP(ev, Options{Roots: []Root{testRoot(t)}}); err == nil {
				t.Error("the test root accepts a real report")
			}
			for _, off := range []int{0x08, 0x50, 0x90, 0xC0, 0x180, 0x2A0} {
				flipped := append([]byte(nil), raw...)
				flipped[off] ^= 1
				ev.Report = flipped
				if claims, err := SNP(ev, Options{}); err == nil || claims.Kind != "" {
					t.Errorf("byte %#x may change: %v", off, err)
				}
			}
		})
	}
}

func TestTrusteeEvidenceVerifiesAfterJSON(t *testing.T) {
	ev, err := evidence.FromJSON(evidence.SNP, shared(t, "snp-evidence-v3-genoa.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SNP(ev, Options{}); err != nil {
		t.Error(err)
	}
}

func TestSimulatedReportsNeedTheirRoot(t *testing.T) {
	ev := simulated(t, nil)
	if _, err := SNP(ev, Options{}); err == nil {
		t.Error("AMD's roots accept a simulated report")
	}
	claims, err := SNP(ev, Options{Roots: []Root{testRoot(t)}})
	if err != nil {
		t.Fatal(err)
	}
	if !claims.Simulated || claims.Product != "Milan" || claims.VMPL != 0 || claims.Policy != 0x30000 {
		t.Errorf("claims %+v", claims)
	}
	if _, err := SNP(ev, Options{Roots: []Root{}}); err == nil {
		t.Error("no roots at all accept a report")
	}
	j, err := ev.JSON()
	if err != nil {
		t.Fatal(err)
	}
	wire, err := evidence.FromJSON(evidence.SNP, j)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SNP(wire, Options{Roots: []Root{testRoot(t)}}); err != nil {
		t.Errorf("after JSON: %v", err)
	}
}

func TestClaims(t *testing.T) {
	m := func(s string) (m evidence.Measurement) { copy(m[:], s); return m }
	var data [64]byte
	var host [32]byte
	copy(data[:], "asked for this")
	copy(host[:], "with this manifest")
	for name, c := range map[string]struct {
		change func(r *evidence.SNPReport)
		o      Options
		claims []string
	}{
		"everything as expected":     {nil, Options{ReportData: &data, HostData: &host, Measurements: []evidence.Measurement{m("other"), m("launched that")}}, nil},
		"another report data":        {nil, Options{ReportData: new([64]byte)}, []string{"report_data"}},
		"another host data":          {nil, Options{HostData: new([32]byte)}, []string{"host_data"}},
		"a measurement not listed":   {nil, Options{Measurements: []evidence.Measurement{m("other")}}, []string{"measurement"}},
		"an empty list":              {nil, Options{Measurements: []evidence.Measurement{}}, []string{"measurement"}},
		"several at once":            {nil, Options{ReportData: new([64]byte), HostData: new([32]byte)}, []string{"report_data", "host_data"}},
		"a guest that can be read":   {func(r *evidence.SNPReport) { r.Policy |= evidence.SNPPolicyDebug }, Options{}, []string{"policy.debug"}},
		"a guest that can be moved":  {func(r *evidence.SNPReport) { r.Policy |= evidence.SNPPolicyMigrateMA }, Options{}, []string{"policy.migrate_ma"}},
		"a report from VMPL 2":       {func(r *evidence.SNPReport) { r.VMPL = 2 }, Options{}, []string{"vmpl"}},
		"a TCB better than the cert": {func(r *evidence.SNPReport) { r.ReportedTCB.SNP = 9 }, Options{}, []string{"reported_tcb"}},
		"the certificate of another": {func(r *evidence.SNPReport) { r.ChipID[0] = 1 }, Options{}, []string{"chip_id"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.o.Roots = []Root{testRoot(t)}
			claims, err := SNP(simulated(t, c.change), c.o)
			if claims.Product != "Milan" {
				t.Error("no claims although the signature holds")
			}
			if (err != nil) != (len(c.claims) > 0) {
				t.Fatalf("error %v", err)
			}
			for _, claim := range c.claims {
				if !strings.Contains(err.Error(), claim+": is ") || !strings.Contains(err.Error(), ", want ") {
					t.Errorf("error %q does not tell about %s", err, claim)
				}
			}
		})
	}
}

func TestEvidenceThatProvesNothing(t *testing.T) {
	good := simulated(t, nil)
	with := func(change func(e *evidence.Evidence)) evidence.Evidence {
		e := good
		change(&e)
		return e
	}
	for name, c := range map[string]struct {
		ev   evidence.Evidence
		now  time.Time
		want string
	}{
		"nothing":           {evidence.Evidence{}, time.Time{}, "kind"},
		"a sample":          {evidence.Evidence{Kind: evidence.Sample, Report: make([]byte, 64)}, time.Time{}, "proves nothing"},
		"no certificates":   {with(func(e *evidence.Evidence) { e.Aux = nil }), time.Time{}, "no VCEK certificate"},
		"a broken table":    {with(func(e *evidence.Evidence) { e.Aux = e.Aux[:100] }), time.Time{}, "certificate table"},
		"another's VCEK":    {with(func(e *evidence.Evidence) { e.Aux = table(t, "VCEK", signer(t).Ask.Raw) }), time.Time{}, "VCEK"},
		"a VCEK of no form": {with(func(e *evidence.Evidence) { e.Aux = table(t, "VCEK", []byte("DER")) }), time.Time{}, "VCEK certificate"},
		"an unknown signer": {with(func(e *evidence.Evidence) { e.Report = slices.Clone(e.Report); e.Report[0x48] = 7 << 2 }), time.Time{}, "signer 7"},
		"no signature": {with(func(e *evidence.Evidence) {
			e.Report = slices.Concat(e.Report[:0x2A0], make([]byte, 512))
		}), time.Time{}, "signature"},
		"a product that is not the root's": {simulated(t, func(r *evidence.SNPReport) { r.CPUModel = 0x11 }), time.Time{}, "no root given for product line Genoa"},
		"a processor that nobody knows":    {simulated(t, func(r *evidence.SNPReport) { r.CPUFamily = 0 }), time.Time{}, "no root"},
		"expired certificates":             {good, time.Now().AddDate(200, 0, 0), "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			claims, err := SNP(c.ev, Options{Roots: []Root{testRoot(t)}, Now: c.now})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if claims.Kind != "" {
				t.Error("claims although nothing is proved")
			}
		})
	}
}

func FuzzSNP(f *testing.F) {
	ev := simulated(f, nil)
	root := testRoot(f)
	f.Add(ev.Report, ev.Aux)
	f.Fuzz(func(t *testing.T, report, aux []byte) {
		claims, err := SNP(evidence.Evidence{Kind: evidence.SNP, Report: report, Aux: aux}, Options{Roots: []Root{root}})
		if err == nil && string(claims.ReportData[:14]) != "asked for this" {
			t.Error("a report that was never signed is accepted")
		}
	})
}
