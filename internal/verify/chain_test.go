package verify

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/kds"
	sevtest "github.com/google/go-sev-guest/testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func TestAMDsOwnRootGivenByHandIsNotSimulated(t *testing.T) {
	for _, name := range []string{"milan_ask_ark_asvk.pem", "genoa_ask_ark_asvk.pem", "turin_ask_ark_asvk.pem"} {
		r, err := LoadRoot(shared(t, name))
		if err != nil || r.Simulated() {
			t.Errorf("%s: simulated %t, %v", name, r.Simulated(), err)
		}
	}
	r, err := LoadRoot(shared(t, "genoa_ask_ark_asvk.pem"))
	if err != nil {
		t.Fatal(err)
	}
	ev := evidence.Evidence{Kind: evidence.SNP, Report: shared(t, "snp-report-v3-genoa.bin"), Aux: table(t, "VCEK", shared(t, "snp-vcek-genoa.der"))}
	if claims, err := SNP(ev, Options{Roots: []Root{testRoot(t), r}}); err != nil || claims.Simulated {
		t.Errorf("simulated %t, %v", claims.Simulated, err)
	}
}

func TestTCBComesFromTheCertificate(t *testing.T) {
	b := &sevtest.AmdSignerBuilder{ProductName: "Milan-B1", CSPID: "test"}
	start := time.Now().Add(-time.Hour)
	b.ArkCreationTime, b.AskCreationTime, b.AsvkCreationTime, b.VcekCreationTime, b.VlekCreationTime = start, start, start, start, start
	parts := kds.TCBParts{BlSpl: 3, SnpSpl: 8, UcodeSpl: 115}
	b.VcekCustom.Extensions = sevtest.CustomExtensions(parts, make([]byte, 64), "", "Milan-B1")
	s, err := b.TestOnlyCertChain()
	if err != nil {
		t.Fatal(err)
	}
	root, err := LoadRoot(rootPEM(s))
	if err != nil {
		t.Fatal(err)
	}
	r := evidence.SNPReport{Version: 3, Policy: 0x30000, SigAlgo: 1, CPUFamily: 0x19, CPUModel: 1, CPUStepping: 1}
	if _, err := SNP(sign(t, s, r), Options{Roots: []Root{root}}); err == nil || !strings.Contains(err.Error(), "reported_tcb") {
		t.Errorf("a report of an older TCB than its certificate: %v", err)
	}
	r.ReportedTCB = evidence.TCB{Bootloader: 3, SNP: 8, Microcode: 115}
	if claims, err := SNP(sign(t, s, r), Options{Roots: []Root{root}}); err != nil || claims.TCB != r.ReportedTCB {
		t.Errorf("%+v: %v", claims.TCB, err)
	}
}

// Turin has one patch level more, in other places, and a chip id of 8 bytes. There is no real certificate to try with.
func TestTurinLayout(t *testing.T) {
	start := time.Now().Add(-time.Hour)
	hwid := []byte("8 bytes!")
	exts := sevtest.CustomExtensions(kds.TCBParts{BlSpl: 1, TeeSpl: 2, SnpSpl: 3, UcodeSpl: 200}, hwid, "", "Turin-B0")
	exts = append(exts, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 9}, Value: []byte{2, 1, 7}})
	b := &sevtest.AmdSignerBuilder{ProductName: "Turin-B0", CSPID: "test", VcekCustom: sevtest.CertOverride{Extensions: exts},
		ArkCreationTime: start, AskCreationTime: start, AsvkCreationTime: start, VcekCreationTime: start, VlekCreationTime: start}
	s, err := b.TestOnlyCertChain()
	if err != nil {
		t.Fatal(err)
	}
	root, err := LoadRoot(rootPEM(s))
	if err != nil {
		t.Fatal(err)
	}
	r := evidence.SNPReport{Version: 4, Policy: 0x30000, SigAlgo: 1, CPUFamily: 0x1A, CPUModel: 0x11,
		ReportedTCB: evidence.TCB{FMC: 7, Bootloader: 1, TEE: 2, SNP: 3, Microcode: 200}}
	copy(r.ChipID[:], hwid)
	claims, err := SNP(sign(t, s, r), Options{Roots: []Root{root}})
	if err != nil || claims.Product != "Turin" {
		t.Errorf("%s: %v", claims.Product, err)
	}
	r.ReportedTCB.FMC = 8
	if _, err := SNP(sign(t, s, r), Options{Roots: []Root{root}}); err == nil || !strings.Contains(err.Error(), "reported_tcb") {
		t.Errorf("an FMC that the certificate does not have: %v", err)
	}
	r.ReportedTCB.FMC, r.ChipID[8] = 7, 1
	if _, err := SNP(sign(t, s, r), Options{Roots: []Root{root}}); err == nil || !strings.Contains(err.Error(), "chip_id") {
		t.Errorf("more chip id than the certificate has: %v", err)
	}
}

