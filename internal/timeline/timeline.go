// Package timeline shows where the time of a run went: as a table, and as a file for trace viewers.
//
// What it reads is a guest's: names are plain words, as result.ParseEvent has seen to, and numbers may be anything.
package timeline

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// MaxSize is the most that Read takes, bytes: what a host keeps of events.
const MaxSize = 16 << 20

// Read reads events, one a line: timeline.ndjson of a result, or events.ndjson of a run.
func Read(r io.Reader) ([]result.Event, error) {
	limited := &io.LimitedReader{R: r, N: MaxSize + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(nil, result.MaxEventLine)
	var events []result.Event
	for lines.Scan() {
		if limited.N == 0 {
			break
		}
		e, err := result.ParseEvent(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(events)+1, err)
		}
		events = append(events, e)
	}
	if limited.N == 0 {
		return nil, fmt.Errorf("more than %d bytes", MaxSize)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", len(events)+1, err)
	}
	return events, nil
}

// A Run is a boot: its events, and what the host saw before and after them, if anybody looked.
type Run struct {
	Events []result.Event
	Before time.Duration // from the start of the VM to the zero of its kernel's clock; 0: unknown
	End    time.Duration // of the VM, on its kernel's clock; 0: unknown
}

// A Span is a part of a run.
type Span struct {
	Name   string        `json:"name"`
	Start  time.Duration `json:"start_ns"` // since the kernel booted; the firmware's is before
	Took   time.Duration `json:"ns"`
	Reason result.Reason `json:"reason,omitempty"` // why it failed
}

// Names of spans that are no steps.
const (
	Firmware = "firmware"  // from the start of the VM to its kernel
	Kernel   = "kernel"    // to the first step of PID 1
	PowerOff = "power-off" // from the outcome to the end of the VM
)

// Spans are the parts of a run, in the order in which they began.
func (r Run) Spans() []Span {
	var all []Span
	if r.Before > 0 {
		all = append(all, Span{Name: Firmware, Start: -r.Before, Took: r.Before})
	}
	first := true
	var outcome time.Duration
	for _, e := range r.Events {
		switch {
		case e.Event == result.OutcomeEvent:
			outcome = micros(e.Time)
		case e.Event == result.StepEvent && e.State != result.Start:
			start := micros(max(0, e.Time-e.Micros))
			if first && start > 0 {
				all = append(all, Span{Name: Kernel, Took: start})
			}
			first = false
			all = append(all, Span{Name: e.Step, Start: start, Took: micros(e.Micros), Reason: e.Reason})
		}
	}
	if outcome > 0 && r.End > outcome {
		all = append(all, Span{Name: PowerOff, Start: outcome, Took: r.End - outcome})
	}
	return all
}

func micros(n int64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/1000)) * time.Microsecond
}

// Table lists the spans of a run, with their share of all of it and a bar each.
func (r Run) Table() string {
	const width = 40
	spans := r.Spans()
	var from, to time.Duration
	for i, s := range spans {
		if i == 0 {
			from = s.Start
		}
		to = max(to, s.Start+s.Took)
	}
	total := max(1, float64(to-from)) // of a liar's, more than a Duration holds
	column := func(d time.Duration) int { return min(width, max(0, int(float64(d-from)/total*width))) }
	rows := [][4]string{{"", "start", "took", "share"}}
	var bars []string
	for _, s := range spans {
		name := s.Name
		if s.Reason != "" {
			name += " (" + string(s.Reason) + ")"
		}
		rows = append(rows, [4]string{name, seconds(s.Start - from), seconds(s.Took), fmt.Sprintf("%.1f %%", 100*float64(s.Took)/total)})
		begin := min(width-1, column(s.Start))
		bars = append(bars, strings.Repeat(" ", begin)+strings.Repeat("#", max(1, column(s.Start+s.Took)-begin)))
	}
	rows = append(rows, [4]string{"total", "", seconds(to - from), ""})
	var wide [4]int
	for _, row := range rows {
		for i, cell := range row {
			wide[i] = max(wide[i], len(cell))
		}
	}
	var b strings.Builder
	for i, row := range rows {
		line := fmt.Sprintf("%-*s %*s %*s %*s", wide[0], row[0], wide[1], row[1], wide[2], row[2], wide[3], row[3])
		if i > 0 && i <= len(bars) {
			line += fmt.Sprintf(" |%-*s|", width, bars[i-1])
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }
