package rego

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// claims as a token has them (SPEC §1.6).
func claims(tee string, status string) map[string]any {
	return map[string]any{"submods": map[string]any{"cpu0": map[string]any{
		"ear.status":                      status,
		"ear.veraison.annotated-evidence": map[string]any{tee: map[string]any{"measurement": "abcd"}, "init_data": "00ff"},
	}}}
}

// What Trustee's own policies do, in each of the spellings that have been in use.
const (
	anyTEE = `package policy

default allow = false

plugin = data.plugin

allow if {
	plugin == "resource"
	not input["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["sample"]
}`
	affirming = `package policy
import rego.v1

default allow = false

allow if {
	count(input.submods) > 0
	not some_other
}

some_other if {
	some _, m in input.submods
	m["ear.status"] != "affirming"
}`
	byPath = `package policy
import rego.v1
default allow := false
allow if {
	data["resource-path"] == ["default", "key", "algo-key"]
	input.submods.cpu0["ear.veraison.annotated-evidence"].snp.measurement == "abcd"
}
allow if {
	data["resource-path"][0] == "public"
	data.query == {}
}`
	old = `package policy

default allow = false

allow {
	data["resource-path"][2] == "algo-key"
	input.submods.cpu0["ear.status"] == "affirming"
}`
	byRule = `package policy
default allow := false
evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
allow if evidence.snp.measurement == "ffff"
allow if {
	some _, m in input.submods
	cpu := m["ear.veraison.annotated-evidence"]
	cpu.snp.measurement == "eeee"
	startswith(cpu.init_data, "ff")
}`
	futureKeywords = `package policy
import future.keywords.if
default allow = false
allow if input.submods.cpu0["ear.status"] == "affirming"`
)

func TestResource(t *testing.T) {
	const key = "default/key/algo-key"
	for _, c := range []struct {
		name, policy, path, tee, status string
		allow                           bool
		why                             []string
	}{
		{"any tee", anyTEE, key, "snp", "affirming", true, nil},
		{"any tee, sample", anyTEE, key, "sample", "affirming", false,
			[]string{"line 9: not input", `["sample"] does not hold`, `is {"measurement": "abcd"}`}},
		{"affirming", affirming, key, "snp", "affirming", true, nil},
		{"contraindicated", affirming, key, "snp", "contraindicated", false, []string{"line 8: not some_other does not hold"}},
		{"by path", byPath, key, "snp", "none", true, nil},
		{"by path, public", byPath, "public/x/y", "tdx", "none", true, nil},
		{"by path, other tee", byPath, key, "tdx", "none", false,
			[]string{"line 6: input.submods", "measurement == \"abcd\" does not hold", "not there", "line 9: data"}},
		{"by path, other key", byPath, "default/key/data", "snp", "none", false, []string{`line 5: data["resource-path"] == [`}},
		{"v0", old, key, "snp", "affirming", true, nil},
		{"v0 denies", old, key, "snp", "warning", false, []string{"line 7: ", `input.submods.cpu0["ear.status"] is "warning"`}},
		{"future keywords", futureKeywords, key, "snp", "affirming", true, nil},
		{"by a rule and a variable", byRule, key, "snp", "", false, []string{`line 4: evidence.snp.measurement == "ffff" does not hold, evidence.snp.measurement is "abcd"; `,
			`line 8: cpu.snp.measurement == "eeee" does not hold, cpu.snp.measurement is "abcd"`}},
		{"by a rule and a variable, not there", byRule, key, "tdx", "", false, []string{`line 8: cpu.snp.measurement == "eeee" does not hold, cpu.snp.measurement not there`}},
		{"nothing allows", "package policy\nallow if false", key, "snp", "", false, []string{"line 2: false does not hold"}},
		{"default alone", "package policy\ndefault allow = false", key, "snp", "", false, []string{"no rule of the policy says allow"}},
		{"not a boolean", "package policy\nallow := \"yes\"", key, "snp", "", false, []string{"allow is yes, want true or false"}},
		{"the path of before v0.10", "package policy\nallow if startswith(data[\"resource-path\"], \"default\")", key, "snp", "", false,
			[]string{"line 2: startswith", "must be string"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Compile([]byte(c.policy))
			if err != nil {
				t.Fatal(err)
			}
			allow, why, err := p.Resource(t.Context(), c.path, claims(c.tee, c.status))
			if err != nil || allow != c.allow {
				t.Fatalf("allow %v (%s), %v", allow, why, err)
			}
			if allow != (why == "") || strings.Contains(why, "\n") {
				t.Errorf("why: %q", why)
			}
			for _, part := range c.why {
				if !strings.Contains(why, part) {
					t.Errorf("why: %s\nwant in it: %s", why, part)
				}
			}
		})
	}
}

