package rego

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const stock = `package policy
import rego.v1
default executables := 33
default hardware := 97
default file_system := 0
executables := 3 if input.snp.measurement in query_reference_value("snp_launch_measurement")
hardware := 2 if {
	input.snp.reported_tcb_snp >= query_reference_value("snp_snp_svn")
}
`

func references(t *testing.T, text string) (out map[string]json.RawMessage) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAppraise(t *testing.T) {
	claims := map[string]any{"snp": map[string]any{"measurement": "ab", "reported_tcb_snp": 8}}
	whole := strings.Replace(stock, "default file_system := 0", `trust_claims := {"executables": executables, "hardware": hardware}`, 1)
	for name, c := range map[string]struct {
		policy, references string
		want               map[string]int
		fails              string
	}{
		"all known":         {stock, `{"snp_launch_measurement":["cd","ab"],"snp_snp_svn":8}`, map[string]int{"executables": 3, "hardware": 2, "file-system": 0}, ""},
		"another image":     {stock, `{"snp_launch_measurement":["cd"],"snp_snp_svn":8}`, map[string]int{"executables": 33, "hardware": 2, "file-system": 0}, ""},
		"nothing known":     {stock, `{}`, map[string]int{"executables": 33, "hardware": 97, "file-system": 0}, ""},
		"one object":        {whole, `{"snp_launch_measurement":["ab"]}`, map[string]int{"executables": 3, "hardware": 97}, ""},
		"of older brokers":  {"package policy\nimport rego.v1\nexecutables := 3 if input.snp.measurement in data.reference.m", `{"m":["ab"]}`, map[string]int{"executables": 3}, ""},
		"before Rego 1":     {"package policy\nhardware = 2 { input.snp.measurement == data.reference.m[_] }", `{"m":["ab"]}`, map[string]int{"hardware": 2}, ""},
		"no number":         {"package policy\nhardware := \"2\"", `{}`, nil, "want one of"},
		"too large":         {"package policy\nhardware := 128", `{}`, nil, "want one of"},
		"a fraction":        {"package policy\nhardware := 2.5", `{}`, nil, "want one of"},
		"no claim of AR4SI": {"package policy\ntrust_claims := {\"colour\": 2}", `{}`, nil, "colour"},
		"no object":         {"package policy\ntrust_claims := 2", `{}`, nil, "not an object"},
		"two values":        {"package policy\nimport rego.v1\nhardware := x if some x in [2, 3]", `{}`, nil, "policy"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := CompileAttestation([]byte(c.policy))
			if err != nil {
				t.Fatal(err)
			}
			got, err := a.Appraise(t.Context(), claims, references(t, c.references))
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

func TestCompileAttestationRefuses(t *testing.T) {
	for name, src := range map[string]string{
		"a resource policy": "package policy\nallow := true",
		"another package":   "package other\nhardware := 2",
		"no Rego":           "hardware is 2",
		"the network":       "package policy\nhardware := http.send({\"url\": \"http://a\", \"method\": \"GET\"}).status_code",
		"the clock":         "package policy\nhardware := time.now_ns()",
		"not UTF-8":         "package policy\nhardware := 2 # \xff",
	} {
		if _, err := CompileAttestation([]byte(src)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
