package vtpm

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/paravisor"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// startTPM runs a software TPM of its own for the test, started up.
func startTPM(t *testing.T) transport.TPM {
	t.Helper()
	tpm, stop, err := paravisor.Software(t.Context(), t.TempDir())
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("no swtpm here (Debian package swtpm)")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return tpm
}

func snpReport(data [64]byte) ([]byte, error) {
	return (&evidence.SNPReport{Version: 3, ReportData: data}).Marshal(), nil
}

func tdReport(data [64]byte) ([]byte, error) { return append(make([]byte, 1024-64), data[:]...), nil }

// tdQuote wraps what tdReport made; its signature is empty.
func tdQuote(report []byte) ([]byte, error) {
	b := make([]byte, 48)
	b[0], b[2], b[4] = 4, 2, 0x81
	r := evidence.TDXReport{ReportData: [64]byte(report[1024-64:])}
	return append(append(b, r.Marshal()...), 0, 0, 0, 0), nil
}

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func provision(t *testing.T, o paravisor.Options) *paravisor.Paravisor {
	t.Helper()
	p, err := paravisor.Provision(startTPM(t), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	onSNP = paravisor.Options{Kind: evidence.AzSNPvTPM, Hardware: snpReport}
	onTDX = paravisor.Options{Kind: evidence.AzTDXvTPM, Hardware: tdReport}
	data  = [64]byte{1, 47: 2, 63: 3} // the vTPM takes 48 bytes of it
)

func TestSNP(t *testing.T) {
	p := provision(t, onSNP)
	d, err := New(p, evidence.AzSNPvTPM, serve(t, &paravisor.IMDS{VCEK: []byte("certificate")}))
	if err != nil {
		t.Fatal(err)
	}
	digest := [32]byte{7}
	if register, err := d.Measure(t.Context(), digest); err != nil || register != evidence.PCR8 {
		t.Fatalf("%q, %v", register, err)
	}
	if _, err := d.Measure(t.Context(), digest); err == nil || !strings.Contains(err.Error(), "before this boot") {
		t.Errorf("a second time: %v", err)
	}
	// Twice: the index of user-data is made by the first and used by the second.
	for range 2 {
		data[0]++
		ev, err := d.Evidence(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Kind != evidence.AzSNPvTPM || string(ev.Aux) != "certificate" {
			t.Errorf("%s, aux %q", ev.Kind, ev.Aux)
		}
		if r, err := evidence.ParseHCL(ev.Report); err != nil || !bytes.HasPrefix(r.UserData, data[:48]) {
			t.Errorf("user-data %x, %v", r.UserData, err)
		}
		want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
		if ev.TPM.PCRs[8] != want || ev.TPM.PCRs[14] != want || len(ev.TPM.Signature) != 256 {
			t.Errorf("PCR 8 %x, PCR 14 %x", ev.TPM.PCRs[8], ev.TPM.PCRs[14])
		}
	}
	if _, err := New(p, evidence.AzTDXvTPM, ""); !errors.Is(err, tee.ErrNotFound) {
		t.Errorf("the other TEE: %v", err)
	}
}

func TestTDX(t *testing.T) {
	d, err := New(provision(t, onTDX), evidence.AzTDXvTPM, serve(t, &paravisor.IMDS{Quote: tdQuote}))
	if err != nil {
		t.Fatal(err)
	}
	ev, err := d.Evidence(t.Context(), data)
	if err != nil || ev.Kind != evidence.AzTDXvTPM || ev.TPM == nil {
		t.Fatalf("%v, %v", ev.Kind, err)
	}
	if _, err := evidence.ParseTDX(ev.Aux); err != nil {
		t.Error(err)
	}
}

// TestIndexOfAnotherSize: one that somebody else made is replaced.
func TestIndexOfAnotherSize(t *testing.T) {
	p := provision(t, onSNP)
	_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(nvUserData), NameAlg: tpm2.TPMAlgSHA256, DataSize: 64,
		Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true, NT: tpm2.TPMNTOrdinary},
	})}.Execute(p)
	if err != nil {
		t.Fatal(err)
	}
	c := chip{p}
	if err := c.setUserData(data[:48]); err != nil {
		t.Fatal(err)
	}
	if size, err := c.size(nvUserData); err != nil || size != 48 {
		t.Errorf("%d bytes, %v", size, err)
	}
}

func TestStaleReport(t *testing.T) {
	p := provision(t, onSNP)
	d, err := New(p, evidence.AzSNPvTPM, "")
	if err != nil {
		t.Fatal(err)
	}
	p.Stale = 1
	why := errors.New("step is over")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, why)
	defer cancel()
	if _, err := d.Evidence(ctx, data); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

func TestDetection(t *testing.T) {
	if _, err := New(startTPM(t), evidence.AzSNPvTPM, ""); !errors.Is(err, tee.ErrNotFound) {
		t.Errorf("a TPM without the index: %v", err)
	}
	p := provision(t, onSNP)
	other, err := paravisor.HCLReport(onSNP, mustAK(t, p), nil)
	if err != nil {
		t.Fatal(err)
	}
	other[0x4c0+8] = 3 // the type
	for _, b := range [][]byte{nil, []byte("HCLA"), other} {
		if err := p.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := New(p, evidence.AzSNPvTPM, ""); err == nil || errors.Is(err, tee.ErrNotFound) {
			t.Errorf("garbage %.8q passes for absence: %v", b, err)
		}
	}
}

func mustAK(t testing.TB, p *paravisor.Paravisor) *rsa.PublicKey {
	t.Helper()
	raw, err := chip{p}.report()
	if err != nil {
		t.Fatal(err)
	}
	r, err := evidence.ParseHCL(raw)
	if err != nil {
		t.Fatal(err)
	}
	return r.AK
}

func TestIMDSRefuses(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"redirect":  func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) },
		"too long":  func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxIMDS+1)) },
		"no JSON":   func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) },
		"no PEM":    func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"vcekCert":"x"}`)) },
		"not found": http.NotFound,
	} {
		if b, err := newIMDS(serve(t, h)).vcek(t.Context()); err == nil {
			t.Errorf("%s: took %q", name, b)
		}
	}
}
