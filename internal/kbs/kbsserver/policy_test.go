package kbsserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
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
	claims := verify.Claims{Measurement: evidence.Measurement(bytes.Repeat([]byte{0xab}, 48)), Register: evidence.HostData, InitData: bytes.Repeat([]byte{0xcd}, 32)}
	for resource, want := range map[string]bool{
		"default/key/algo-key": true, "other/key/a": true, "other/key/ab": false, "a/b/key/a": false, "key/a": false, "default/key/algo-key/x": false,
	} {
		if v := p.judge(resource, claims); v.allow != want {
			t.Errorf("%s: %+v, want allowed %t", resource, v, want)
		}
	}
	for name, c := range map[string]struct{ policy, want string }{
		"nothing":                {"", "EOF"},
		"a list":                 {"[]", "starts with"},
		"trailing data":          {"{}{}", "after its end"},
		"a resource twice":       {`{"a/b/c":` + rule + `,"a/b/c":` + rule + `}`, "twice"},
		"two segments":           {`{"a/b":` + rule + `}`, "repository/type/tag"},
		"an empty segment":       {`{"a//c":` + rule + `}`, "repository/type/tag"},
		"a broken glob":          {`{"a/b/[":` + rule + `}`, "syntax error"},
		"an unknown member":      {`{"a/b/c":{"measurements":[],"init_data":[],"svn":1}}`, "svn"},
		"a member in capitals":   {`{"a/b/c":{"Measurements":[],"init_data":[]}}`, "Measurements"},
		"no measurements":        {`{"a/b/c":{"init_data":[]}}`, "measurements"},
		"a short measurement":    {`{"a/b/c":{"measurements":["ab"],"init_data":[]}}`, "1 bytes, want 48"},
		"a short digest":         {`{"a/b/c":{"measurements":[],"init_data":["ab"]}}`, "1 bytes, want 32"},
		"a digest of no hex":     {`{"a/b/c":{"measurements":[],"init_data":["xy"]}}`, "xy"},
		"several things at once": {`{"a":` + rule + `,"b":{}}`, "\"b\": "},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParsePolicy([]byte(c.policy)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func FuzzPolicy(f *testing.F) {
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
		p.judge("a/b/c", verify.Claims{Register: evidence.HostData, InitData: sum[:]})
	})
}
