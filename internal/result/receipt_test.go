package result

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func predicate() Predicate {
	return Predicate{
		ComputationID: "c-1", Completed: "2026-11-24T12:00:00Z", Profile: "simulation",
		Build: Build{Init: "v0.1.0", Go: "go1.26.0", Kernel: "6.12.117", Cmdline: strings.Repeat("c0", 32), EventLog: strings.Repeat("e0", 32)},
		TEE:   TEE{Kind: "snp", TCB: "04000000000016d5"}, ImagePolicy: strings.Repeat("b0", 32),
		Resources:      Resources{MemoryPeak: 1 << 20, CPU: 2500, ProcessesPeak: 3, OOMKills: 1, Pulled: 4096},
		ManifestSHA384: strings.Repeat("ab", 48), InitdataSHA256: strings.Repeat("cd", 32),
		Binding: BindLaunch, Measurement: strings.Repeat("ef", 48), Sealed: true, Reason: Workload,
		Images: []Image{{
			Name: "algorithm", URI: "docker://r.example/<a>&b:1", Digest: "sha256:" + strings.Repeat("11", 32),
			ConfigDigest: "sha256:" + strings.Repeat("22", 32), Layers: []string{"sha256:" + strings.Repeat("33", 32)}, Encrypted: true,
		}},
		Workload: Ending{Exit: new(7), Started: 10, Ended: 20},
		Timeline: events[:2],
		Notes:    []string{"algorithm was named by a tag"},
	}
}

func forms() []Subject {
	return []Subject{NewSubject(SealedName, bytes.Repeat([]byte{0x44}, 32)), NewSubject(TarName, bytes.Repeat([]byte{0x55}, 32))}
}

func statement(t testing.TB) []byte {
	b, err := NewStatement(predicate(), forms()...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The golden files are the format's test vectors for verifiers in other languages.
func TestStatementAndReportDataVectors(t *testing.T) {
	s := statement(t)
	d := ReportData(s)
	for name, got := range map[string]string{"statement.json": string(s), "report-data.hex": hex.EncodeToString(d[:]) + "\n"} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s (-update rewrites it):\n%s", name, d)
		}
	}
}

