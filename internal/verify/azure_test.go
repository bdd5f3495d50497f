package verify

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// azureRecorded is when all certificates of the recorded Azure evidence were good.
var azureRecorded = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// TestRecordedAzure: real evidence of every version holds under the makers' roots, and nothing of it that is signed may
// change.
func TestRecordedAzure(t *testing.T) {
	for _, c := range []struct {
		file    string
		kind    evidence.Kind
		data    string // hex
		carries bool   // the hardware's report is over the report data
	}{
		{"az-snp-vtpm/evidence-v0.json", evidence.AzSNPvTPM, hex.EncodeToString([]byte("challenge")), false},
		{"az-snp-vtpm/evidence-v1.json", evidence.AzSNPvTPM, hex.EncodeToString([]byte("challenge")), false},
		{"az-snp-vtpm/evidence-v2.json", evidence.AzSNPvTPM, "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef", true},
		{"az-snp-vtpm/evidence-genoa.json", evidence.AzSNPvTPM, "0218488bae25d2509232bf676f1a66a30d7372add909109b36016ef136f2938ca05475f8b46094de6b64270ea35d950f", false},
		{"az-tdx-vtpm/evidence-v0.json", evidence.AzTDXvTPM, hex.EncodeToString([]byte("challenge")), false},
		{"az-tdx-vtpm/evidence-v1.json", evidence.AzTDXvTPM, hex.EncodeToString([]byte("challenge")), false},
	} {
		t.Run(c.file, func(t *testing.T) {
			raw := fixture(t, c.file)
			ev, err := evidence.FromJSON(c.kind, raw)
			if err != nil {
				t.Fatal(err)
			}
			o := Options{Now: azureRecorded, ReportData: new([64]byte)}
			hex.Decode(o.ReportData[:], []byte(c.data))
			claims, err := Evidence(ev, o)
			if err != nil {
				t.Fatal(err)
			}
			stale := slices.ContainsFunc(claims.Unproven, func(s string) bool { return strings.Contains(s, "of this moment") })
			if claims.Kind != c.kind || claims.Simulated || claims.Register != evidence.PCR8 || claims.PCRs == nil || stale == c.carries {
				t.Errorf("claims %+v", claims)
			}
			annotated := claims.Trustee()
			if annotated["report_data"] != c.data || annotated["init_data"] != hex.EncodeToString(claims.PCRs[8][:]) || annotated[string(c.kind)] == nil {
				t.Errorf("Trustee would not say %v", annotated)
			}
			o.ReportData[0] ^= 1
			if _, err := Evidence(ev, o); !fails(err, "report_data") {
				t.Errorf("another report data: %v", err)
			}
			o.ReportData = nil
			other := evidence.AzSNPvTPM
			if c.kind == other {
				other = evidence.AzTDXvTPM
			}
			mixed := ev
			mixed.Kind = other
			if _, err := Evidence(mixed, o); err == nil {
				t.Errorf("taken as %s", other)
			}
			for name, o := range map[string]Options{
				"an SNP test root": {Now: o.Now, Roots: []Root{testRoot(t)}, Intel: []*x509.Certificate{}},
				"no roots":         {Now: o.Now, Roots: []Root{}, Intel: []*x509.Certificate{}},
			} {
				if _, err := Evidence(ev, o); err == nil {
					t.Errorf("under %s: taken", name)
				}
			}
			refusedWhenFlipped(t, ev, o)
		})
	}
}

