package main

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/ampoule-vm/ampoule/internal/timeline"
	"github.com/ampoule-vm/ampoule/qemu"
)

const traceHelp = `
usage: ampoule trace [--out FILE] [--json] FILE

Shows where the time of a run went. FILE is events.ndjson of ampoule run, or timeline.ndjson of an opened result, of a
run that failed as well; - is standard input. It prints a table; with --out it writes a file in Chrome's Trace Event
Format instead, which https://ui.perfetto.dev and chrome://tracing open (neither sends it anywhere).

Examples:
  ampoule trace out/job/events.ndjson
  ampoule trace --out trace.json out/opened/timeline.ndjson`

func traceVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("trace", traceHelp, std)
	out := fs.String("out", "", "file for the trace")
	asJSON := fs.Bool("json", false, "print the spans as JSON")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	file := fs.Arg(0)
	b, err := std.readFile(file, timeline.MaxSize)
	if err != nil {
		return err
	}
	events, err := timeline.Read(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	r := timeline.Run{Events: events}
	switch {
	case *out != "":
		return std.writeTrace(*out, r)
	case *asJSON:
		return std.json(map[string]any{"spans": r.Spans()})
	}
	_, err = io.WriteString(std.out, r.Table())
	return err
}

func (s stdio) writeTrace(path string, r timeline.Run) error {
	b, err := r.Trace()
	if err != nil {
		return err
	}
	return s.write(path, b)
}

// runOf is what is known of the times of a VM.
func runOf(r *qemu.Report) timeline.Run {
	t := timeline.Run{Events: r.Events}
	if !r.Zero.IsZero() {
		t.Before, t.End = max(0, r.Zero.Sub(r.QEMUStart)), max(0, r.Exited.Sub(r.Zero))
	}
	return t
}
