package main

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
)

func started(step string) result.Event {
	return result.Event{Event: result.StepEvent, Step: step, State: result.Start}
}

func ended(step string, micros int64) result.Event {
	return result.Event{Event: result.StepEvent, Step: step, State: result.Done, Micros: micros}
}

func pulled(input int, phase string, micros, bytes int64) result.Event {
	return result.Event{Event: result.ProgressEvent, Step: "pull", Input: &input, Phase: phase, Micros: micros, Bytes: bytes, Total: 7e6}
}

func wrote(stream, text string, upTo int64) result.Event {
	return result.Event{Event: result.OutputEvent, Step: "execute", Stream: stream, Text: text, Bytes: upTo}
}

// readAll gives what a person reads away from a terminal.
func readAll(t *testing.T, events ...result.Event) string {
	t.Helper()
	var out strings.Builder
	f := follow(stdio{err: &out}, &manifest.Manifest{Datasets: make([]manifest.Resource, 1), Runtime: &manifest.Resource{}})
	for _, e := range events {
		f.event(e)
	}
	f.close()
	return out.String()
}

func TestFollow(t *testing.T) {
	outcome := result.Event{Event: result.OutcomeEvent, Reason: result.OK}
	failed := result.Event{Event: result.StepEvent, Step: "pull", State: result.Failed, Reason: result.BadImage, Micros: 2e6}
	for _, c := range []struct {
		name   string
		events []result.Event
		want   string
	}{
		{"a run", []result.Event{
			started("resolve"), pulled(0, result.Resolved, 0, 0), pulled(1, result.Resolved, 0, 0), ended("resolve", 50_000),
			started("pull"), pulled(0, result.Pulling, 1000, 1e6), pulled(1, result.Pulling, 1000, 50e3),
			pulled(1, result.Verified, 50_000, 100e3), pulled(0, result.Pulling, 3.5e6, 6e6), pulled(0, result.Verified, 3.5e6, 7e6),
			ended("pull", 3_634_000), started("execute"), ended("execute", 1_880_000), outcome,
		}, `  resolve   ok 50 ms
    datasets[0]  100.0 kB in 0.1 s, 2.0 MB/s
    algorithm    7.0 MB in 3.5 s, 2.0 MB/s
  pull      ok 3634 ms, 7.1 MB at 2.0 MB/s
  execute   ok 1880 ms
`},
		{"an image that fails says how far it came", []result.Event{started("pull"), pulled(0, result.Pulling, 2e6, 1e6), failed, outcome},
			"    algorithm    1.0 MB of 7.0 MB in 2.0 s, 500.0 kB/s\n  pull      failed bad-image 2000 ms, 1.0 MB at 500.0 kB/s\n"},
		{"nothing is pulled", []result.Event{started("pull"), ended("pull", 1000)}, "  pull      ok 1 ms\n"},
		{"a phase of tomorrow is passed over", []result.Event{started("pull"), pulled(0, "decrypt", 1, 1), ended("pull", 1000)}, "  pull      ok 1 ms\n"},
		{"an input is done once", []result.Event{pulled(0, result.Verified, 1e6, 1), pulled(0, result.Verified, 1e6, 2), pulled(0, result.Pulling, 1e6, 3)},
			"    algorithm    1 B in 1.0 s, 1 B/s\n"},
		{"output of the workload", []result.Event{started("execute"), wrote("stdout", "a\nb", 3), wrote("stderr", "c\n", 2), wrote("stdout", "z\n", 100),
			wrote("stderr", "", 9), ended("execute", 2000)},
			"    stdout | a\n    stdout | b\n    stderr | c\n    stdout [95 bytes not shown]\n    stdout | z\n    stderr [7 bytes not shown]\n  execute   ok 2 ms\n"},
		{"the runtime comes last", []result.Event{pulled(2, result.Verified, 1e6, 3)}, "    runtime      3 B in 1.0 s, 3 B/s\n"},
		{"no input but the manifest's", []result.Event{pulled(3, result.Verified, 1, 1), pulled(result.MaxInputs-1, result.Verified, 1, 1)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, readAll(t, c.events...)); d != "" {
				t.Errorf("output (-want +got):\n%s", d)
			}
		})
	}
}

func TestFollowALiar(t *testing.T) {
	got := readAll(t, pulled(0, result.Pulling, math.MaxInt64, math.MaxInt64), pulled(1, result.Pulling, math.MaxInt64, math.MaxInt64),
		ended("pull", 0), ended("pull", math.MaxInt64), ended("pull", 1))
	for line := range strings.Lines(got) {
		if len(line) > 120 || strings.Contains(line, "-") {
			t.Errorf("a line is %q", line)
		}
	}
	if n := strings.Count(got, "\n"); n != 5 {
		t.Errorf("%d lines, want 5:\n%s", n, got)
	}
}