// refusedWhenFlipped turns bits of everything that is signed, or that a signature is in.
func refusedWhenFlipped(t *testing.T, ev evidence.Evidence, o Options) {
	t.Helper()
	flip := func(what string, from, to, step int, part func(e *evidence.Evidence) []byte) {
		for i := from; i < to; i += step {
			e, tpm := ev, *ev.TPM
			e.Report, e.Aux, e.TPM = bytes.Clone(ev.Report), bytes.Clone(ev.Aux), &tpm
			tpm.Message, tpm.Signature = bytes.Clone(ev.TPM.Message), bytes.Clone(ev.TPM.Signature)
			part(&e)[i] ^= 1
			if claims, err := Evidence(e, o); err == nil || claims.Kind != "" {
				t.Errorf("byte %d of %s may change: %v", i, what, err)
				return
			}
		}
	}
	flip("the TPM's message", 0, len(ev.TPM.Message), 1, func(e *evidence.Evidence) []byte { return e.TPM.Message })
	flip("the TPM's signature", 0, len(ev.TPM.Signature), 17, func(e *evidence.Evidence) []byte { return e.TPM.Signature })
	for i := range ev.TPM.PCRs {
		flip(fmt.Sprintf("PCR %d", i), 0, 32, 31, func(e *evidence.Evidence) []byte { return e.TPM.PCRs[i][:] })
	}
	h, err := evidence.ParseHCL(ev.Report)
	if err != nil {
		t.Fatal(err)
	}
	flip("the HCL report's data", 0x4D4, 0x4D4+len(h.VarData), 29, func(e *evidence.Evidence) []byte { return e.Report })
	if ev.Kind == evidence.AzSNPvTPM {
		flip("the SNP report", 0x20, 0x20+0x2A0, 13, func(e *evidence.Evidence) []byte { return e.Report })
		flip("the SNP report's signature", 0x20+0x2A0, 0x20+0x2A0+48, 7, func(e *evidence.Evidence) []byte { return e.Report })
		flip("the VCEK", 0, len(ev.Aux), 41, func(e *evidence.Evidence) []byte { return e.Aux })
	} else {
		flip("the TD quote", 0, 48+584, 13, func(e *evidence.Evidence) []byte { return e.Aux })
		flip("the TD quote's signature", 48+584+4, 48+584+4+128, 5, func(e *evidence.Evidence) []byte { return e.Aux })
	}
}

func fails(err error, claim string) bool {
	e, ok := errors.AsType[*ClaimError](err)
	return ok && e.Claim == claim
}

// The files of a recorded VM by themselves, as Azure's own tool stores them.
func TestRecordedAzureParts(t *testing.T) {
	for kind, aux := range map[evidence.Kind]func(dir string) []byte{
		evidence.AzSNPvTPM: func(dir string) []byte {
			block, _ := pem.Decode(fixture(t, dir+"/vcek.pem"))
			return block.Bytes
		},
		evidence.AzTDXvTPM: func(dir string) []byte { return fixture(t, dir+"/td-quote.bin") },
	} {
		dir := string(kind)
		var q struct {
			Signature, Message string
			PCRs               [24]string
		}
		if err := json.Unmarshal(fixture(t, dir+"/tpm-quote-v1.json"), &q); err != nil {
			t.Fatal(err)
		}
		tpm := new(evidence.TPMQuote)
		tpm.Signature, _ = hex.DecodeString(q.Signature)
		tpm.Message, _ = hex.DecodeString(q.Message)
		for i, s := range q.PCRs {
			hex.Decode(tpm.PCRs[i][:], []byte(s))
		}
		ev := evidence.Evidence{Kind: kind, Report: fixture(t, dir+"/hcl-report.bin"), Aux: aux(dir), TPM: tpm}
		if _, err := Evidence(ev, Options{Now: azureRecorded, ReportData: &[64]byte{'c', 'h', 'a', 'l', 'l', 'e', 'n', 'g', 'e'}}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		for _, name := range []string{"snp/test-vcek-invalid-legacy.der", "snp/test-vcek-invalid-new.der", "snp/snp-vcek-trustee.der"} {
			ev.Aux = fixture(t, name)
			if _, err := Evidence(ev, Options{Now: azureRecorded}); err == nil {
				t.Errorf("%s with %s: taken", kind, name)
			}
		}
	}
}

var akKeys = sync.OnceValues(func() (keys [2]*rsa.PrivateKey, err error) {
	for i := range keys {
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return keys, err
		}
	}
	return keys, nil
})

// A paravisor makes evidence link by link, so that each can be broken.
type paravisor struct {
	kind     evidence.Kind
	named    *rsa.PrivateKey // the key in the variable data
	signs    *rsa.PrivateKey // the key that the TPM signs with
	userData []byte          // nil: none
	vouched  []byte          // what the hardware's report is over; nil: the variable data
	nonce    []byte
	pcrs     [24][32]byte
	digest   []byte // in the quote; nil: of the PCRs
	snp      evidence.SNPReport
	tdx      *platform
	spoil    func(ev *evidence.Evidence)
}

func newParavisor(t testing.TB, kind evidence.Kind) *paravisor {
	t.Helper()
	keys, err := akKeys()
	if err != nil {
		t.Fatal(err)
	}
	p := &paravisor{kind: kind, named: keys[0], signs: keys[0], nonce: bytes.Repeat([]byte{7}, 48), tdx: newPlatform(t)}
	p.userData = append(bytes.Clone(p.nonce), make([]byte, 16)...)
	p.snp = evidence.SNPReport{Version: 3, Policy: 0x30000, SigAlgo: 1, CPUFamily: 0x19, CPUModel: 1, CPUStepping: 1, Measurement: evidence.Measurement{5}}
	p.tdx.report.MRTD = evidence.Measurement{5}
	p.pcrs[8] = sha256.Sum256(append(make([]byte, 32), initdata[:]...))
	return p
}