func TestNoClaims(t *testing.T) {
	p, err := Compile([]byte(affirming))
	if err != nil {
		t.Fatal(err)
	}
	if allow, why, err := p.Resource(t.Context(), "a/b/c", nil); allow || err != nil {
		t.Fatal(allow, why, err)
	}
}

func TestCompile(t *testing.T) {
	for name, c := range map[string]struct{ src, want string }{
		"empty":         {"", "empty module"},
		"not Rego":      {"{}", "line 1"},
		"other package": {"package agent_policy\nallow if true", "package is agent_policy, want policy"},
		"no allow":      {"package policy\nallowed := true", "no rule allow"},
		"function":      {"package policy\nallow(x) if x == 1", "not a plain rule"},
		"set":           {"package policy\nallow contains 1", "not a plain rule"},
		"undefined":     {"package policy\nallow if frobnicate(1)", "line 2: undefined function frobnicate"},
		"network":       {"package policy\nallow if http.send({\"url\": \"http://127.0.0.1\", \"method\": \"get\"}).status_code == 200", "undefined function http.send"},
		"names":         {"package policy\nallow if net.lookup_ip_addr(\"localhost\") != set()", "undefined function net.lookup_ip_addr"},
		"clock":         {"package policy\nallow if time.now_ns() > 0", "undefined function time.now_ns"},
		"chance":        {"package policy\nallow if rand.intn(\"x\", 2) == 1", "undefined function rand.intn"},
		"environment":   {"package policy\nallow if opa.runtime().env.HOME", "undefined function opa.runtime"},
		"schema":        {"package policy\nallow if json.match_schema({}, {\"$ref\": \"http://127.0.0.1\"})[0]", "undefined function json.match_schema"},
		"not UTF-8":     {"package policy # \xff", "UTF-8"},
		"too long":      {"package policy\nallow if true #" + strings.Repeat("x", MaxSource), "at most"},
		"recursion":     {"package policy\nallow if allow", "recursive"},
	} {
		if _, err := Compile([]byte(c.src)); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A policy that goes on for ever ends with the time it has, and with a denial.
func TestTimeout(t *testing.T) {
	p, err := Compile([]byte(`package policy
allow if {
	some a in numbers.range(1, 100000)
	some b in numbers.range(1, 100000)
	a * b == -1
}`))
	if err != nil {
		t.Fatal(err)
	}
	p.timeout = 50 * time.Millisecond
	start := time.Now()
	allow, _, err := p.Resource(t.Context(), "a/b/c", nil)
	if allow || err == nil || !strings.Contains(err.Error(), "no decision within 50ms") {
		t.Fatal(allow, err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if allow, _, err := p.Resource(ctx, "a/b/c", nil); allow || err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Error(allow, err)
	}
}

func BenchmarkResource(b *testing.B) {
	p, err := Compile([]byte(byPath))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if allow, why, err := p.Resource(b.Context(), "default/key/algo-key", claims("tdx", "none")); allow || err != nil {
			b.Fatal(why, err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{anyTEE, affirming, byPath, old, futureKeywords, "package policy\nallow if 1 / 0"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		p, err := Compile(src)
		if err != nil {
			return
		}
		p.timeout = 100 * time.Millisecond
		if allow, why, err := p.Resource(t.Context(), "a/b/c", claims("snp", "affirming")); (err != nil && allow) || strings.Contains(why, "\n") {
			t.Errorf("allow %v with %q, %v", allow, why, err)
		}
	})
}
