package result

import (
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestCPUOfSteps: only the end of a step says what processor time it took, and never less than none. The schema says the same.
func TestCPUOfSteps(t *testing.T) {
	schema := compile(t, eventSchema)
	for line, good := range map[string]bool{
		`{"t_us":9,"event":"step","step":"mount","state":"ok","us":5,"cpu_us":4}`:                       true,
		`{"t_us":9,"event":"step","step":"mount","state":"failed","us":5,"cpu_us":4,"reason":"no-tee"}`: true,
		`{"t_us":9,"event":"step","step":"mount","state":"ok","us":5,"cpu_us":-4}`:                      false,
		`{"t_us":9,"event":"step","step":"mount","state":"start","cpu_us":4}`:                           false,
		`{"t_us":9,"event":"outcome","cpu_us":4,"reason":"ok"}`:                                         false,
		`{"t_us":9,"event":"progress","step":"pull","input":0,"phase":"pull","cpu_us":4}`:               false,
		`{"t_us":9,"event":"output","step":"execute","bytes":1,"stream":"stdout","cpu_us":4}`:           false,
	} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); (err == nil) != good {
			t.Errorf("%s: by the schema %v", line, err)
		}
		if e, err := ParseEvent([]byte(line)); (err == nil) != good || good && string(e.Line()) != line+"\n" {
			t.Errorf("%s: %v, %+v", line, err, e)
		}
	}
}
