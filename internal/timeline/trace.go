package timeline

import (
	"encoding/json"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// A traceEvent is one of the Trace Event Format, "JSON Object Format", which chrome://tracing and ui.perfetto.dev read.
// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
type traceEvent struct {
	Name     string         `json:"name"`
	Category string         `json:"cat,omitempty"`
	Phase    string         `json:"ph"`            // X: a span; C: a counter; i: an instant; M: a name
	Time     *float64       `json:"ts,omitempty"`  // µs
	Took     *float64       `json:"dur,omitempty"` // µs, of a span
	Process  int            `json:"pid"`
	Thread   int            `json:"tid"`
	Scope    string         `json:"s,omitempty"` // of an instant: g, for all of it
	Args     map[string]any `json:"args,omitempty"`
}

// Rows of a trace: the steps, the workload's output, and one for each input.
const (
	stepsRow = iota + 1
	outputRow
	inputRow
)

// tracePID is the one process of a trace.
const tracePID = 1

// Trace is a run in the Trace Event Format: a span for each step and for the pull of each input, counters of fetched
// bytes, and instants for the output and the outcome. Times are the guest's; the firmware's are negative.
func (r Run) Trace() ([]byte, error) {
	t := trace{named: map[int]bool{}}
	t.add(traceEvent{Name: "process_name", Phase: "M", Args: map[string]any{"name": "ampoule"}})
	for _, s := range r.Spans() {
		e := t.span(stepsRow, "steps", s.Name, "step", float64(s.Start.Microseconds()), float64(s.Took.Microseconds()))
		if s.Reason != "" {
			e.Args = map[string]any{"reason": s.Reason}
		}
		t.add(e)
	}
	for _, e := range r.Events {
		now := float64(e.Time)
		switch {
		case e.Event == result.ProgressEvent && e.Phase != result.Resolved:
			name := inputName(*e.Input)
			t.add(traceEvent{Name: name + " bytes", Category: "pull", Phase: "C", Time: &now, Args: map[string]any{"bytes": e.Bytes}})
			if e.Phase == result.Verified {
				s := t.span(inputRow+*e.Input, name, "pull "+name, "pull", now-float64(e.Micros), float64(e.Micros))
				s.Args = map[string]any{"bytes": e.Bytes, "total": e.Total}
				t.add(s)
			}
		case e.Event == result.OutputEvent:
			t.name(outputRow, "output")
			t.add(traceEvent{Name: e.Stream, Category: "output", Phase: "i", Time: &now, Thread: outputRow, Scope: "t",
				Args: map[string]any{"text": e.Text, "bytes": e.Bytes}})
		case e.Event == result.OutcomeEvent:
			args := map[string]any{"reason": e.Reason}
			if e.Exit != nil {
				args["exit"] = *e.Exit
			}
			t.add(traceEvent{Name: "outcome", Category: "outcome", Phase: "i", Time: &now, Thread: stepsRow, Scope: "g", Args: args})
		}
	}
	b, err := json.MarshalIndent(struct {
		Events []traceEvent `json:"traceEvents"`
		Unit   string       `json:"displayTimeUnit"`
	}{t.events, "ms"}, "", " ")
	return append(b, '\n'), err
}

type trace struct {
	events []traceEvent
	named  map[int]bool
}

func (t *trace) add(e traceEvent) {
	e.Process = tracePID
	t.events = append(t.events, e)
}

// name gives a row its name, once.
func (t *trace) name(row int, name string) {
	if !t.named[row] {
		t.named[row] = true
		t.add(traceEvent{Name: "thread_name", Phase: "M", Thread: row, Args: map[string]any{"name": name}})
		t.add(traceEvent{Name: "thread_sort_index", Phase: "M", Thread: row, Args: map[string]any{"sort_index": row}})
	}
}

func (t *trace) span(row int, rowName, name, category string, at, took float64) traceEvent {
	t.name(row, rowName)
	return traceEvent{Name: name, Category: category, Phase: "X", Time: &at, Took: &took, Thread: row}
}

func inputName(i int) string {
	if i == 0 {
		return "algorithm"
	}
	return fmt.Sprintf("datasets[%d]", i-1)
}
