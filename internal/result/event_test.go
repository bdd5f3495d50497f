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
	{Time: 2000, Event: ProgressEvent, Step: "resolve", Input: new(0), Phase: Resolved, Total: 1 << 41},
	{Time: 2000, Event: ProgressEvent, Step: "pull", Input: new(MaxInputs - 1), Phase: Pulling, Micros: 7, Bytes: 1 << 40, Total: 1 << 41},
	{Time: 2000, Event: ProgressEvent, Step: "pull", Input: new(1), Phase: "of-tomorrow"},
	{Time: 2200, Event: OutputEvent, Step: "execute", Bytes: 30, Stream: Stdout, Text: "größe \"1\"\t<&>\\\n"},
	{Time: 2200, Event: OutputEvent, Step: "execute", Bytes: 1 << 40, Stream: Stderr},
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

// refused are lines that no reader takes.
var refused = map[string]string{
	"a member twice":                 `{"t_us":1,"event":"progress","step":"a","step":"pull","input":0,"phase":"pull"}`,
	"a member in another case":       `{"t_us":1,"event":"progress","Step":"pull","input":0,"phase":"pull"}`,
	"an unknown member":              `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"pull","url":"x"}`,
	"a second object":                `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"pull"}{}`,
	"no time":                        `{"event":"progress","step":"pull","input":0,"phase":"pull"}`,
	"a negative time":                `{"t_us":-1,"event":"progress","step":"pull","input":0,"phase":"pull"}`,
	"an unknown kind":                `{"t_us":1,"event":"hello"}`,
	"a step with an escape sequence": `{"t_us":1,"event":"progress","step":"\u001b[2J","input":0,"phase":"pull"}`,
	"a step in capitals":             `{"t_us":1,"event":"progress","step":"Pull","input":0,"phase":"pull"}`,
	"a step without a state":         `{"t_us":1,"event":"step","step":"pull"}`,
	"a failure without a reason":     `{"t_us":1,"event":"step","step":"pull","state":"failed"}`,
	"a success with a reason":        `{"t_us":1,"event":"step","step":"pull","state":"ok","reason":"ok"}`,
	"an outcome without a reason":    `{"t_us":1,"event":"outcome"}`,
	"a reason of its own":            `{"t_us":1,"event":"outcome","reason":"secret"}`,
	"an exit status over 255":        `{"t_us":1,"event":"outcome","reason":"workload","exit":256}`,
	"a profile with a newline":       `{"t_us":1,"event":"outcome","reason":"ok","profile":"a\nb"}`,
	"progress of nothing":            `{"t_us":1,"event":"progress","step":"pull","phase":"pull","bytes":1}`,
	"progress without a phase":       `{"t_us":1,"event":"progress","step":"pull","input":0,"bytes":1}`,
	"a phase with an escape":         `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"\u001b[2J"}`,
	"a phase of 33 letters":          `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"` + strings.Repeat("a", 33) + `"}`,
	"an input before the first":      `{"t_us":1,"event":"progress","step":"pull","input":-1,"phase":"pull"}`,
	"an input beyond all":            `{"t_us":1,"event":"progress","step":"pull","input":65536,"phase":"pull"}`,
	"half an input":                  `{"t_us":1,"event":"progress","step":"pull","input":0.5,"phase":"pull"}`,
	"negative bytes":                 `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"pull","bytes":-1}`,
	"a negative total":               `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"pull","total":-1}`,
	"bytes over 63 bits":             `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"pull","bytes":9223372036854775808}`,
	"a step with an input":           `{"t_us":1,"event":"step","step":"pull","input":0,"state":"ok"}`,
	"a step with a phase":            `{"t_us":1,"event":"step","step":"pull","phase":"pull","state":"ok"}`,
	"an outcome with a total":        `{"t_us":1,"event":"outcome","reason":"ok","total":1}`,
	"output of no stream":            `{"t_us":1,"event":"output","step":"execute","bytes":1,"text":"a"}`,
	"output of a third stream":       `{"t_us":1,"event":"output","step":"execute","bytes":1,"stream":"stdlog","text":"a"}`,
	"output longer than its stream":  `{"t_us":1,"event":"output","step":"execute","bytes":1,"stream":"stdout","text":"ab"}`,
	"output with an escape":          `{"t_us":1,"event":"output","step":"execute","bytes":9,"stream":"stdout","text":"\u001b[2J"}`,
	"output with a C1 control":       `{"t_us":1,"event":"output","step":"execute","bytes":9,"stream":"stdout","text":"` + "\u009b" + `"}`,
	"output that turns the text":     `{"t_us":1,"event":"output","step":"execute","bytes":9,"stream":"stdout","text":"` + "\u202e" + `"}`,
	"output that is no UTF-8":        `{"t_us":1,"event":"output","step":"execute","bytes":9,"stream":"stdout","text":"` + "\xff" + `"}`,
	"output over 16 KiB":             `{"t_us":1,"event":"output","step":"execute","bytes":99999,"stream":"stdout","text":"` + strings.Repeat("a", MaxOutputText+1) + `"}`,
	"output of nothing":              `{"t_us":1,"event":"output","step":"execute","stream":"stdout"}`,
	"output with a reason":           `{"t_us":1,"event":"output","step":"execute","reason":"ok","bytes":1,"stream":"stdout"}`,
	"a step with text":               `{"t_us":1,"event":"step","step":"pull","state":"ok","text":"a"}`,
	"an outcome with a stream":       `{"t_us":1,"event":"outcome","reason":"ok","stream":"stdout"}`,
	"null":                           `null`,
	"nothing":                        ``,
	"half an object":                 `{"t_us":1`,
	"a line over 64 KiB":             `{"t_us":1,"event":"progress","step":"pull","input":0,"phase":"pull"}` + strings.Repeat(" ", MaxEventLine),
}

func TestParseEventRefuses(t *testing.T) {
	for name, line := range refused {
		if e, err := ParseEvent([]byte(line)); err == nil {
			t.Errorf("%s: taken as %+v", name, e)
		}
	}
}

func TestPrintableKeepsTheLengthAndMovesNoCursor(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"two\nlines\t.":         "two\nlines\t.",
		"größe 数 🙂":             "größe 数 🙂",
		"10 %\r20 %\r\n":        "10 %\n20 %\n\n",
		"\x1b[31mred\x07\x00":   "?[31mred??",
		"\xff\xfe cut \xe6\x95": "?? cut ??",
		"a\u202eb\u009bc\u2028": "a???b??c???",
		"a real \ufffd":         "a real \ufffd",
	} {
		if got := Printable([]byte(in)); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add([]byte("a\x1b[2J\xff\u202e\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		text = text[:min(len(text), MaxOutputText)]
		got := Printable(text)
		if len(got) != len(text) {
			t.Fatalf("%d bytes became %d", len(text), len(got))
		}
		e := Event{Event: OutputEvent, Step: "execute", Stream: Stdout, Bytes: max(1, int64(len(text))), Text: got}
		if n := len(e.Line()); n > MaxEventLine {
			t.Fatalf("a line of %d bytes", n)
		}
		if again, err := ParseEvent(e.Line()); err != nil || again.Text != got {
			t.Fatalf("%q became %q: %v", got, again.Text, err)
		}
	})
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
