package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
)

var update = flag.Bool("update", false, "write docs/receipts/vectors anew")

// vectors are receipts for verifiers in other languages, with keys that were made for them and thrown away.
const vectors = "../../docs/receipts/vectors"

var kinds = []evidence.Kind{evidence.SNP, evidence.TDX}

func vector(t testing.TB, kind evidence.Kind, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectors, string(kind), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vectorExpect is what a vector is held against: all that there is.
func vectorExpect(t testing.TB, kind evidence.Kind) Expect {
	t.Helper()
	e := Expect{Manifest: vector(t, kind, "manifest.json"), Strict: true}
	sealed, tar := sha256.Sum256(vector(t, kind, "result.tar.zst.age")), sha256.Sum256(vector(t, kind, "result.tar"))
	e.ResultSHA256, e.TarSHA256 = sealed[:], tar[:]
	if err := json.Unmarshal(vector(t, kind, "measurements.json"), &e.Measurements); err != nil {
		t.Fatal(err)
	}
	var err error
	if kind == evidence.SNP {
		var r Root
		r, err = LoadRoot(vector(t, kind, "root.pem"))
		e.Roots = []Root{r}
	} else {
		e.Intel, err = LoadIntelRoot(vector(t, kind, "root.pem"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// facts are what a verifier in another language must find in a vector.
type facts struct {
	Statement   string `json:"statement_sha256"`
	ReportData  string `json:"report_data"`
	Measurement string `json:"measurement"`
	Completed   string `json:"completed"`
	Exit        *int   `json:"exit"`
}

func factsOf(t testing.TB, receipt []byte) []byte {
	t.Helper()
	r, st, err := result.ParseReceipt(receipt)
	if err != nil {
		t.Fatal(err)
	}
	sum, data := sha256.Sum256(r.Payload), result.ReportData(r.Payload)
	p := st.Predicate
	b, err := json.MarshalIndent(facts{hex.EncodeToString(sum[:]), hex.EncodeToString(data[:]), p.Measurement, p.Completed, p.Workload.Exit}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// TestReceiptVectors: they hold, they say what their facts say, and each refused one is refused for what it is named after.
func TestReceiptVectors(t *testing.T) {
	if *update {
		for _, kind := range kinds {
			writeVector(t, kind)
		}
	}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			receipt, e := vector(t, kind, "receipt.json"), vectorExpect(t, kind)
			v, err := Receipt(receipt, e)
			if err != nil || !v.Proven || !v.Simulated || v.Statement.Predicate.TEE.TCB != v.TCB {
				t.Errorf("%+v, %v", v, err)
			}
			if got, want := factsOf(t, receipt), vector(t, kind, "facts.json"); !bytes.Equal(got, want) {
				t.Errorf("facts\n%swant\n%s", got, want)
			}
			bare, e2 := vector(t, kind, "receipt-bare.json"), e
			e2.Strict = false
			if v, err := Receipt(bare, e2); err != nil || !v.Proven || !strings.Contains(v.Text(), "not checked: collateral") {
				t.Errorf("as the guest made it: %+v, %v", v, err)
			}
			if _, err := Receipt(bare, e); err == nil || !strings.Contains(err.Error(), "collateral: not checked") {
				t.Errorf("as the guest made it, strictly: %v", err)
			}
			refused := refusals(kind)
			files, err := os.ReadDir(filepath.Join(vectors, string(kind), "refused"))
			if err != nil || len(files) != len(refused) {
				t.Fatalf("%d refused receipts, want %d: %v", len(files), len(refused), err)
			}
			for name, c := range refused {
				_, err := Receipt(vector(t, kind, "refused/"+name+".json"), e)
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want %q", name, err, c.want)
				}
			}
		})
	}
}

// A refusal is a receipt that must not pass: how it comes from a good one, and what the reason says.
type refusal struct {
	edit func(r *result.Receipt)
	want string
}

func refusals(kind evidence.Kind) map[string]refusal {
	payload := func(from, to string) func(r *result.Receipt) {
		return func(r *result.Receipt) { r.Payload = bytes.Replace(r.Payload, []byte(from), []byte(to), 1) }
	}
	out := map[string]refusal{
		"another-exit-status": {payload(`"exit":0`, `"exit":1`), "report_data"},
		"another-result":      {payload(`"digest":{"sha256":"`, `"digest":{"sha256":"00`), "64 hex digits"},
		"an-unknown-member":   {payload(`"profile":`, `"more":1,"profile":`), "more"},
		"another-predicate":   {payload("receipt/v1", "receipt/v9"), "predicateType"},
	}
	if kind == evidence.SNP {
		out["crl-altered"] = refusal{func(r *result.Receipt) { r.Collateral.AMD.CRL[60] ^= 1 }, "collateral"}
		out["no-ark"] = refusal{func(r *result.Receipt) { r.Collateral.AMD.Certificates = r.Collateral.AMD.Certificates[:2] }, "collateral"}
		out["of-intel"] = refusal{func(r *result.Receipt) {
			r.Collateral = &result.Collateral{Intel: &result.IntelCollateral{}}
		}, "of another maker"}
	} else {
		out["tcb-info-altered"] = refusal{func(r *result.Receipt) {
			r.Collateral.Intel.TCBInfo = bytes.Replace(r.Collateral.Intel.TCBInfo, []byte("UpToDate"), []byte("upToDate"), 1)
		}, "TCB info: signature does not hold"}
		out["crls-swapped"] = refusal{func(r *result.Receipt) {
			c := r.Collateral.Intel
			c.PCKCRL, c.RootCRL = c.RootCRL, c.PCKCRL
		}, "CRL"}
	}
	return out
}

// encodeAny writes a receipt that may be no good.
func encodeAny(t testing.TB, r *result.Receipt) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func writeVector(t *testing.T, kind evidence.Kind) {
	t.Helper()
	dir := filepath.Join(vectors, string(kind))
	if err := os.MkdirAll(filepath.Join(dir, "refused"), 0o755); err != nil {
		t.Fatal(err)
	}
	chip, err := psp.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	raw := fmt.Appendf(nil, `{"version": 1, "computation_id": "vector-%s", "algorithm": {"uri": "docker://registry.example/linear-regression@sha256:%s"},
  "datasets": [{"uri": "docker://registry.example/houses@sha256:%s"}], "results": {"recipients": [%q]}}`+"\n",
		kind, strings.Repeat("a1", 32), strings.Repeat("d1", 32), id.Recipient())
	if _, err := manifest.Parse(raw, nil); err != nil {
		t.Fatal(err)
	}
	results := t.TempDir()
	if err := os.WriteFile(filepath.Join(results, "answer.txt"), []byte("42\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	if _, err := result.Pack(&sealed, []string{id.Recipient().String()}, result.Tree{Dir: results, Limit: 1 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	opened, err := result.Open(bytes.NewReader(sealed.Bytes()), []age.Identity{id})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	var tar bytes.Buffer
	if _, err := tar.ReadFrom(opened); err != nil {
		t.Fatal(err)
	}

	launch := psp.Launch{Measurement: sha512.Sum384([]byte("the image of this vector")), HostData: manifest.InitdataDigest(manifest.Wrap(raw))}
	receipt := signedReceipt(t, chip, kind, launch, vectorPredicate(kind, raw, launch), sealed.Bytes(), tar.Bytes())
	full, err := Attach(receipt, chip.Collateral(kind))
	if err != nil {
		t.Fatal(err)
	}
	root := chip.RootPEM()
	if kind == evidence.TDX {
		root = chip.TDXRootPEM()
	}
	files := map[string][]byte{
		"manifest.json": raw, "identity.txt": []byte(id.String() + "\n"), "result.tar": tar.Bytes(), "result.tar.zst.age": sealed.Bytes(),
		"receipt-bare.json": receipt, "receipt.json": full, "root.pem": root, "facts.json": factsOf(t, full),
		"measurements.json": fmt.Appendf(nil, "[%q]\n", launch.Measurement),
	}
	for name, c := range refusals(kind) {
		r, _, err := result.ParseReceipt(full)
		if err != nil {
			t.Fatal(err)
		}
		c.edit(r)
		files["refused/"+name+".json"] = encodeAny(t, r)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func vectorPredicate(kind evidence.Kind, raw []byte, launch psp.Launch) result.Predicate {
	sum := sha512.Sum384(raw)
	step := func(at, us int64, name string) result.Event {
		return result.Event{Time: at, Event: result.StepEvent, Step: name, State: result.Done, Micros: us, Profile: "simulation"}
	}
	digest := func(s string) string { return "sha256:" + strings.Repeat(s, 32) }
	return result.Predicate{
		ComputationID: "vector-" + string(kind), Profile: "simulation", ManifestSHA384: hex.EncodeToString(sum[:]),
		InitdataSHA256: hex.EncodeToString(launch.HostData[:]), Binding: result.BindLaunch, Measurement: launch.Measurement.String(),
		Build:  result.Build{Init: "v1.0.0", Go: "go1.26.0", Kernel: "6.12.117", Cmdline: strings.Repeat("c1", 32)},
		TEE:    result.TEE{Kind: string(kind)},
		Sealed: true, Reason: result.OK, ImagePolicy: strings.Repeat("b1", 32),
		Images: []result.Image{
			{Name: "algorithm", URI: "docker://registry.example/linear-regression@" + digest("a1"), Digest: digest("a1"), ConfigDigest: digest("a2"), Layers: []string{digest("a3")}, Encrypted: true, Pinned: true},
			{Name: "datasets[0]", URI: "docker://registry.example/houses@" + digest("d1"), Digest: digest("d1"), ConfigDigest: digest("d2"), Layers: []string{digest("d3")}, Encrypted: true, Pinned: true},
		},
		Workload:  result.Ending{Exit: new(0), Started: 2_000_000, Ended: 3_500_000},
		Resources: result.Resources{MemoryPeak: 34 << 20, CPU: 1_200_000, ProcessesPeak: 3, Pulled: 8_700_000},
		Timeline:  []result.Event{step(100, 100, "mount"), step(1_900_000, 1_000_000, "pull"), step(3_600_000, 1_500_000, "execute")},
		Notes:     []string{"the TEE is simulated: nothing here was confidential", "key broker http://10.0.2.2:8080 was asked over plain http"},
	}
}

// signedReceipt is what PID 1 does in step seal.
func signedReceipt(t testing.TB, chip *psp.PSP, kind evidence.Kind, launch psp.Launch, p result.Predicate, sealed, tar []byte) []byte {
	t.Helper()
	report := func(data [64]byte) evidence.Evidence {
		ev := evidence.Evidence{Kind: kind}
		var err error
		if kind == evidence.SNP {
			if ev.Report, err = chip.Report(launch, data); err == nil {
				ev.Aux, err = chip.Certs()
			}
		} else {
			ev.Report, err = chip.Quote(launch, data)
		}
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	p.Completed = time.Now().UTC().Format(result.TimeFormat)
	p.TEE.TCB = hex.EncodeToString(report([64]byte{}).TCB())
	a, b := sha256.Sum256(sealed), sha256.Sum256(tar)
	st, err := result.NewStatement(p, result.NewSubject(result.SealedName, a[:]), result.NewSubject(result.TarName, b[:]))
	if err != nil {
		t.Fatal(err)
	}
	body, err := report(result.ReportData(st)).JSON()
	if err != nil {
		t.Fatal(err)
	}
	receipt, err := result.NewReceipt(st, string(kind), body)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}
