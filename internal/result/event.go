package result

import (
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// The kinds of event.
const (
	StepEvent     = "step"     // a step began or ended
	ProgressEvent = "progress" // how far one input is
	OutputEvent   = "output"   // what the workload wrote, where the manifest opens it
	OutcomeEvent  = "outcome"  // how the run ended; the last of its kind, sent at most once
)

// The states of a step.
const (
	Start  = "start"
	Done   = "ok"
	Failed = "failed"
)

// The phases of an input, in their order. A reader passes over those that it does not know.
const (
	Resolved = "resolve"  // it is known what it is: Total
	Pulling  = "pull"     // Bytes of Total are fetched; they are decrypted and unpacked as they come
	Verified = "verified" // the last: all of it is unpacked, and every check held
)

// The streams of a workload.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// MaxOutputText is the most text of one output event, bytes.
const MaxOutputText = 16 << 10

// MaxInputs is the number of inputs from which on ParseEvent refuses an index.
const MaxInputs = 1 << 16

// MaxEventLine is the length in bytes beyond which ParseEvent refuses a line.
const MaxEventLine = 64 << 10

// An Event is one line of NDJSON on POST /v1/events and one entry of a receipt's timeline. It carries nothing that an
// untrusted host may not know: names of steps, reasons, counts and durations, and text only where the manifest opens
// the workload's output. docs/events.schema.json says the same to other languages.
type Event struct {
	Time    int64  `json:"t_us"`              // µs since the kernel booted
	Event   string `json:"event"`             // StepEvent, ProgressEvent or OutcomeEvent
	Step    string `json:"step,omitempty"`    // of an outcome: the step that ended the run, if one did
	Input   *int   `json:"input,omitempty"`   // of progress: 0 is the algorithm, n is datasets[n-1]; after those the runtime
	Phase   string `json:"phase,omitempty"`   // of progress: Resolved, Pulling, Verified
	State   string `json:"state,omitempty"`   // of a step: Start, Done or Failed
	Micros  int64  `json:"us,omitempty"`      // how long the step took, µs; of progress: since the pull began
	CPU     int64  `json:"cpu_us,omitempty"`  // of a step's end: processor time of PID 1 and of the children that it waited for, meanwhile, µs
	Reason  Reason `json:"reason,omitempty"`  // of an outcome and of a failed step
	Exit    *int   `json:"exit,omitempty"`    // of an outcome: the workload's status, 0 to 255, if it ended by itself
	Bytes   int64  `json:"bytes,omitempty"`   // of progress: fetched so far; more than Total if some were fetched again. Of output: of the stream, up to Text's end
	Total   int64  `json:"total,omitempty"`   // of progress: bytes to fetch, 0 if unknown
	Stream  string `json:"stream,omitempty"`  // of output: Stdout or Stderr
	Text    string `json:"text,omitempty"`    // of output: as Printable gives it; empty where only Bytes is news
	Profile string `json:"profile,omitempty"` // production or simulation
}

// Line is the event as it goes over the wire, with its newline.
func (e Event) Line() []byte { return append(encode(e), '\n') }

// Lines is a timeline as NDJSON.
func Lines(events []Event) []byte {
	var b []byte
	for _, e := range events {
		b = append(b, e.Line()...)
	}
	return b
}

// ParseEvent reads one line, with or without its newline, in the exact form that Line gives it. Whoever speaks on the
// host's end of the vsock may be no init of ours, so members, names and ranges are all checked: what comes back is
// safe to print.
func ParseEvent(line []byte) (Event, error) {
	var e Event
	if len(line) > MaxEventLine {
		return Event{}, fmt.Errorf("event of %d bytes, at most %d", len(line), MaxEventLine)
	}
	if err := decode(line, &e); err != nil {
		return Event{}, fmt.Errorf("event: %w", err)
	}
	if err := e.check(); err != nil {
		return Event{}, fmt.Errorf("event: %w", err)
	}
	return e, nil
}

func (e Event) check() error {
	switch e.Event {
	case StepEvent:
		if e.State != Start && e.State != Done && e.State != Failed {
			return fmt.Errorf("state %.40q; want %s, %s or %s", e.State, Start, Done, Failed)
		}
		if e.Step == "" || e.Exit != nil || e.progress() || (e.Reason != "") != (e.State == Failed) {
			return fmt.Errorf("members that do not suit a step in state %s", e.State)
		}
	case ProgressEvent:
		if e.Step == "" || e.State != "" || e.Reason != "" || e.Exit != nil || e.Input == nil {
			return fmt.Errorf("members that do not suit progress")
		}
		if *e.Input < 0 || *e.Input >= MaxInputs {
			return fmt.Errorf("input %d; want 0 to %d", *e.Input, MaxInputs-1)
		}
		if !name(e.Phase) {
			return fmt.Errorf("phase %.40q; want lower-case letters, digits and dashes", e.Phase)
		}
	case OutputEvent:
		if e.Step == "" || e.State != "" || e.Reason != "" || e.Exit != nil || e.Input != nil || e.Phase != "" || e.Total != 0 || e.Micros != 0 ||
			e.Stream != Stdout && e.Stream != Stderr || e.Bytes < max(1, int64(len(e.Text))) {
			return fmt.Errorf("members that do not suit output")
		}
		if len(e.Text) > MaxOutputText || Printable([]byte(e.Text)) != e.Text {
			return fmt.Errorf("text of %d bytes, more than %d or not printable", len(e.Text), MaxOutputText)
		}
	case OutcomeEvent:
		if e.State != "" || e.progress() || e.Reason == "" {
			return fmt.Errorf("members that do not suit an outcome")
		}
	default:
		return fmt.Errorf("%.40q is not an event", e.Event)
	}
	switch {
	case e.Event != OutputEvent && (e.Stream != "" || e.Text != ""):
		return fmt.Errorf("members that suit only output")
	case e.Step != "" && !name(e.Step):
		return fmt.Errorf("step %.40q; want lower-case letters, digits and dashes", e.Step)
	case e.Profile != "" && !name(e.Profile):
		return fmt.Errorf("profile %.40q; want lower-case letters, digits and dashes", e.Profile)
	case e.Reason != "" && !slices.Contains(Reasons, e.Reason):
		return fmt.Errorf("reason %.40q is unknown", e.Reason)
	case e.Time < 0 || e.Micros < 0 || e.CPU < 0 || e.Bytes < 0 || e.Total < 0:
		return fmt.Errorf("a negative time or count")
	case e.CPU != 0 && (e.Event != StepEvent || e.State == Start):
		return fmt.Errorf("cpu_us suits only the end of a step")
	case e.Exit != nil && (*e.Exit < 0 || *e.Exit > 255):
		return fmt.Errorf("exit status %d; want 0 to 255", *e.Exit)
	}
	return nil
}

// Printable is text that moves no cursor, of as many bytes: lines, tabs, and characters that print. A carriage return
// becomes the end of its line, each other byte a question mark.
func Printable(text []byte) string {
	b := slices.Clone(text)
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == '\r':
			b[i] = '\n'
		case r == '\n' || r == '\t' || strconv.IsPrint(r) && (r != utf8.RuneError || n > 1):
		default:
			copy(b[i:], "????"[:n])
		}
		i += n
	}
	return string(b)
}

// progress reports whether a member is there that only progress has.
func (e Event) progress() bool {
	return e.Input != nil || e.Phase != "" || e.Bytes != 0 || e.Total != 0
}

// name reports whether s is a short word of lower-case letters, digits and inner dashes.
func name(s string) bool {
	for i, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (i == 0 || (c < '0' || c > '9') && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= 32
}
