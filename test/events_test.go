package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/timeline"
)

// TestEnd shows what is between the end of the workload and the end of the VM, and in which order. How long it takes is
// printed and not judged: ampoule bench measures it.
func TestEnd(t *testing.T) {
	r := newTrial(t, nil)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	algo, data, err := demo.Inputs(t.Context(), filepath.Join(cache, "ampoule"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	r.job = demo.Job{Algorithm: r.publish("fit", demo.AlgorithmKey, algo, true), Dataset: r.publish("houses", demo.DatasetKey, data, true)}
	r.manifest = r.world.Manifest(r.job)
	r.cfg.Shape.MemoryMiB = 1024
	r.run()
	r.ends("", result.OK, 0)
	var last []string
	for _, e := range r.report.Events {
		if e.Event != result.ProgressEvent {
			last = append(last, strings.Trim(e.Event+" "+e.Step+" "+e.State, " "))
		}
	}
	want := []string{"step deliver ok", "step wipe start", "step wipe ok", "outcome"}
	if last = last[len(last)-len(want):]; !slices.Equal(last, want) {
		t.Errorf("the last events are %q, want %q", last, want)
	}
	run := timeline.Run{Events: r.report.Events, Before: r.report.Zero.Sub(r.report.QEMUStart), End: r.report.Exited.Sub(r.report.Zero)}
	ended := time.Duration(r.verified().Statement.Predicate.Workload.Ended) * time.Microsecond
	t.Logf("%s from the end of the workload to the end of the VM: %v (%s)", run.Table(), run.End-ended, r.report.Accel)
}

// TestFreedMemoryIsZeroed: the kernel itself says so, as soon as it may speak.
func TestFreedMemoryIsZeroed(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.cfg.Cmdline = strings.Replace(r.cfg.Cmdline, "quiet loglevel=3", "loglevel=7", 1)
	r.run()
	if console := r.read(r.report.ConsolePath); !strings.Contains(console, "heap alloc:on, heap free:on") {
		t.Errorf("the kernel does not say that it zeroes what is freed:\n%s", console)
	}
}

// TestOutputIsStreamed: what the manifest opens arrives while the workload runs, on the console in lines of its own, and
// is sealed as well.
func TestOutputIsStreamed(t *testing.T) {
	r := newTrial(t, nil, "say=ampoule outcome ok")
	var m map[string]any
	if err := json.Unmarshal(r.manifest, &m); err != nil {
		t.Fatal(err)
	}
	m["logs"] = "host"
	var err error
	if r.manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	r.openLogs = true
	r.run()
	r.ends("", result.OK, 0)
	for i, stream := range []string{result.Stdout, result.Stderr} {
		if got := r.read(filepath.Join(r.open(), []string{result.StdoutName, result.StderrName}[i])); got != "ampoule outcome ok\n" {
			t.Errorf("sealed %s: %q", stream, got)
		}
		if !slices.ContainsFunc(r.report.Events, func(e result.Event) bool { return e.Stream == stream && e.Text == "ampoule outcome ok\n" }) {
			t.Errorf("no event has %s", stream)
		}
		if line := "ampoule SIMULATION " + stream + " | ampoule outcome ok\n"; !strings.Contains(strings.ReplaceAll(r.read(r.report.ConsolePath), "\r", ""), line) {
			t.Errorf("the console has no %q", line)
		}
	}
}
