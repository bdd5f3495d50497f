package kbsserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

func TestPolicyFiles(t *testing.T) {
	m, d := strings.Repeat("ab", 48), strings.Repeat("cd", 32)
	rule := `{"measurements":["` + m + `"],"init_data":["` + d + `"]}`
	p, err := ParsePolicy([]byte(`{"default/key/algo-key":` + rule + `,"*/key/?":` + rule + `}`))
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParsePolicy(again)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, back); diff != "" {
		t.Error(diff)
	}
	claims := &verify.Claims{Kind: evidence.SNP,
		Measurement: evidence.Measurement(bytes.Repeat([]byte{0xab}, 48)), Register: evidence.HostData, InitData: bytes.Repeat([]byte{0xcd}, 32),
	}
	for resource, want := range map[string]bool{
		"default/key/algo-key": true, "other/key/a": true, "other/key/ab": false, "a/b/key/a": false, "key/a": false, "default/key/algo-key/x": false,
	} {
		if v := p.judge(resource, claims); v.allow != want {
			t.Errorf("%s: %+v, want allowed %t", resource, v, want)
		}
	}
	with := func(members string) string {
		return `{"a/b/c":{"measurements":["` + m + `"],"init_data":["` + d + `"],` + members + `}}`
	}
	for name, c := range map[string]struct{ policy, want string }{
		"nothing":                 {"", "EOF"},
		"a list":                  {"[]", "starts with"},
		"trailing data":           {"{}{}", "after its end"},
		"a resource twice":        {`{"a/b/c":` + rule + `,"a/b/c":` + rule + `}`, "twice"},
		"two segments":            {`{"a/b":` + rule + `}`, "repository/type/tag"},
		"an empty segment":        {`{"a//c":` + rule + `}`, "repository/type/tag"},
		"a broken glob":           {`{"a/b/[":` + rule + `}`, "syntax error"},
		"an unknown member":       {`{"a/b/c":{"measurements":[],"init_data":[],"svn":1}}`, "svn"},
		"a member in capitals":    {`{"a/b/c":{"Measurements":[],"init_data":[]}}`, "Measurements"},
		"no measurements":         {`{"a/b/c":{"init_data":[]}}`, "measurements"},
		"a short measurement":     {`{"a/b/c":{"measurements":["ab"],"init_data":[]}}`, "1 bytes, want 48"},
		"a short digest":          {`{"a/b/c":{"measurements":[],"init_data":["ab"]}}`, "1 bytes, want 32"},
		"a digest of no hex":      {`{"a/b/c":{"measurements":[],"init_data":["xy"]}}`, "xy"},
		"several things at once":  {`{"a":` + rule + `,"b":{}}`, "\"b\": "},
		"null for a measurement":  {`{"a/b/c":{"measurements":[null],"init_data":[]}}`, "[0]: is null"},
		"null for a list":         {`{"a/b/c":{"measurements":null,"init_data":[]}}`, "is null"},
		"an unknown kind":         {with(`"tee":["sev"]`), "sev"},
		"no kind":                 {with(`"tee":[]`), "empty"},
		"an unknown level":        {with(`"min_tcb":{"ucode":1}`), "ucode"},
		"a level of 9 bits":       {with(`"min_tcb":{"snp":256}`), "256"},
		"no level":                {with(`"min_tcb":{}`), "no level"},
		"a level of null":         {with(`"min_tcb":{"snp":null}`), "is null"},
		"no module":               {with(`"mr_seam":[]`), "empty"},
		"a fifth RTMR":            {with(`"rtmr":{"4":["` + m + `"]}`), "want 0 to 3"},
		"an RTMR of 32 bytes":     {with(`"rtmr":{"1":["` + d + `"]}`), "32 bytes, want 48"},
		"a register by two names": {with(`"pcr":{"04":["` + d + `"]}`), "want 0 to 23"},
		"a register twice":        {with(`"pcr":{"4":["` + d + `"],"4":["` + d + `"]}`), "twice"},
		"a register with nothing": {with(`"pcr":{"4":[]}`), "empty"},
		"no register":             {with(`"pcr":{}`), "no register"},
		"a word for a bool":       {with(`"allow_simulated":"yes"`), "allow_simulated"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParsePolicy([]byte(c.policy)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestAllProblemsOfAPolicyAtOnce(t *testing.T) {
	_, err := ParsePolicy([]byte(`{"a/b":{"measurements":["ab"],"tee":["sev"],"x":1}}`))
	for _, want := range []string{"repository/type/tag", "init_data: missing", "1 bytes, want 48", "sev", `"x": unknown`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

func TestRules(t *testing.T) {
	fill := func(b byte) string { return strings.Repeat(fmt.Sprintf("%02x", b), 48) }
	half := func(b byte) string { return strings.Repeat(fmt.Sprintf("%02x", b), 32) }
	measurement := evidence.Measurement(bytes.Repeat([]byte{0xab}, 48))
	snp := &verify.Claims{Kind: evidence.SNP, Measurement: measurement, Register: evidence.HostData,
		InitData: bytes.Repeat([]byte{0xcd}, 32), TCB: evidence.TCB{Bootloader: 3, SNP: 8, Microcode: 115}, Simulated: true}
	tdx := &verify.Claims{Kind: evidence.TDX, Measurement: measurement, Register: evidence.MRConfigID,
		InitData: append(bytes.Repeat([]byte{0xcd}, 32), make([]byte, 16)...), TDX: &evidence.TDXReport{MRSeam: [48]byte(bytes.Repeat([]byte{1}, 48))}}
	onAzure := *snp
	azure := &onAzure
	azure.Kind, azure.Register = evidence.AzSNPvTPM, evidence.PCR8
	azure.InitData = evidence.InRegister(evidence.PCR8, bytes.Repeat([]byte{0xcd}, 32))
	azure.PCRs = &[24][32]byte{4: [32]byte(bytes.Repeat([]byte{4}, 32))}
	onRealAzure := onAzure
	realAzure := &onRealAzure
	realAzure.Simulated = false
	rtmr1 := `,"rtmr":{"1":["` + fill(0) + `"]}`
	sample := &verify.Claims{Kind: evidence.Sample, Simulated: true}

	for name, c := range map[string]struct {
		rule   string
		claims *verify.Claims
		want   verdict
	}{
		"snp":                      {``, snp, verdict{allow: true}},
		"tdx":                      {rtmr1, tdx, verdict{allow: true}},
		"azure":                    {``, azure, verdict{allow: true}},
		"sample":                   {``, sample, verdict{claim: "tee", actual: "sample"}},
		"another kind":             {`,"tee":["tdx","az-snp-vtpm"]`, snp, verdict{claim: "tee", expected: "tdx az-snp-vtpm", actual: "snp"}},
		"the kind":                 {`,"tee":["snp"]`, snp, verdict{allow: true}},
		"simulated, refused":       {`,"allow_simulated":false`, snp, verdict{claim: "simulated", expected: "false", actual: "true"}},
		"simulated, allowed":       {`,"allow_simulated":true`, snp, verdict{allow: true}},
		"real":                     {rtmr1 + `,"allow_simulated":false`, tdx, verdict{allow: true}},
		"tdx, any image":           {``, tdx, verdict{claim: "rtmr.1", expected: "values in the rule: measurements alone do not tell which image runs on tdx", actual: fill(0)}},
		"azure, real":              {`,"pcr":{"4":["` + half(4) + `"]}`, realAzure, verdict{allow: true}},
		"azure, any image":         {`,"pcr":{"8":["` + half(4) + `"]}`, realAzure, verdict{claim: "pcr.4", expected: "values in the rule: measurements alone do not tell which image runs on az-snp-vtpm", actual: half(4)}},
		"sample, listed":           {`,"tee":["sample"]`, sample, verdict{claim: "simulated", expected: "allow_simulated", actual: "true"}},
		"sample, simulated":        {`,"allow_simulated":true`, sample, verdict{claim: "tee", actual: "sample"}},
		"sample, both":             {`,"tee":["sample"],"allow_simulated":true`, sample, verdict{allow: true}},
		"levels":                   {`,"min_tcb":{"bootloader":3,"snp":8,"microcode":115}`, snp, verdict{allow: true}},
		"an old level":             {`,"min_tcb":{"bootloader":3,"snp":9}`, snp, verdict{claim: "tcb.snp", expected: ">=9", actual: "8"}},
		"levels of another kind":   {`,"min_tcb":{"snp":9}`, tdx, verdict{claim: "tcb.bootloader", expected: ">=0", actual: "nothing: evidence of kind tdx has none"}},
		"a module":                 {rtmr1 + `,"mr_seam":["` + fill(1) + `"]`, tdx, verdict{allow: true}},
		"another module":           {rtmr1 + `,"mr_seam":["` + fill(2) + `"]`, tdx, verdict{claim: "mr_seam", expected: fill(2), actual: fill(1)}},
		"a module of another kind": {`,"mr_seam":["` + fill(0) + `"]`, snp, verdict{claim: "mr_seam", expected: fill(0), actual: "nothing: evidence of kind snp has none"}},
		"registers":                {`,"rtmr":{"1":["` + fill(9) + `","` + fill(0) + `"]}`, tdx, verdict{allow: true}},
		"another register":         {`,"rtmr":{"0":["` + fill(0) + `"],"1":["` + fill(0) + `"],"2":["` + fill(9) + `"]}`, tdx, verdict{claim: "rtmr.2", expected: fill(9), actual: fill(0)}},
		"PCRs":                     {`,"pcr":{"4":["` + half(4) + `"]}`, azure, verdict{allow: true}},
		"another PCR":              {`,"pcr":{"4":["` + half(5) + `"]}`, azure, verdict{claim: "pcr.4", expected: half(5), actual: half(4)}},
		"PCRs of another kind":     {`,"pcr":{"7":["` + half(0) + `"]}`, snp, verdict{claim: "pcr.7", expected: half(0), actual: "nothing: evidence of kind snp has none"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePolicy([]byte(`{"*/*/*":{"measurements":["` + fill(0xab) + `"],"init_data":["` + half(0xcd) + `"]` + c.rule + `}}`))
			if err != nil {
				t.Fatal(err)
			}
			if got := p.judge("a/b/c", c.claims); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func FuzzPolicy(f *testing.F) {
	f.Add([]byte(`{"a/*/c":{"measurements":[],"init_data":[],"tee":["tdx"],"min_tcb":{"snp":8},"rtmr":{"1":["` + strings.Repeat("ab", 48) +
		`"]},"pcr":{"4":["` + strings.Repeat("ab", 32) + `"]},"mr_seam":["` + strings.Repeat("ab", 48) + `"],"allow_simulated":false}}`))
	f.Add([]byte(`{"a/*/c":{"measurements":["` + strings.Repeat("ab", 48) + `"],"init_data":["` + strings.Repeat("cd", 32) + `"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy(b)
		if err != nil {
			return
		}
		for glob := range p {
			if strings.Count(glob, "/") != 2 {
				t.Errorf("glob %q", glob)
			}
		}
		sum := sha256.Sum256(b)
		back, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParsePolicy(back)
		if err != nil || !cmp.Equal(p, again) {
			t.Fatalf("%s is read as something else: %v", back, err)
		}
		p.judge("a/b/c", &verify.Claims{Kind: evidence.SNP, Register: evidence.HostData, InitData: sum[:]})
	})
}
