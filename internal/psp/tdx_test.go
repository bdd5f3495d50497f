package psp

import (
	"bytes"
	"crypto/x509"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/validate"
	"github.com/google/go-tdx-guest/verify"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func testQuote(t *testing.T) []byte {
	t.Helper()
	q, err := testChip(t).Quote(testLaunch, testData)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func tdxRoots(t *testing.T, p *PSP) *verify.Options {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p.TDXRootPEM()) {
		t.Fatal("no root")
	}
	return &verify.Options{TrustedRoots: pool}
}

func TestQuoteIsTakenUnderItsRootAndRefusedUnderIntels(t *testing.T) {
	raw := testQuote(t)
	t.Logf("quote: %d bytes", len(raw))
	q, err := abi.QuoteToProto(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify.TdxQuote(q, tdxRoots(t, testChip(t))); err != nil {
		t.Errorf("with our root: %v", err)
	}
	if err := verify.TdxQuote(q, verify.DefaultOptions()); err == nil {
		t.Error("Intel's root takes a simulated quote")
	}
	other, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := verify.TdxQuote(q, tdxRoots(t, other)); err == nil {
		t.Error("the root of another simulation takes the quote")
	}
	// validate checks what verify does not, such as bits that no module ever sets or clears.
	var config [48]byte
	copy(config[:], testLaunch.HostData[:])
	err = validate.TdxQuote(q, &validate.Options{TdQuoteBodyOptions: validate.TdQuoteBodyOptions{
		MrTd: testLaunch.Measurement[:], MrConfigID: config[:], ReportData: testData[:], MinimumTeeTcbSvn: make([]byte, 16),
	}})
	if err != nil {
		t.Errorf("validate: %v", err)
	}
	for what, at := range map[string]int{"header": 30, "MRTD": 48 + 136, "report data": 48 + 520, "enclave report": 48 + 584 + 4 + 134 + 64} {
		bad := bytes.Clone(raw)
		bad[at] ^= 1
		if err := verify.RawTdxQuote(bad, tdxRoots(t, testChip(t))); err == nil {
			t.Errorf("%s: a changed byte at %d is taken", what, at)
		}
	}
}

func TestQuoteHoldsWhatItIsGiven(t *testing.T) {
	q, err := evidence.ParseTDX(testQuote(t))
	if err != nil {
		t.Fatal(err)
	}
	r := q.Report
	if r.MRTD != testLaunch.Measurement || r.ReportData != testData || [32]byte(r.MRConfigID[:32]) != testLaunch.HostData || [16]byte(r.MRConfigID[32:]) != [16]byte{} {
		t.Errorf("quote is %+v", r)
	}
	if r.Attributes&evidence.TDXAttributesDebug != 0 || r.RTMR != [4][48]byte{} || r.MRSignerSeam != [48]byte{} {
		t.Errorf("attributes %#x, RTMRs %x, MRSIGNERSEAM %x", r.Attributes, r.RTMR, r.MRSignerSeam)
	}
}

func TestPCKCertificateDescribesThePlatform(t *testing.T) {
	exts, err := pcs.PckCertificateExtensions(testChip(t).tdx.pck)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(exts.TCB.CPUSvn, cpuSVN[:]) || !bytes.Equal(exts.TCB.CPUSvnComponents, cpuSVN[:]) || exts.TCB.PCESvn != pceSVN ||
		exts.FMSPC != "00806f050000" || exts.PCEID != "0000" || len(exts.PPID) != 32 {
		t.Errorf("extensions are %+v", exts)
	}
}

func TestServeQuotes(t *testing.T) {
	c := serve(t)()
	defer c.Close()
	if _, err := c.Write(append([]byte("TDX1"), testData[:]...)); err != nil {
		t.Fatal(err)
	}
	quote := blob(t, c)
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
		t.Errorf("%d bytes behind the answer, %v", len(rest), err)
	}
	if err := verify.RawTdxQuote(quote, tdxRoots(t, testChip(t))); err != nil {
		t.Error(err)
	}
}

func TestBrokenTDXChainIsRefusedWithTheFix(t *testing.T) {
	dir := t.TempDir()
	p := testChip(t)
	// A file of the other chain has the right form, and is not one.
	snp, err := appendKey(bytes.Join([][]byte{certPEM(p.ark), certPEM(p.ask), certPEM(p.vcek)}, nil), p.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range [][]byte{nil, snp} {
		if err := os.WriteFile(filepath.Join(dir, chainFile), snp, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, tdxChainFile), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(dir); err == nil || !strings.Contains(err.Error(), tdxChainFile) || !strings.Contains(err.Error(), "remove the file") {
			t.Errorf("error %v", err)
		}
	}
}
