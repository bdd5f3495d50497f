package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

const verifyHelp = `
usage: ampoule verify [flags] RECEIPT
       ampoule verify --evidence FILE --kind snp|tdx|az-snp-vtpm|az-tdx-vtpm|sample [flags]

Checks the hardware's signature on a receipt and everything that it binds, offline, and prints what ran, on which data, on
which hardware, and what of it is proven. With --measurements the launch measurement must be one of those; with --manifest
and --result the receipt must be about them. What is not given is printed as not checked, or fails with --strict. --result
takes the result as delivered or its tar in clear; with --identity it is decrypted, and what is inside checked too.
--test-root accepts a simulated TEE, which proves nothing to anyone else.

Certificates and revocation lists must have been good when the run completed, as the receipt says, or --at. With --collect
AMD or Intel is first asked for what RECEIPT lacks to be verified in years, and that is added to the file; ampoule run does so
for simulated TEEs. Without it nothing is fetched. docs/RECEIPTS.md says what each check proves.

With --evidence the evidence of a TEE is judged by itself: Trustee's JSON of it, or the raw report with --cert (VCEK or
VLEK) or the raw quote with --eventlog (CCEL). Debug guests, VMPL other than 0 and a TCB other than the certificate's
are refused always, and so is evidence without something that was asked for. What the platform does not prove is printed.

--collateral names a folder of files to judge evidence with. For tdx and az-tdx-vtpm these are answers of Intel's provisioning
service: tcb_info.json, qe_identity.json, tcb_signing_chain.pem, pck_crl.der and root_ca_crl.der; a platform that is
not UpToDate is refused then, unless --tcb-status takes it. For snp they are VCEK and VLEK certificates for reports that
bring none. Nothing is fetched, unless --fetch asks AMD for the VCEK of such a report, or Intel about
the platform of a quote.

Exits with 3 when anything is refused.

Examples:
  ampoule verify --measurements measurements.json --manifest job.json --result result.tar.zst.age receipt.json
  ampoule verify --collect --json receipt.json
  ampoule verify --evidence quote.bin --kind tdx --eventlog ccel.bin --report-data 6e6f…
  ampoule verify --evidence evidence.json --kind az-snp-vtpm --init-data initdata.toml --json`

func verifyVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("verify", verifyHelp, std)
	measurements := fs.String("measurement", "", "launch measurements that are accepted, 96 hex digits each, with commas")
	list := fs.String("measurements", "", "file with more of them: measurements.json of ampoule measure, or a JSON list")
	root := fs.String("test-root", "", "PEM file with the root of a simulated TEE (test-root.pem)")
	asJSON := fs.Bool("json", false, "print the facts as JSON")
	var r receiptFlags
	r.vendors = verify.TheirOwn
	fs.StringVar(&r.manifest, "manifest", "", "the manifest that was sent")
	fs.StringVar(&r.result, "result", "", "the result as delivered (result.tar.zst.age), or its tar in clear")
	fs.StringVar(&r.identity, "identity", "", "file with age identities, or an ssh private key, that opens --result")
	fs.BoolVar(&r.strict, "strict", false, "refuse where anything was not checked")
	fs.BoolVar(&r.collect, "collect", false, "ask AMD or Intel for what RECEIPT lacks to be verified offline, and add it to the file")
	f := evidenceFlags{kds: verify.AMDKDS, pcs: verify.IntelPCS}
	fs.StringVar(&f.file, "evidence", "", "evidence to judge in place of a receipt, - for standard input")
	fs.StringVar(&f.kind, "kind", "", "its kind: snp, tdx, az-snp-vtpm, az-tdx-vtpm or sample")
	fs.StringVar(&f.cert, "cert", "", "certificate of the key that signed a raw SNP report, PEM or DER")
	fs.StringVar(&f.eventlog, "eventlog", "", "CC event log of a raw TDX quote")
	fs.StringVar(&f.reportData, "report-data", "", "report data that the evidence must hold, hex; zeros are added to 64 bytes")
	fs.StringVar(&f.initData, "init-data", "", "initdata document that the guest must be bound to: its digest in hex, or its file")
	fs.StringVar(&f.collateral, "collateral", "", "folder with Intel's answers about platforms, or with AMD's certificates")
	fs.StringVar(&f.tcbStatus, "tcb-status", "", "statuses taken besides UpToDate, as OutOfDate, with commas")
	fs.BoolVar(&f.fetch, "fetch", false, "ask AMD for the VCEK of a report that brings none, or Intel for what --collateral holds of a quote")
	fs.StringVar(&f.at, "at", "", "date at which certificates must have been good, as 2026-01-31, or now; of evidence today, of a receipt when it was completed")
	sample := fs.Bool("allow-sample", false, "take sample evidence, which anybody can make up")
	receipts := 1
	if slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		return name == "--evidence" || name == "-evidence"
	}) {
		receipts = 0
	}
	if err := parse(fs, args, receipts); err != nil {
		return err
	}
	if (f.file != "") != (f.kind != "") {
		return usagef("--evidence FILE and --kind go together")
	}
	var want verify.Expect
	for m := range strings.SplitSeq(*measurements, ",") {
		if m == "" {
			continue
		}
		p, err := evidence.ParseMeasurement(m)
		if err != nil {
			return usagef("--%v; want 96 hex digits", err)
		}
		want.Measurements = append(want.Measurements, p)
	}
	if f.file == "" && (f != evidenceFlags{kds: f.kds, pcs: f.pcs, at: f.at, tcbStatus: f.tcbStatus} || *sample) {
		return usagef("flags about evidence go with --evidence; a receipt brings its own")
	}
	if f.file != "" && (r != receiptFlags{vendors: r.vendors}) {
		return usagef("flags about receipts do not go with --evidence")
	}
	var err error
	if want.Roots, want.Intel, err = testRoots(std, *root); err != nil {
		return err
	}
	if *list != "" {
		more, image, err := readMeasurements(std, *list)
		if err != nil {
			return err
		}
		want.Image = image
		want.Measurements = append(want.Measurements, more...)
	}
	if f.file != "" {
		return verifyEvidence(ctx, std, f, want, *sample, *asJSON)
	}
	if want.Now, err = moment(f.at); err != nil {
		return err
	}
	if f.tcbStatus != "" {
		want.TCBStatus = strings.Split(f.tcbStatus, ",")
	}
	r.file, r.simulated = fs.Arg(0), *root != ""
	return r.verify(ctx, std, want, *asJSON)
}

// testRoots reads the root of a simulated processor, of either maker; without a file both are nil, which means the
// makers' own. With one, nothing of the other maker is taken.
func testRoots(std stdio, file string) (amd []verify.Root, intel []*x509.Certificate, err error) {
	if file == "" {
		return nil, nil, nil
	}
	b, err := std.readFile(file, 1<<20)
	if err != nil {
		return nil, nil, err
	}
	r, amdErr := verify.LoadRoot(b)
	if amdErr == nil {
		return []verify.Root{r}, []*x509.Certificate{}, nil
	}
	intel, intelErr := verify.LoadIntelRoot(b)
	if intelErr == nil {
		return []verify.Root{}, intel, nil
	}
	return nil, nil, fmt.Errorf("--test-root %s: no root of a simulated SNP or TDX processor: %w; %w", file, amdErr, intelErr)
}

func hashFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}
