package timeline

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/ampoule-vm/ampoule/internal/result"
)

func step(name string, ended, took int64) result.Event {
	return result.Event{Time: ended, Event: result.StepEvent, Step: name, State: result.Done, Micros: took}
}

func pulled(input int, phase string, at, took, bytes int64) result.Event {
	return result.Event{Time: at, Event: result.ProgressEvent, Step: "pull", Input: &input, Phase: phase, Micros: took, Bytes: bytes, Total: 900}
}

var whole = Run{
	Events: []result.Event{
		{Time: 1_900_000, Event: result.StepEvent, Step: "mount", State: result.Start},
		step("mount", 2_000_000, 100_000),
		pulled(0, result.Resolved, 2_000_000, 0, 0),
		pulled(0, result.Pulling, 2_500_000, 400_000, 400),
		pulled(1, result.Verified, 2_900_000, 800_000, 100),
		pulled(0, result.Verified, 3_000_000, 900_000, 900),
		step("pull", 3_000_000, 1_000_000),
		{Time: 3_500_000, Event: result.OutputEvent, Step: "execute", Stream: result.Stdout, Text: "half\n", Bytes: 5},
		step("execute", 12_000_000, 9_000_000),
		{Time: 12_000_001, Event: result.StepEvent, Step: "seal", State: result.Failed, Reason: result.Internal},
		{Time: 12_100_000, Event: result.OutcomeEvent, Step: "seal", Reason: result.Internal, Exit: new(3)},
	},
	Before: 500 * time.Millisecond,
	End:    12_500 * time.Millisecond,
}

func TestTable(t *testing.T) {
	for name, c := range map[string]struct {
		run  Run
		want string
	}{
		"a run": {whole, `
                   start     took  share
firmware         0.000 s  0.500 s  3.8 % |#                                       |
kernel           0.500 s  1.900 s 14.6 % | ######                                 |
mount            2.400 s  0.100 s  0.8 % |       #                                |
pull             2.500 s  1.000 s  7.7 % |       ###                              |
execute          3.500 s  9.000 s 69.2 % |          ############################  |
seal (internal) 12.500 s  0.000 s  0.0 % |                                      # |
power-off       12.600 s  0.400 s  3.1 % |                                      ##|
total                    13.000 s
`},
		"of a result, without the host": {Run{Events: whole.Events[:2]}, `
         start    took  share
kernel 0.000 s 1.900 s 95.0 % |######################################  |
mount  1.900 s 0.100 s  5.0 % |                                      ##|
total          2.000 s
`},
		"nothing": {Run{}, `
      start    took share
total       0.000 s
`},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, "\n"+c.run.Table()); d != "" {
				t.Errorf("table (-want +got):\n%s", d)
			}
		})
	}
}

// A guest's numbers may be anything; what is printed of them stays in its columns.
func TestTableOfALiar(t *testing.T) {
	r := Run{Events: []result.Event{step("a", math.MaxInt64, math.MaxInt64), step("b", 0, math.MaxInt64), step("c", 5, 1), step("d", math.MaxInt64, 1)},
		Before: math.MaxInt64, End: math.MaxInt64}
	for line := range strings.Lines(r.Table()) {
		if len(line) > 120 {
			t.Errorf("a line of %d columns: %q", len(line), line)
		}
	}
	check(t, r)
}

// check holds a trace against the documented format, and its spans against each other: those of a row are one after the
// other, or viewers would stack them.
func check(t *testing.T, r Run) []traceEvent {
	t.Helper()
	b, err := r.Trace()
	if err != nil {
		t.Fatal(err)
	}
	schema, err := jsonschema.NewCompiler().Compile("testdata/trace-event.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(v); err != nil {
		t.Errorf("%#v", err)
	}
	var got struct {
		TraceEvents []traceEvent
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	return got.TraceEvents
}

func TestTrace(t *testing.T) {
	var spans []string
	ends := map[int]float64{}
	rows := map[int]bool{}
	counts := map[string]int{}
	for _, e := range check(t, whole) {
		counts[e.Phase]++
		switch e.Phase {
		case "M":
			rows[e.Thread] = rows[e.Thread] || e.Name == "thread_name"
		case "X":
			if end, ok := ends[e.Thread]; ok && *e.Time < end {
				t.Errorf("%s begins at %v, before the one before it ends", e.Name, *e.Time)
			}
			ends[e.Thread] = *e.Time + *e.Took
			spans = append(spans, e.Name)
			if !rows[e.Thread] {
				t.Errorf("the row of %s has no name", e.Name)
			}
		}
	}
	want := "firmware kernel mount pull execute seal power-off pull datasets[0] pull algorithm"
	if got := strings.Join(spans, " "); got != want {
		t.Errorf("spans %s, want %s", got, want)
	}
	if counts["C"] != 3 || counts["i"] != 2 {
		t.Errorf("%v, want 3 counters and 2 instants", counts)
	}
}

func TestRead(t *testing.T) {
	got, err := Read(bytes.NewReader(result.Lines(whole.Events)))
	if d := cmp.Diff(whole.Events, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
	good := string(result.Lines(whole.Events[:1]))
	for name, c := range map[string]struct{ in, want string }{
		"no event":           {good + "{}\n", "line 2"},
		"a line too long":    {good + strings.Repeat(" ", result.MaxEventLine+1), "line 2: bufio.Scanner: token too long"},
		"more than a host's": {strings.Repeat(good, MaxSize/len(good)+1), "more than"},
	} {
		if _, err := Read(strings.NewReader(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(result.Lines(whole.Events))
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		r := Run{Events: events, Before: time.Second, End: time.Hour}
		r.Table()
		if text, err := r.Trace(); err != nil || !json.Valid(text) {
			t.Fatalf("%v\n%s", err, text)
		}
	})
}
