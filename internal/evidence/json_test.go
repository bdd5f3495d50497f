package evidence

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEvidenceJSONIsWhatTrusteeSends(t *testing.T) {
	sample := shared(t, "fixtures/snp/snp-evidence-v3-genoa.json")
	raw := shared(t, "fixtures/snp/snp-report-v3-genoa.bin")
	ev, err := FromJSON(SNP, sample)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ev.Report, raw) {
		t.Error("the report is not the one that was signed")
	}
	certs, err := ParseCerts(ev.Aux)
	if err != nil {
		t.Fatal(err)
	}
	vcek := shared(t, "fixtures/snp/snp-vcek-genoa.der")
	if diff := cmp.Diff([]Cert{{"VCEK", vcek}}, certs); diff != "" {
		t.Error(diff)
	}
	again, err := ev.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal(sample, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(bytes.TrimSpace(sample), again) {
		t.Error("same meaning, but other bytes than serde writes")
	}
}

func TestEvidenceJSONRoundTrips(t *testing.T) {
	for _, c := range reports {
		t.Run(c.file, func(t *testing.T) {
			ev := Evidence{Kind: SNP, Report: shared(t, "fixtures/snp/"+c.file)}
			j, err := ev.JSON()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(j, []byte(`"cert_chain":null`)) {
				t.Error("no certificates must be null")
			}
			if has := bytes.Contains(j, []byte(`"cpuid_fam_id":null`)); has != (c.version == 2) {
				t.Errorf("cpuid_fam_id is null: %t, in version %d", has, c.version)
			}
			again, err := FromJSON(SNP, j)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ev, again); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFromJSONRefuses(t *testing.T) {
	good, err := Evidence{Kind: SNP, Report: report(3, 0x19)}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(old, new string) string {
		s := strings.Replace(string(good), old, new, 1)
		if s == string(good) {
			t.Fatalf("no %q in the sample", old)
		}
		return s
	}
	for name, c := range map[string]struct{ json, want string }{
		"nothing":                    {"", "EOF"},
		"null":                       {"null", "starts with"},
		"an array":                   {"[]", "starts with"},
		"trailing data":              {string(good) + "{}", "after its end"},
		"an unknown member":          {edit(`"vmpl":0`, `"vmpl":0,"vmpm":0`), "unknown"},
		"a member in another case":   {edit(`"vmpl"`, `"Vmpl"`), "unknown"},
		"a member twice":             {edit(`"vmpl":0`, `"vmpl":0,"vmpl":1`), "twice"},
		"a missing member":           {edit(`"vmpl":0,`, ``), "missing"},
		"a null member":              {edit(`"vmpl":0`, `"vmpl":null`), "missing"},
		"a short array":              {edit(`"family_id":[0,`, `"family_id":[`), "15 bytes"},
		"a null in an array":         {edit(`"family_id":[0,`, `"family_id":[null,`), "null"},
		"a number over 255":          {edit(`"family_id":[0,`, `"family_id":[256,`), "uint8"},
		"a negative number":          {edit(`"vmpl":0`, `"vmpl":-1`), "uint32"},
		"a fraction":                 {edit(`"vmpl":0`, `"vmpl":0.5`), "uint32"},
		"base64 for numbers":         {edit(`"family_id":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]`, `"family_id":"AAAAAAAAAAAAAAAAAAAAAA=="`), "family_id"},
		"an empty chain":             {edit(`"cert_chain":null`, `"cert_chain":[]`), "or null"},
		"Turin's fmc elsewhere":      {edit(`"fmc":null`, `"fmc":1`), "fmc"},
		"cpuid missing in version 3": {edit(`"cpuid_fam_id":25`, `"cpuid_fam_id":null`), "cpuid_fam_id"},
		"vectors in version 3":       {edit(`"signature"`, `"launch_mit_vector":0,"signature"`), "launch_mit_vector"},
		"version 6":                  {edit(`"version":3`, `"version":6`), "launch_mit_vector"},
		"two VCEKs": {edit(`"cert_chain":null`,
			`"cert_chain":[{"cert_type":"VCEK","data":[1]},{"cert_type":"VCEK","data":[2]}]`), "twice"},
		"too much": {strings.Repeat(" ", maxJSON) + string(good), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := FromJSON(SNP, []byte(c.json)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	if _, err := FromJSON("tdx", good); err == nil {
		t.Error("an unknown kind is taken")
	}
}

func TestCertificatesOfUnknownKindAreDropped(t *testing.T) {
	j, err := Evidence{Kind: SNP, Report: report(3, 0x19)}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Replace(string(j), `"cert_chain":null`, `"cert_chain":[{"cert_type":{"OTHER":"ecae0c0f-9502-43b1-afa2-0ae2e0d565b6"},"data":[1]},`+
		`{"cert_type":"VLEK","data":[2]},{"cert_type":"Empty","data":[]}]`, 1)
	ev, err := FromJSON(SNP, []byte(s))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := ParseCerts(ev.Aux)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Cert{{"VLEK", []byte{2}}}, certs); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyTheKeyThatSignedIsSent(t *testing.T) {
	for name, c := range map[string]struct{ table, want []Cert }{
		"both sorts":          {[]Cert{{"ARK", []byte{1}}, {"VCEK", []byte{2}}, {"VLEK", []byte{3}}}, []Cert{{"ARK", []byte{1}}, {"VCEK", []byte{2}}}},
		"only the other sort": {[]Cert{{"ARK", []byte{1}}, {"VLEK", []byte{3}}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			aux, err := MarshalCerts(c.table)
			if err != nil {
				t.Fatal(err)
			}
			j, err := Evidence{Kind: SNP, Report: report(3, 0x19), Aux: aux}.JSON()
			if err != nil {
				t.Fatal(err)
			}
			ev, err := FromJSON(SNP, j)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseCerts(ev.Aux)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSampleEvidence(t *testing.T) {
	var data [64]byte
	copy(data[:], "forty-eight bytes of hash are not padded on the wire")
	clear(data[48:])
	ev := Evidence{Kind: Sample, Report: data[:]}
	j, err := ev.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"svn":"1","report_data":"Zm9ydHktZWlnaHQgYnl0ZXMgb2YgaGFzaCBhcmUgbm90IHBhZGRlZCBvbiB0aGUg"}`; string(j) != want {
		t.Errorf("%s, want %s", j, want)
	}
	again, err := FromJSON(Sample, j)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ev, again); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{`{}`, `{"svn":"2","report_data":""}`, `{"svn":"1","report_data":"AAAA"}`, `{"svn":"1","report_data":1}`,
		strings.Replace(string(j), "Zm9y", `Zm9y\n`, 1)} {
		if _, err := FromJSON(Sample, []byte(bad)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func FuzzFromJSON(f *testing.F) {
	j, err := Evidence{Kind: SNP, Report: report(3, 0x19)}.JSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(j))
	if j, err = (Evidence{Kind: SNP, Report: report(5, 0x1A)}).Legacy(); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(j))
	if b, err := os.ReadFile("../../../shared/wire/fixtures/snp/snp-evidence-v3-genoa.json"); err == nil {
		f.Add(b)
	}
	f.Add([]byte(`{"svn":"1","report_data":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, kind := range []Kind{SNP, Sample} {
			ev, err := FromJSON(kind, b)
			if err != nil {
				continue
			}
			for _, form := range []func() (json.RawMessage, error){ev.JSON, ev.Legacy} {
				j, err := form()
				if err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				again, err := FromJSON(kind, j)
				if err != nil || !bytes.Equal(again.Report, ev.Report) {
					t.Errorf("%s does not come back: %v", kind, err)
				}
			}
		}
	})
}