func TestReceiptReadsBack(t *testing.T) {
	s := statement(t)
	b, err := NewReceipt(s, "snp", json.RawMessage(`{"attestation_report": {"a": [1, 2]}, "cert_chain":null}`))
	if err != nil {
		t.Fatal(err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	for _, form := range [][]byte{b, indented.Bytes()} {
		r, st, err := ParseReceipt(form)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Payload, s) || r.Evidence.Kind != "snp" {
			t.Errorf("payload or kind changed: %+v", r)
		}
		if d := cmp.Diff(predicate(), st.Predicate); d != "" {
			t.Error(d)
		}
		if st.Subject[0].Name != SealedName || st.Subject[0].Digest.SHA256 != strings.Repeat("44", 32) {
			t.Errorf("subject: %+v", st.Subject)
		}
	}
}

func TestNewStatementOfAnUnsealedResult(t *testing.T) {
	p := predicate()
	p.Sealed, p.Images, p.Timeline, p.Notes = false, nil, nil, nil
	b, err := NewStatement(p, NewSubject(ClearName, make([]byte, 32)), forms()[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"name":"result.tar.zst"`, `"images":[]`, `"timeline":[]`, `"notes":[]`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s\nlacks %s", b, want)
		}
	}
}

func TestNewStatementReportsAllProblems(t *testing.T) {
	p := predicate()
	p.Profile, p.Binding, p.Measurement, p.ManifestSHA384, p.Reason = "debug", "maybe", "00", strings.Repeat("AB", 48), "fine"
	p.Images[0].Layers[0], p.Workload.Exit, p.Workload.Started = "sha1:00", new(-1), 30
	p.Timeline = []Event{{Event: "x"}}
	p.Completed, p.Build.Cmdline, p.Build.EventLog, p.TEE, p.ImagePolicy, p.Resources.CPU = "2026-11-24T12:00:00.5Z", "", "0", TEE{"SNP", "00"}, "b", -1
	_, err := NewStatement(p, NewSubject(SealedName, []byte("short")))
	for _, want := range []string{"profile", "binding", "measurement", "manifest_sha384", "reason", "images[0].layers[0]", "workload.exit", "ended at", "timeline[0]", "subject[0].digest", "subject: a sealed result", "want result.tar as the last",
		"completed", "cmdline_sha256", "event_log_sha256", "tee.kind", "tee.tcb", "image_policy_sha256", "resources"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: says nothing of %s", err, want)
		}
	}
	p = predicate()
	p.ComputationID = "\xff"
	if _, err := NewStatement(p, forms()...); err == nil {
		t.Error("a computation id that is not UTF-8 was taken")
	}
}

// TestFilesInAStatement: one is told from an image by its content, and is never half of each.
func TestFilesInAStatement(t *testing.T) {
	sum := "sha256:" + strings.Repeat("55", 32)
	for name, c := range map[string]struct {
		entry Image
		want  string // "": taken
	}{
		"a file":               {Image{Digest: sum, Content: sum}, ""},
		"neither":              {Image{Digest: sum}, "images[0].config_digest"},
		"of no digest":         {Image{Content: sum}, "images[0].digest"},
		"of another hash":      {Image{Digest: sum, Content: "sha512:00"}, "images[0].content_digest"},
		"a file with a config": {Image{Digest: sum, Content: sum, ConfigDigest: sum}, "images[0]: is a file"},
		"a file with layers":   {Image{Digest: sum, Content: sum, Layers: []string{sum}}, "images[0]: is a file"},
	} {
		p := predicate()
		p.Images = []Image{c.entry}
		b, err := NewStatement(p, forms()...)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil && (strings.Contains(string(b), "config_digest") || !strings.Contains(string(b), `"content_digest":"`+sum)) {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func TestParseReceiptRefuses(t *testing.T) {
	good, err := NewReceipt(statement(t), "snp", json.RawMessage(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	with := func(edit func(*Receipt)) []byte {
		r, _, err := ParseReceipt(good)
		if err != nil {
			t.Fatal(err)
		}
		edit(r)
		return encode(r)
	}
	payload := func(from, to string) []byte {
		return with(func(r *Receipt) { r.Payload = bytes.Replace(r.Payload, []byte(from), []byte(to), 1) })
	}
	for name, b := range map[string][]byte{
		"trailing bytes":                append(bytes.Clone(good), '{'),
		"a member in another case":      bytes.Replace(good, []byte("payloadType"), []byte("payloadtype"), 1),
		"a member twice":                bytes.Replace(good, []byte(`{"payloadType"`), []byte(`{"payload":"","payloadType"`), 1),
		"another payload type":          with(func(r *Receipt) { r.PayloadType = "text/plain" }),
		"a kind that is no word":        with(func(r *Receipt) { r.Evidence.Kind = "../snp" }),
		"evidence that is no object":    with(func(r *Receipt) { r.Evidence.Evidence = json.RawMessage(`[]`) }),
		"a statement of another type":   payload("Statement/v1", "Statement/v0"),
		"another predicate":             payload("receipt/v1", "receipt/v2"),
		"a statement with a member new": payload(`"sealed"`, `"seal":1,"sealed"`),
		"over 4 MiB":                    append(bytes.Clone(good), bytes.Repeat([]byte(" "), MaxReceipt)...),
		"nothing":                       {},
	} {
		if _, _, err := ParseReceipt(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzParseReceipt(f *testing.F) {
	b, err := NewReceipt(statement(f), "snp", json.RawMessage(`{"a":1}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","evidence":{"kind":"snp","evidence":{}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, s, err := ParseReceipt(b)
		if err != nil {
			return
		}
		if _, _, err := ParseReceipt(encode(r)); err != nil || len(s.Subject) == 0 {
			t.Fatalf("%q does not read back: %v", b, err)
		}
	})
}
