package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/qemu"
)

func computation(t *testing.T, id, tag string) *manifest.Manifest {
	t.Helper()
	m, err := manifest.Parse([]byte(`{"version": 1, "computation_id": "`+id+`", "algorithm": {"uri": "docker://r.example/algo-`+tag+`@sha256:`+strings.Repeat("2", 64)+`"}}`),
		func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ran leaves out as a run of doc does that ended with o, or broke off if that is nil.
func ran(t *testing.T, out string, doc *manifest.Manifest, m evidence.Measurement, o *result.Event) {
	t.Helper()
	c, done, err := claimFolder(out, doc, m, true)
	if err != nil || done != nil {
		t.Fatalf("%+v, %v", done, err)
	}
	defer c.close()
	if err := c.begin(); err != nil {
		t.Fatal(err)
	}
	if o == nil {
		return
	}
	f := runFacts{Outcome: o, Result: filepath.Join(out, qemu.SealedFile), Console: filepath.Join(out, qemu.ConsoleFile)}
	write(t, f.Result, []byte("sealed"))
	write(t, f.Console, nil)
	if err := c.finish(f); err != nil {
		t.Fatal(err)
	}
}

var failedRun = &result.Event{Event: result.OutcomeEvent, Step: "execute", Reason: result.Workload, Exit: new(7)}

func TestClaim(t *testing.T) {
	one := evidence.Measurement{1}
	for name, c := range map[string]struct {
		before  func(t *testing.T, out string)
		id, tag string
		m       evidence.Measurement
		again   bool
		done    bool
		err     string
	}{
		"a new folder":          {nil, "a", "x", one, false, false, ""},
		"the same has finished": {func(t *testing.T, out string) { ran(t, out, computation(t, "a", "x"), one, failedRun) }, "a", "x", one, false, true, ""},
		"without an id":         {func(t *testing.T, out string) { ran(t, out, computation(t, "", "x"), one, failedRun) }, "", "x", one, false, true, ""},
		"it runs anew":          {func(t *testing.T, out string) { ran(t, out, computation(t, "a", "x"), one, failedRun) }, "a", "x", one, true, false, ""},
		"the same broke off":    {func(t *testing.T, out string) { ran(t, out, computation(t, "a", "x"), one, nil) }, "a", "x", one, false, false, "broke off there; nothing of it is taken up"},
		"and runs anew":         {func(t *testing.T, out string) { ran(t, out, computation(t, "a", "x"), one, nil) }, "a", "x", one, true, false, ""},
		"another computation's": {func(t *testing.T, out string) { ran(t, out, computation(t, "a", "x"), one, failedRun) }, "b", "x", one, false, false, `holds computation "a" and this is "b"`},
		"another without an id": {func(t *testing.T, out string) { ran(t, out, computation(t, "", "x"), one, failedRun) }, "", "y", one, false, false, "holds computation"},
		"the id is used twice":  {func(t *testing.T, out string) { ran(t, out, computation(t, "a", "x"), one, failedRun) }, "a", "y", one, false, false, "with another manifest"},
		"another image":         {func(t *testing.T, out string) { ran(t, out, computation(t, "a", "x"), one, failedRun) }, "a", "x", evidence.Measurement{2}, false, false, "with measurement 01"},
		"a result of who knows": {func(t *testing.T, out string) { write(t, filepath.Join(out, qemu.PlainFile), nil) }, "a", "x", one, false, false, "no run.json says of which run"},
		"that may be replaced":  {func(t *testing.T, out string) { write(t, filepath.Join(out, qemu.PlainFile), nil) }, "a", "x", one, true, false, ""},
		"a record that is none": {func(t *testing.T, out string) { write(t, filepath.Join(out, recordFile), []byte("{")) }, "a", "x", one, false, false, "is not what ampoule run writes"},
		"a record of no outcome": {func(t *testing.T, out string) {
			write(t, filepath.Join(out, recordFile), []byte(`{"state":"finished"}`))
		}, "a", "x", one, false, false, "is not what ampoule run writes"},
		"the result is gone": {func(t *testing.T, out string) {
			ran(t, out, computation(t, "a", "x"), one, failedRun)
			os.Remove(filepath.Join(out, qemu.SealedFile))
		}, "a", "x", one, false, false, "what it left is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			if c.before != nil {
				if err := os.MkdirAll(out, 0o755); err != nil {
					t.Fatal(err)
				}
				c.before(t, out)
			}
			folder, done, err := claimFolder(out, computation(t, c.id, c.tag), c.m, c.again)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if (done != nil) != c.done || done != nil && (done.Result != filepath.Join(out, qemu.SealedFile) || *done.Outcome.Exit != 7 || !done.Earlier) {
				t.Errorf("facts %+v", done)
			}
			if err != nil || done != nil {
				// Nothing is kept from whoever comes next.
				folder, _, err = claimFolder(out, computation(t, c.id, c.tag), c.m, true)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer folder.close()
			if _, _, err := claimFolder(out, computation(t, c.id, c.tag), c.m, true); err == nil || !strings.Contains(err.Error(), "another ampoule run is at work there") {
				t.Errorf("two at once: %v", err)
			}
		})
	}
}

// TestWhatDidNotStartLeavesNoRecord: without QEMU nothing runs, and the next try is not told that something broke off.
func TestWhatDidNotStartLeavesNoRecord(t *testing.T) {
	t.Setenv("PATH", "")
	dir, job, _, raw := fakeImage(t)
	out := filepath.Join(dir, "out")
	run := func(flags ...string) (int, string, string) {
		var stdout, stderr bytes.Buffer
		args := append([]string{"run", "--image", dir, "--manifest", job, "--out", out, "--psp", filepath.Join(dir, "psp"), "--firmware", ""}, flags...)
		return dispatch(t.Context(), args, stdio{strings.NewReader(""), &stdout, &stderr}), stdout.String(), stderr.String()
	}
	for range 2 {
		if code, _, text := run(); code != 1 || !strings.Contains(text, "apt install qemu-system-x86") {
			t.Fatalf("exit status %d:\n%s", code, text)
		}
	}
	doc, err := manifest.Parse(raw, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	_, facts, _ := run("--dry-run", "--json")
	var dry runFacts
	if err := json.Unmarshal([]byte(facts), &dry); err != nil {
		t.Fatal(err)
	}
	ran(t, out, doc, dry.Measurement, failedRun)

	// Now there is a run, whose outcome is given again.
	code, text, said := run("--json")
	var got runFacts
	if err := json.Unmarshal([]byte(text), &got); err != nil || code != 4 || !got.Earlier || *got.Outcome.Exit != 7 {
		t.Errorf("exit status %d, %v:\n%s%s", code, err, text, said)
	}
	if !strings.Contains(said, "has run in "+out+" already and ended with workload; nothing was started") {
		t.Errorf("said %s", said)
	}
	// It stays when another one could not start.
	if code, _, _ := run("--again"); code != 1 {
		t.Errorf("exit status %d", code)
	}
	if code, _, _ := run(); code != 4 {
		t.Errorf("exit status %d after a try that did not start", code)
	}
}
