package evidence

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMembersOfSev40CoverTheReport(t *testing.T) {
	sum := func(list []member40) (n int) {
		for _, m := range list {
			n += m.size
		}
		return n
	}
	if n := sum(report40); n != SNPReportSize {
		t.Errorf("%d bytes, want %d", n, SNPReportSize)
	}
	for _, m := range report40 {
		if m.of != nil && sum(m.of) != m.size {
			t.Errorf("%s: %d bytes, want %d", m.name, sum(m.of), m.size)
		}
	}
}

// TestSev40 has the members where the report has them. Later versions and Turin keep their bytes under other names.
func TestSev40(t *testing.T) {
	for version := uint32(2); version <= 5; version++ {
		for _, family := range []uint8{0x19, 0x1A} {
			raw := report(version, family)
			aux, err := MarshalCerts([]Cert{{"ARK", []byte{1}}, {"VCEK", []byte{2}}})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range []Evidence{{Kind: SNP, Report: raw}, {Kind: SNP, Report: raw, Aux: aux}} {
				j, err := e.Legacy()
				if err != nil {
					t.Fatal(err)
				}
				back, err := FromJSON(SNP, j)
				if diff := cmp.Diff(e, back); err != nil || diff != "" {
					t.Errorf("version %d, family %#x: %v\n%s", version, family, err, diff)
				}
				if e.Aux == nil && !bytes.HasSuffix(j, []byte(`,"cert_chain":null}`)) {
					t.Error("no certificates must be null")
				}
			}
		}
	}
	j, err := Evidence{Kind: SNP, Report: report(5, 0x19)}.Legacy()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"attestation_report":{"version":5,"guest_svn":1,"policy":196608,"family_id":[0,`,
		`"sig_algo":1,"current_tcb":{"bootloader":1,"tee":2,"_reserved":[0,0,0,0],"snp":3,"microcode":4},"plat_info":3,"_author_key_en":0,"_reserved_0":0,"report_data":[`,
		`"_reserved_1":[25,2,1,0,0,`,
		`"current_build":40,"current_minor":55,"current_major":1,"_reserved_2":0,"committed_build":39,"committed_minor":55,"committed_major":1,"_reserved_3":0,"launch_tcb":{`,
		`"_reserved_4":[1,0,0,0,0,0,0,128,7,`,
		`"signature":{"r":[0,`,
	} {
		if !bytes.Contains(j, []byte(want)) {
			t.Errorf("no %s", want)
		}
	}
	for _, name := range []string{"key_info", "cpuid_fam_id", "launch_mit_vector", "fmc", `"current":`} {
		if bytes.Contains(j, []byte(name)) {
			t.Errorf("%s is a member of later versions", name)
		}
	}
}

func TestSev40OfRealReports(t *testing.T) {
	for _, c := range reports {
		e := Evidence{Kind: SNP, Report: shared(t, "fixtures/snp/"+c.file)}
		j, err := e.Legacy()
		if err != nil {
			t.Fatal(err)
		}
		back, err := FromJSON(SNP, j)
		if diff := cmp.Diff(e, back); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", c.file, err, diff)
		}
	}
}

func TestBadSev40(t *testing.T) {
	good, err := Evidence{Kind: SNP, Report: report(3, 0x19)}.Legacy()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"a member of later versions": {`"plat_info"`, `"key_info":0,"plat_info"`, "unknown"},
		"a missing member":           {`"_reserved_0":0,`, ``, "missing"},
		"a member in another case":   {`"vmpl"`, `"VMPL"`, "unknown"},
		"a member twice":             {`"vmpl":0`, `"vmpl":0,"vmpl":0`, "twice"},
		"a build over 255":           {`"current_build":40`, `"current_build":256`, "8 bits"},
		"a version over 32 bits":     {`"version":3`, `"version":4294967299`, "32 bits"},
		"a negative number":          {`"vmpl":0`, `"vmpl":-1`, "vmpl"},
		"a short array":              {`"_reserved_1":[25,`, `"_reserved_1":[`, "23 bytes"},
		"a null":                     {`"vmpl":0`, `"vmpl":null`, "missing"},
		"reserved bytes":             {`"_reserved_0":0`, `"_reserved_0":1`, "0x4c"},
		"an empty chain":             {`"cert_chain":null`, `"cert_chain":[]`, "or null"},
		"a TCB as numbers":           {`"launch_tcb":{`, `"launch_tcb":[],"x":{`, "unknown"},
	} {
		s := strings.Replace(string(good), c.from, c.to, 1)
		if s == string(good) {
			t.Fatalf("no %q in the sample", c.from)
		}
		if _, err := FromJSON(SNP, []byte(s)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
	if _, err := (Evidence{Kind: SNP, Report: make([]byte, SNPReportSize)}).Legacy(); err == nil {
		t.Error("zeros are sent")
	}
}

// TestOtherKindsHaveOneForm: Legacy of these is JSON.
func TestOtherKindsHaveOneForm(t *testing.T) {
	quote := append(testQuoteHeader(), make([]byte, 588)...)
	for _, e := range []Evidence{{Kind: TDX, Report: quote}, {Kind: Sample, Report: make([]byte, 64)}, {Kind: "sgx"}} {
		a, err1 := e.JSON()
		b, err2 := e.Legacy()
		if !slices.Equal(a, b) || fmt.Sprint(err1) != fmt.Sprint(err2) {
			t.Errorf("%s: %s and %s, %v and %v", e.Kind, a, b, err1, err2)
		}
	}
}