// initdata is the digest of the document in PCR 8.
var initdata = sha256.Sum256([]byte("initdata"))

func (p *paravisor) evidence(t testing.TB) evidence.Evidence {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	vars := map[string]any{"keys": []any{map[string]string{"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": b64(p.named.N.Bytes())}}}
	if p.userData != nil {
		vars["user-data"] = hex.EncodeToString(p.userData)
	}
	data, err := json.Marshal(vars)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if p.vouched == nil {
		p.vouched = sum[:]
	}
	ev := evidence.Evidence{Kind: p.kind, TPM: &evidence.TPMQuote{PCRs: p.pcrs}}
	hw, kind := make([]byte, 1184), uint32(4)
	if p.kind == evidence.AzSNPvTPM {
		kind = 2
		copy(p.snp.ReportData[:], p.vouched)
		signed := sign(t, signer(t), p.snp)
		hw, ev.Aux = signed.Report, signer(t).Vcek.Raw
	} else {
		copy(p.tdx.report.ReportData[:], p.vouched)
		ev.Aux = p.tdx.quote(t).Report
	}
	ev.Report = append(append([]byte("HCLA"), make([]byte, 28)...), hw...)
	for _, n := range []uint32{uint32(len(data)) + 20, 1, kind, 1, uint32(len(data))} {
		ev.Report = binary.LittleEndian.AppendUint32(ev.Report, n)
	}
	ev.Report = append(ev.Report, data...)

	pcrs := sha256.New()
	for _, v := range p.pcrs {
		pcrs.Write(v[:])
	}
	if p.digest == nil {
		p.digest = pcrs.Sum(nil)
	}
	be := binary.BigEndian
	m := be.AppendUint16(be.AppendUint32(nil, 0xFF544347), 0x8018)
	m = be.AppendUint16(be.AppendUint16(m, 0), uint16(len(p.nonce))) // nobody's name
	m = append(append(m, p.nonce...), make([]byte, 25)...)           // clock and firmware
	m = be.AppendUint16(be.AppendUint32(m, 1), 0x000B)
	m = append(m, 3, 0xFF, 0xFF, 0xFF)
	m = append(be.AppendUint16(m, uint16(len(p.digest))), p.digest...)
	h := sha256.Sum256(m)
	ev.TPM.Message = m
	if ev.TPM.Signature, err = rsa.SignPKCS1v15(nil, p.signs, crypto.SHA256, h[:]); err != nil {
		t.Fatal(err)
	}
	if p.spoil != nil {
		p.spoil(&ev)
	}
	return ev
}

