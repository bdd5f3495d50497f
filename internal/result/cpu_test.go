package result

import "testing"

// TestCPUOfSteps: only the end of a step says what processor time it took, and never less than none.
func TestCPUOfSteps(t *testing.T) {
	for line, good := range map[string]bool{
		`{"t_us":9,"event":"step","step":"mount","state":"ok","us":5,"cpu_us":4}`:                       true,
		`{"t_us":9,"event":"step","step":"mount","state":"failed","us":5,"cpu_us":4,"reason":"no-tee"}`: true,
		`{"t_us":9,"event":"step","step":"mount","state":"ok","us":5,"cpu_us":-4}`:                      false,
		`{"t_us":9,"event":"step","step":"mount","state":"start","cpu_us":4}`:                           false,
		`{"t_us":9,"event":"outcome","cpu_us":4,"reason":"ok"}`:                                         false,
		`{"t_us":9,"event":"progress","step":"pull","input":0,"phase":"pull","cpu_us":4}`:               false,
	} {
		if e, err := ParseEvent([]byte(line)); (err == nil) != good || good && string(e.Line()) != line+"\n" {
			t.Errorf("%s: %v, %+v", line, err, e)
		}
	}
}
