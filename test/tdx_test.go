package test

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tdx-guest/abi"
	tdxverify "github.com/google/go-tdx-guest/verify"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

var quoter builtImage

// TestTDXQuote: one kernel plays either TEE. As TDX its provider has the name, the files and the bytes of the real one,
// and both Google's verifier and ours take the quote under the test root and refuse it under Intel's.
func TestTDXQuote(t *testing.T) {
	t.Parallel()
	dir, info := quoter.get(t, mkimage.Options{Profile: cmdline.Simulation, InitPackage: "./test/quoter"})
	pspDir := filepath.Join(work, "psp")
	chip, err := psp.New(pspDir)
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[evidence.Kind]string{
		evidence.SNP: "provider sev_guest\nfiles auxblob generation inblob outblob privlevel privlevel_floor provider\n",
		evidence.TDX: "provider tdx_guest\nfiles generation inblob outblob provider\n",
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			cfg := qemu.Config{
				Shape:  qemu.Shape{VCPUs: 1, MemoryMiB: 256},
				Kernel: filepath.Join(dir, mkimage.KernelFile), Initrd: filepath.Join(dir, mkimage.InitramfsFile), Cmdline: info.Cmdline,
				Dir: filepath.Join(work, strings.ReplaceAll(t.Name(), "/", "-")), Simulated: true, TEE: kind, PSPDir: pspDir,
				HostData: [32]byte{4, 5, 6}, Timeout: vmLimit,
			}
			rep, err := qemu.Run(t.Context(), cfg)
			if rep != nil {
				t.Logf("to reproduce:\n%s", rep.Command)
			}
			if err != nil {
				t.Fatal(err)
			}
			console, err := os.ReadFile(rep.ConsolePath)
			if err != nil {
				t.Fatal(err)
			}
			if rep.End != qemu.PoweredOff {
				t.Errorf("the VM ended as %q, want %q", rep.End, qemu.PoweredOff)
			}
			said, raw := quoterSaid(string(console))
			if said != want {
				t.Fatalf("the guest saw %q, want %q; its console:\n%s", said, want, console)
			}
			if kind == evidence.TDX {
				var data [64]byte // what quoter asks about
				for i := range data {
					data[i] = byte(i + 1)
				}
				checkQuote(t, raw, chip, rep.Measurement, cfg.HostData, data)
			} else if r, err := evidence.ParseSNP(raw); err != nil || r.Measurement != rep.Measurement {
				t.Errorf("SNP report of %s (%v), want %s", r.Measurement, err, rep.Measurement)
			}
		})
	}
}

// TestTDX is a whole run whose TEE is TDX: bound by MRCONFIGID, nothing secret, and a receipt with a quote.
func TestTDX(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.cfg.TEE = evidence.TDX
	r.run()
	r.ends("", result.OK, 0)
	r.read(filepath.Join(r.open(), "results/ran"))

	receipt, statement, err := result.ParseReceipt([]byte(r.read(r.report.ReceiptPath)))
	if err != nil {
		t.Fatal(err)
	}
	if b := statement.Predicate.Binding; b != result.BindLaunch {
		t.Errorf("the receipt says binding %q, want %q", b, result.BindLaunch)
	}
	ev, err := evidence.FromJSON(evidence.Kind(receipt.Evidence.Kind), receipt.Evidence.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	if ev.Kind != evidence.TDX || len(ev.EventLog) > 0 {
		t.Errorf("evidence of kind %s with %d bytes of log, want %s and none", ev.Kind, len(ev.EventLog), evidence.TDX)
	}
	checkQuote(t, ev.Report, r.world.PSP, r.report.Measurement, r.cfg.HostData, result.ReportData(receipt.Payload))

	root, err := verify.LoadIntelRoot(r.world.PSP.TDXRootPEM())
	if err != nil {
		t.Fatal(err)
	}
	want := verify.Expect{Intel: root, Measurements: []evidence.Measurement{r.report.Measurement}, Manifest: r.manifest}
	if v, err := verify.Receipt([]byte(r.read(r.report.ReceiptPath)), want); err != nil || !v.Proven || !v.Simulated {
		t.Errorf("the receipt under the test root: %+v, %v", v, err)
	}
	want.Intel = nil
	if v, err := verify.Receipt([]byte(r.read(r.report.ReceiptPath)), want); err == nil || v != nil {
		t.Error("the receipt of a simulated TDX guest holds under Intel's root")
	}
}

// quoterSaid returns the guest's lines but the last, and the report that is in that.
func quoterSaid(console string) (said string, report []byte) {
	for line := range strings.Lines(console) {
		_, text, ok := strings.Cut(strings.TrimSpace(line), "quoter: ")
		if !ok {
			continue
		}
		if digits, ok := strings.CutPrefix(text, "report "); ok {
			report, _ = hex.DecodeString(digits)
			continue
		}
		said += text + "\n"
	}
	return said, report
}

func checkQuote(t *testing.T, raw []byte, chip *psp.PSP, m evidence.Measurement, initdata [32]byte, data [64]byte) {
	t.Helper()
	q, err := evidence.ParseTDX(raw)
	if err != nil {
		t.Fatal(err)
	}
	var config [48]byte
	copy(config[:], initdata[:])
	if q.Report.MRTD != m || q.Report.ReportData != data || q.Report.MRConfigID != config {
		t.Errorf("the quote has MRTD %x, report data %x, MRCONFIGID %x; want %s, %x, %x", q.Report.MRTD, q.Report.ReportData, q.Report.MRConfigID, m, data, config)
	}
	proto, err := abi.QuoteToProto(raw)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(chip.TDXRootPEM())
	if err := tdxverify.TdxQuote(proto, &tdxverify.Options{TrustedRoots: pool}); err != nil {
		t.Errorf("Google's verifier with the test root: %v", err)
	}
	if err := tdxverify.TdxQuote(proto, tdxverify.DefaultOptions()); err == nil {
		t.Error("Google's verifier takes a simulated quote under Intel's root")
	}

	block, _ := pem.Decode(chip.TDXRootPEM())
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	ev := evidence.Evidence{Kind: evidence.TDX, Report: raw}
	claims, err := verify.Evidence(ev, verify.Options{Intel: []*x509.Certificate{root}, ReportData: &data, Measurements: []evidence.Measurement{m}})
	if err != nil {
		t.Errorf("our verifier with the test root: %v", err)
	}
	if !claims.Simulated || claims.Register != evidence.MRConfigID || !bytes.Equal(claims.InitData, config[:]) {
		t.Errorf("claims: simulated=%v, %s %x, want %s %x", claims.Simulated, claims.Register, claims.InitData, evidence.MRConfigID, config)
	}
	if _, err := verify.Evidence(ev, verify.Options{ReportData: &data}); err == nil {
		t.Error("our verifier takes a simulated quote under Intel's root")
	}
}
