package psp

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// chip is made once: its RSA keys take seconds.
var chip = sync.OnceValues(func() (*PSP, error) {
	dir, err := os.MkdirTemp("", "psp")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return New(dir)
})

func testChip(t testing.TB) *PSP {
	t.Helper()
	p, err := chip()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	testLaunch = Launch{Measurement: evidence.Measurement{1, 2, 3}, HostData: [32]byte{4, 5, 6}, ReportID: [32]byte{7}}
	testData   = [64]byte{8, 9, 10}
)

// roots reads RootPEM as a verifier does that has never seen this package.
func roots(t *testing.T, root []byte) map[string][]*trust.AMDRootCerts {
	t.Helper()
	r := trust.AMDRootCertsProduct("Milan")
	r.ProductCerts = new(trust.ProductCerts)
	for _, dst := range []**x509.Certificate{&r.ProductCerts.Ask, &r.ProductCerts.Ark} {
		block, rest := pem.Decode(root)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		*dst, root = c, rest
	}
	if len(root) != 0 {
		t.Errorf("%d bytes behind the two certificates", len(root))
	}
	return map[string][]*trust.AMDRootCerts{"Milan": {r}}
}

func attestation(t *testing.T, report, certs []byte) *spb.Attestation {
	t.Helper()
	proto, err := abi.ReportToProto(report)
	if err != nil {
		t.Fatal(err)
	}
	table := new(abi.CertTable)
	if err := table.Unmarshal(certs); err != nil {
		t.Fatal(err)
	}
	return &spb.Attestation{Report: proto, CertificateChain: table.Proto()}
}

func TestReportIsTakenUnderItsRootAndRefusedUnderAMDs(t *testing.T) {
	p := testChip(t)
	report, err := p.Report(testLaunch, testData)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := p.Certs()
	if err != nil {
		t.Fatal(err)
	}
	a := attestation(t, report, certs)
	ours := &verify.Options{DisableCertFetching: true, TrustedRoots: roots(t, p.RootPEM())}
	if err := verify.SnpAttestation(a, ours); err != nil {
		t.Errorf("with our root: %v", err)
	}
	if err := verify.SnpAttestation(a, &verify.Options{DisableCertFetching: true}); err == nil {
		t.Error("AMD's roots take a simulated report")
	}
	// validate checks what verify does not: TCB and chip id against the certificate, policy, VMPL, host data.
	vmpl := 0
	err = validate.SnpAttestation(a, &validate.Options{
		GuestPolicy: abi.SnpPolicy{SMT: true},
		ReportData:  testData[:],
		HostData:    testLaunch.HostData[:],
		Measurement: testLaunch.Measurement[:],
		ChipID:      p.chipID[:],
		VMPL:        &vmpl,
	})
	if err != nil {
		t.Errorf("validate: %v", err)
	}
	for _, off := range []int{0x50, 0x90, 0xC0} { // report data, measurement, host data
		bad := bytes.Clone(report)
		bad[off] ^= 1
		if err := verify.SnpAttestation(attestation(t, bad, certs), ours); err == nil {
			t.Errorf("a changed byte at %#x is taken", off)
		}
	}
}

func TestReportHoldsWhatItIsGiven(t *testing.T) {
	p := testChip(t)
	raw, err := p.Report(testLaunch, testData)
	if err != nil {
		t.Fatal(err)
	}
	r, err := evidence.ParseSNP(raw)
	if err != nil {
		t.Fatal(err)
	}
	if r.Measurement != testLaunch.Measurement || r.HostData != testLaunch.HostData || r.ReportID != testLaunch.ReportID || r.ReportData != testData {
		t.Errorf("report is %+v", r)
	}
	if r.Policy&evidence.SNPPolicyDebug != 0 || r.VMPL != 0 || r.ChipID == [64]byte{} {
		t.Errorf("policy %#x, VMPL %d, chip %x", r.Policy, r.VMPL, r.ChipID)
	}
}

func TestChipIsKeptInItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	var chips [3]*PSP
	var wg sync.WaitGroup
	for i := range chips {
		wg.Go(func() {
			var err error
			if chips[i], err = New(dir); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	again, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range chips {
		if !bytes.Equal(p.RootPEM(), again.RootPEM()) || !bytes.Equal(p.TDXRootPEM(), again.TDXRootPEM()) || p.chipID != again.chipID {
			t.Error("two chips in one directory")
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("directory holds %v, %v", left, err)
	}
	for _, f := range left {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", f.Name(), info.Mode(), err)
		}
	}
	if bytes.Equal(again.RootPEM(), testChip(t).RootPEM()) {
		t.Error("two directories have one chip")
	}
}

func TestBrokenChipFileIsRefusedWithTheFix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, chainFile)
	good := testChip(t)
	certs := append(append(certPEM(good.ark), certPEM(good.ask)...), certPEM(good.vcek)...)
	for name, content := range map[string][]byte{
		"empty":             nil,
		"no key":            certs,
		"two certificates":  append(certPEM(good.ark), certPEM(good.ask)...),
		"larger than bound": bytes.Repeat([]byte("x"), maxChainFile+1),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := New(dir); err == nil || !strings.Contains(err.Error(), "remove the file") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func request(vmpl uint32) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte("TSM1"), vmpl), testData[:]...)
}

// serve starts Serve and returns how to connect. The listener is closed, and Serve has returned, when the test ends.
func serve(t *testing.T) func() net.Conn {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- testChip(t).Serve(ctx, l, Launch{Measurement: testLaunch.Measurement}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func() net.Conn {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
}

func blob(t *testing.T, r io.Reader) []byte {
	t.Helper()
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.LittleEndian.Uint32(n[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestServeAnswersTheKernel(t *testing.T) {
	dial := serve(t)
	var ids [2][32]byte
	for i := range ids {
		c := dial()
		if _, err := c.Write(request(0)); err != nil {
			t.Fatal(err)
		}
		report, certs := blob(t, c), blob(t, c)
		if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
			t.Errorf("%d bytes behind the answer, %v", len(rest), err)
		}
		c.Close()
		r, err := evidence.ParseSNP(report)
		if err != nil {
			t.Fatal(err)
		}
		if r.ReportData != testData || r.Measurement != testLaunch.Measurement {
			t.Errorf("report is %+v", r)
		}
		a := attestation(t, report, certs)
		if err := verify.SnpAttestation(a, &verify.Options{DisableCertFetching: true, TrustedRoots: roots(t, testChip(t).RootPEM())}); err != nil {
			t.Error(err)
		}
		ids[i] = r.ReportID
	}
	if ids[0] != ids[1] || ids[0] == [32]byte{} {
		t.Errorf("report ids of one guest are %x", ids)
	}
}

func TestServeRefuses(t *testing.T) {
	dial := serve(t)
	for name, q := range map[string][]byte{
		"a request from VMPL 1":     request(1),
		"a request from VMPL 2^31":  request(1 << 31),
		"another magic":             append([]byte("TSM2"), request(0)[4:]...),
		"a request that is cut off": request(0)[:71],
		"a quote that is cut off":   append([]byte("TDX1"), testData[:63]...),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial()
			defer c.Close()
			if _, err := c.Write(q); err != nil {
				t.Fatal(err)
			}
			c.(*net.UnixConn).CloseWrite()
			if b, err := io.ReadAll(c); len(b) != 0 {
				t.Errorf("answered with %d bytes, %v", len(b), err)
			}
		})
	}
}

func TestServeEndsWithClientsThatHang(t *testing.T) {
	dial := serve(t)
	for range maxRequests + 2 { // more than are served at once; cleanup of serve waits for Serve
		c := dial()
		defer c.Close()
	}
}

func FuzzReadRequest(f *testing.F) {
	f.Add(request(0))
	f.Add(request(3))
	f.Add(append([]byte("TDX1"), testData[:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		kind, data, err := readRequest(r)
		if err != nil {
			return
		}
		again := append([]byte("TSM1\x00\x00\x00\x00"), data[:]...)
		if kind == evidence.TDX {
			again = append([]byte("TDX1"), data[:]...)
		}
		if read := b[:len(b)-r.Len()]; !bytes.Equal(read, again) {
			t.Errorf("%x is taken", read)
		}
	})
}
