package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/progress"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// A follower shows a run to a person: a line for each step and each input that ends, and below them what is going on.
// The events are a stranger's: they choose among names that we know, and numbers.
type follower struct {
	live   *progress.Live
	inputs []followed
	step   string // that is going on
	task   *progress.Task
	shown  map[string]int64 // by stream: how far its text came
}

// A followed is an input, as far as it is known. bar is there while it is pulled.
type followed struct {
	name  string
	bar   *progress.Bar
	done  bool
	bytes int64
	took  time.Duration
}

// follow begins to show a run of a manifest; nothing else may print before close.
func follow(std stdio, doc *manifest.Manifest) *follower {
	f := &follower{live: progress.New(std.err), inputs: []followed{{name: "algorithm"}}, step: "boot", shown: map[string]int64{}}
	for i := range doc.Datasets {
		f.inputs = append(f.inputs, followed{name: fmt.Sprintf("datasets[%d]", i)})
	}
	if doc.Runtime != nil {
		f.inputs = append(f.inputs, followed{name: "runtime"})
	}
	f.task = f.live.Task(f.current)
	return f
}

func (f *follower) close() { f.live.Close() }

func (f *follower) current() string { return fmt.Sprintf("  %-9s", f.step) }

// event is for one caller at a time.
func (f *follower) event(e result.Event) {
	switch {
	case e.Event == result.StepEvent && e.State == result.Start:
		f.begin(e.Step)
	case e.Event == result.StepEvent:
		f.end(e)
	case e.Event == result.OutcomeEvent:
		f.begin("power off")
	case e.Event == result.OutputEvent:
		f.output(e)
	case e.Event == result.ProgressEvent && *e.Input < len(f.inputs):
		f.progress(&f.inputs[*e.Input], e)
	}
}

// output prints what the workload wrote, line by line, and where some of it is missing.
func (f *follower) output(e result.Event) {
	if lost := e.Bytes - int64(len(e.Text)) - f.shown[e.Stream]; lost > 0 {
		f.live.Say("    %s [%d bytes not shown]", e.Stream, lost)
	}
	f.shown[e.Stream] = e.Bytes
	for line := range strings.Lines(e.Text) {
		f.live.Say("    %s | %s", e.Stream, strings.TrimSuffix(line, "\n"))
	}
}

func (f *follower) begin(step string) {
	f.task.End()
	f.step = step
	f.task = f.live.Task(f.current)
}

func (f *follower) progress(in *followed, e result.Event) {
	if in.done || e.Phase != result.Pulling && e.Phase != result.Verified {
		return
	}
	if in.bar == nil {
		in.bar = f.live.Bar(fmt.Sprintf("    %-11s", in.name), e.Total)
	}
	in.bytes, in.took = e.Bytes, micros(e)
	in.bar.Set(e.Bytes)
	if e.Phase == result.Verified {
		in.finish(true)
	}
}

func (in *followed) finish(ok bool) {
	in.bar.End(ok, in.took)
	in.bar, in.done = nil, true
}

// end prints what has become of a step. The numbers are the guest's.
func (f *follower) end(e result.Event) {
	var bytes float64
	for i := range f.inputs {
		in := &f.inputs[i]
		if in.bar != nil {
			in.finish(false)
		}
		bytes += float64(in.bytes)
	}
	words := []string{e.State}
	if e.Reason != "" {
		words = append(words, string(e.Reason))
	}
	line := fmt.Sprintf("  %-9s %s %d ms", e.Step, strings.Join(words, " "), e.Micros/1000)
	if n := int64(min(bytes, 1<<62)); e.Step == "pull" && n > 0 {
		line += fmt.Sprintf(", %s at %s", progress.Bytes(n), progress.Rate(n, micros(e)))
	}
	f.live.Say("%s", line)
}

func micros(e result.Event) time.Duration { return time.Duration(e.Micros) * time.Microsecond }