func TestEndorsementCertificates(t *testing.T) {
	for _, c := range []struct {
		file   string
		signer evidence.Signer
		want   evidence.TCB
		line   string
	}{
		{"snp-vcek-genoa.der", evidence.VCEK, evidence.TCB{Bootloader: 10, SNP: 23, Microcode: 25}, "Genoa"},
		{"snp-vcek-trustee.der", evidence.VCEK, evidence.TCB{Bootloader: 3, SNP: 8, Microcode: 115}, "Milan"},
		{"snp-vlek-trustee.der", evidence.VLEK, evidence.TCB{Bootloader: 4, SNP: 0x18, Microcode: 0xd9}, "Milan"},
		{"test-vcek-invalid-legacy.der", evidence.VCEK, evidence.TCB{Bootloader: 3, SNP: 10, Microcode: 169}, "Milan"}, // hardware id bare
		{"test-vcek-invalid-new.der", evidence.VCEK, evidence.TCB{Microcode: 30}, "Milan"},                             // and wrapped
	} {
		t.Run(c.file, func(t *testing.T) {
			der := shared(t, c.file)
			e, err := parseEndorsement(c.signer, der)
			if err != nil {
				t.Fatal(err)
			}
			if e.tcb != c.want || e.line() != c.line || (len(e.hwid) == 64) != (c.signer == evidence.VCEK) {
				t.Errorf("%s %+v, %d bytes of hardware id", e.line(), e.tcb, len(e.hwid))
			}
			if _, err := parseEndorsement(1-c.signer, der); err == nil {
				t.Error("taken for the other sort of key")
			}
			if strings.HasPrefix(c.file, "test-vcek-invalid") {
				ev := evidence.Evidence{Kind: evidence.SNP, Report: shared(t, "snp-report-trustee-vcek.bin"), Aux: table(t, "VCEK", der)}
				if _, err := SNP(ev, Options{}); err == nil {
					t.Error("a certificate that nobody signed is accepted")
				}
			}
		})
	}
}

func TestLoadRootRefuses(t *testing.T) {
	s := signer(t)
	block := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	ark, ask := block(s.Ark.Raw), block(s.Ask.Raw)
	other, err := sevtest.DefaultTestOnlyCertChain("Milan-B1", time.Now().Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ pem, want string }{
		"nothing":                {"", "no ARK"},
		"no PEM":                 {"hello", "no PEM"},
		"an ARK alone":           {ark, "no ASK"},
		"an ASK alone":           {ask, "no ARK"},
		"two different ARKs":     {ark + ask + block(other.Ark.Raw), "beside others"},
		"a VCEK for an ASK":      {ark + block(s.Vcek.Raw), "beside others"},
		"something behind":       {ark + ask + "x", "no PEM"},
		"a block that is no key": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"},
		"too much":               {strings.Repeat("\n", maxRootPEM+1), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadRoot([]byte(c.pem))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	milan := shared(t, "milan_ask_ark_asvk.pem")
	first := pem.EncodeToMemory(func() *pem.Block { b, _ := pem.Decode(milan); return b }())
	if _, err := LoadRoot([]byte(ark + string(first))); err == nil || !strings.Contains(err.Error(), "not signed by") {
		t.Errorf("AMD's ASK under the test ARK: %v", err)
	}
}