// TestForgedAzure: every link holds, or nothing is claimed.
func TestForgedAzure(t *testing.T) {
	keys, err := akKeys()
	if err != nil {
		t.Fatal(err)
	}
	data := [64]byte(append(bytes.Repeat([]byte{7}, 48), bytes.Repeat([]byte{9}, 16)...))
	for name, c := range map[string]struct {
		set   func(p *paravisor, o *Options)
		want  string // "": taken
		claim bool   // the links hold, a claim does not
	}{
		"a good one": {func(_ *paravisor, o *Options) {
			o.ReportData, o.InitData, o.Measurements = &data, initdata[:], []evidence.Measurement{{5}}
		}, "", false},
		"the makers' roots":                 {func(_ *paravisor, o *Options) { o.Roots, o.Intel = nil, nil }, "certificate", false},
		"a TPM with another key":            {func(p *paravisor, _ *Options) { p.signs = keys[1] }, "not signed by the key", false},
		"data with another key":             {func(p *paravisor, _ *Options) { p.named = keys[1] }, "not signed by the key", false},
		"data that the hardware never saw":  {func(p *paravisor, _ *Options) { p.vouched = make([]byte, 32) }, "the hardware signed", false},
		"PCRs that are not quoted":          {func(p *paravisor, _ *Options) { p.digest = make([]byte, 32) }, "the PCRs have", false},
		"no TPM quote":                      {func(p *paravisor, _ *Options) { p.spoil = func(ev *evidence.Evidence) { ev.TPM = nil } }, "missing", false},
		"too much data":                     {func(p *paravisor, _ *Options) { p.nonce = make([]byte, 49) }, "want 1 to 48", false},
		"no data":                           {func(p *paravisor, _ *Options) { p.nonce = nil }, "want 1 to 48", false},
		"no report of the hardware":         {func(p *paravisor, _ *Options) { p.spoil = func(ev *evidence.Evidence) { ev.Aux = nil } }, "", false},
		"other report data":                 {func(_ *paravisor, o *Options) { o.ReportData = &[64]byte{1} }, "report_data", true},
		"a shorter report data":             {func(p *paravisor, o *Options) { p.nonce, o.ReportData = p.nonce[:47], &data }, "report_data", true},
		"another initdata":                  {func(_ *paravisor, o *Options) { o.InitData = make([]byte, 32) }, "init_data", true},
		"an empty PCR 8":                    {func(p *paravisor, o *Options) { p.pcrs[8], o.InitData = [32]byte{}, initdata[:] }, "PCR 8 is zero", true},
		"PCR 8 without extending it":        {func(p *paravisor, o *Options) { p.pcrs[8], o.InitData = initdata, initdata[:] }, "init_data", true},
		"an initdata of SHA-384":            {func(_ *paravisor, o *Options) { o.InitData = make([]byte, 48) }, "must use sha256", true},
		"host data, which it has not":       {func(_ *paravisor, o *Options) { o.HostData = new([32]byte) }, "host_data", true},
		"another measurement":               {func(_ *paravisor, o *Options) { o.Measurements = []evidence.Measurement{{6}} }, "measurement", true},
		"a paravisor that can be debugged":  {func(p *paravisor, _ *Options) { p.snp.Policy |= 1 << 19; p.tdx.report.Attributes = 1 }, "debug", true},
		"a report from below the paravisor": {func(p *paravisor, _ *Options) { p.snp.VMPL = 2; p.tdx.report.SeamAttributes = 1 }, "", true},
	} {
		for _, kind := range []evidence.Kind{evidence.AzSNPvTPM, evidence.AzTDXvTPM} {
			t.Run(name+" on "+string(kind), func(t *testing.T) {
				p := newParavisor(t, kind)
				o := Options{Roots: []Root{testRoot(t)}, Intel: []*x509.Certificate{p.tdx.root}}
				if kind == evidence.AzTDXvTPM {
					o.Now = recorded
				}
				c.set(p, &o)
				claims, err := Evidence(p.evidence(t), o)
				good := name == "a good one"
				if good && (err != nil || !claims.Simulated || !claims.Holds(initdata)) || !good && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("%+v, error %v; want %q", claims, err, c.want)
				}
				if _, claim := errors.AsType[*ClaimError](err); claim != c.claim || (claims.Kind != "") != (good || c.claim) {
					t.Errorf("claims of kind %q, error %v", claims.Kind, err)
				}
			})
		}
	}
}

func TestAzureSaysWhatItDoesNotProve(t *testing.T) {
	p := newParavisor(t, evidence.AzSNPvTPM)
	claims, err := Evidence(p.evidence(t), Options{Roots: []Root{testRoot(t)}})
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(claims.Unproven, "\n")
	if !strings.Contains(all, "paravisor") || strings.Contains(all, "of this moment") {
		t.Errorf("%s", all)
	}
	for name, data := range map[string][]byte{"none": nil, "other": make([]byte, 48)} {
		p = newParavisor(t, evidence.AzSNPvTPM)
		p.userData = data
		claims, err := Evidence(p.evidence(t), Options{Roots: []Root{testRoot(t)}})
		if err != nil || !strings.Contains(strings.Join(claims.Unproven, "\n"), "of this moment") {
			t.Errorf("user-data %s: %q, %v", name, claims.Unproven, err)
		}
	}
	if _, err := Azure(evidence.Evidence{Kind: evidence.SNP}, Options{}); err == nil {
		t.Error("another kind")
	}
}

func FuzzAzure(f *testing.F) {
	p := newParavisor(f, evidence.AzSNPvTPM)
	ev := p.evidence(f)
	f.Add(ev.Report, ev.Aux, ev.TPM.Message, ev.TPM.Signature)
	root := testRoot(f)
	f.Fuzz(func(t *testing.T, report, aux, message, signature []byte) {
		e := evidence.Evidence{Kind: evidence.AzSNPvTPM, Report: report, Aux: aux, TPM: &evidence.TPMQuote{Message: message, Signature: signature, PCRs: p.pcrs}}
		if claims, err := Evidence(e, Options{Roots: []Root{root}}); err == nil && !claims.Holds(initdata) {
			t.Error("evidence that was never signed is accepted")
		}
	})
}
