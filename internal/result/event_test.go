package result

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var events = []Event{
	{Time: 0, Event: StepEvent, Step: "mount", State: Start},
	{Time: 1500, Event: StepEvent, Step: "mount", State: Done, Micros: 1500, Profile: "simulation"},
	{Time: 2000, Event: ProgressEvent, Step: "pull", Bytes: 1 << 40},
	{Time: 2500, Event: StepEvent, Step: "attest", State: Failed, Micros: 3, Reason: Denied},
	{Time: 9000, Event: OutcomeEvent, Step: "attest", Reason: Denied},
	{Time: 9000, Event: OutcomeEvent, Reason: Workload, Exit: new(7)},
	{Time: 9000, Event: OutcomeEvent, Reason: OK, Exit: new(0)},
}

func TestEventsReadBack(t *testing.T) {
	for _, e := range events {
		got, err := ParseEvent(e.Line())
		if d := cmp.Diff(e, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", e.Line(), err, d)
		}
	}
	if n := bytes.Count(Lines(events), []byte("\n")); n != len(events) {
		t.Errorf("Lines: %d lines, want %d", n, len(events))
	}
}

func TestParseEventRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"a member twice":                 `{"t_us":1,"event":"progress","step":"a","step":"pull"}`,
		"a member in another case":       `{"t_us":1,"event":"progress","Step":"pull"}`,
		"an unknown member":              `{"t_us":1,"event":"progress","step":"pull","url":"x"}`,
		"a second object":                `{"t_us":1,"event":"progress","step":"pull"}{}`,
		"no time":                        `{"event":"progress","step":"pull"}`,
		"a negative time":                `{"t_us":-1,"event":"progress","step":"pull"}`,
		"an unknown kind":                `{"t_us":1,"event":"hello"}`,
		"a step with an escape sequence": `{"t_us":1,"event":"progress","step":"\u001b[2J"}`,
		"a step in capitals":             `{"t_us":1,"event":"progress","step":"Pull"}`,
		"a step without a state":         `{"t_us":1,"event":"step","step":"pull"}`,
		"a failure without a reason":     `{"t_us":1,"event":"step","step":"pull","state":"failed"}`,
		"a success with a reason":        `{"t_us":1,"event":"step","step":"pull","state":"ok","reason":"ok"}`,
		"an outcome without a reason":    `{"t_us":1,"event":"outcome"}`,
		"a reason of its own":            `{"t_us":1,"event":"outcome","reason":"secret"}`,
		"an exit status over 255":        `{"t_us":1,"event":"outcome","reason":"workload","exit":256}`,
		"a profile with a newline":       `{"t_us":1,"event":"outcome","reason":"ok","profile":"a\nb"}`,
		"null":                           `null`,
		"nothing":                        ``,
		"half an object":                 `{"t_us":1`,
		"a line over 64 KiB":             `{"t_us":1,"event":"progress","step":"pull"}` + strings.Repeat(" ", MaxEventLine),
	} {
		if e, err := ParseEvent([]byte(line)); err == nil {
			t.Errorf("%s: taken as %+v", name, e)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, e := range events {
		f.Add(e.Line())
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := ParseEvent(line)
		if err != nil {
			return
		}
		if again, err := ParseEvent(e.Line()); err != nil || cmp.Diff(e, again) != "" {
			t.Fatalf("%q → %q: %v", line, e.Line(), err)
		}
	})
}
