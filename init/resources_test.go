package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

const mib = 1 << 20

// TestLimits: what a manifest leaves open follows from the memory that there is; what it says holds.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		free  room
		taken int64
		want  manifest.Resources
		bound int64 // results.limit_bytes
		limits
	}{
		"a small machine": {room{ram: 256 * mib, memory: 128 * mib}, 0, manifest.Resources{}, manifest.DefaultLimit,
			limits{memory: 64 * mib, scratch: 32 * mib, results: 32 * mib, pids: 512}},
		"a large machine": {room{ram: 64 << 30, memory: 60 << 30, pids: 32000, cpus: 8}, 0, manifest.Resources{}, manifest.DefaultLimit,
			limits{memory: 60<<30 - 64*mib, scratch: 30<<30 - 32*mib, results: 256 * mib, pids: mostPIDs}},
		"what the inputs take is not the workload's": {room{ram: 2 << 30, memory: 1 << 30}, 512 * mib, manifest.Resources{}, manifest.DefaultLimit,
			limits{memory: 448 * mib, scratch: 224 * mib, results: 224 * mib, pids: 3584}},
		"a kernel with few process ids": {room{ram: 2 << 30, memory: 1 << 30, pids: 300}, 0, manifest.Resources{}, manifest.DefaultLimit,
			limits{memory: 960 * mib, scratch: 480 * mib, results: 256 * mib, pids: 300}},
		"all of it said": {room{ram: 2 << 30, memory: 1 << 30, pids: 32000, cpus: 4}, 0,
			manifest.Resources{MemoryBytes: 600 * mib, PIDs: 20, DiskBytes: 50 * mib, CPUs: 3}, 500 * mib,
			limits{memory: 600 * mib, scratch: 50 * mib, results: 500 * mib, pids: 20, cpus: 3}},
		"memory of which some is on swap": {room{ram: 256 * mib, memory: 128 * mib, swap: 1 << 30}, 0, manifest.Resources{MemoryBytes: 512 * mib}, manifest.DefaultLimit,
			limits{memory: 512 * mib, swap: 256 * mib, scratch: 256 * mib, results: 256 * mib, pids: 4096}},
	} {
		got, err := limitsFor(&manifest.Manifest{Resources: c.want, Results: manifest.Results{LimitBytes: c.bound}}, c.free, c.taken)
		if err != nil || got != c.limits {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.limits)
		}
	}
}

// TestImpossibleLimits are refused before a key is asked for, with the numbers and what to do.
func TestImpossibleLimits(t *testing.T) {
	free := room{ram: 256 * mib, memory: 128 * mib, pids: 1000, cpus: 2}
	for name, c := range map[string]struct{ keys, want string }{
		"memory":                          {`"resources": {"memory_bytes": 1073741824}`, "resources.memory_bytes: is 1024 MiB, in memory, and of the 128 MiB free the images and files take 0 MiB at least: ask for less, or start the machine with more (ampoule run --memory, or --swap)"},
		"memory, by what the inputs take": {`"resources": {"memory_bytes": 134217728}`, "resources.memory_bytes: is 128 MiB"},
		"scratch":                         {`"resources": {"disk_bytes": 1073741824}`, "resources.disk_bytes: is 1024 MiB, in memory"},
		"results":                         {`"results": {"limit_bytes": 1073741824}`, "results.limit_bytes: is 1024 MiB, in memory"},
		"processes":                       {`"resources": {"pids": 4000000}`, "resources.pids: is 4000000, and this machine can have 1000: ask for less"},
		"processors":                      {`"resources": {"cpus": 3}`, "resources.cpus: is 3, and this machine has 2: ask for less, or start it with more (ampoule run --vcpus)"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			if rest, ok := strings.CutPrefix(c.keys, `"results": {`); ok {
				f.edit(`"results": {`, `"results": {`+strings.TrimSuffix(rest, "}")+",")
			} else {
				f.edit(`"version": 1`, `"version": 1, `+c.keys)
			}
			f.tamper = func(m *machine) { m.memory = func() (room, error) { return free, nil } }
			f.boot()
			f.ends("resolve", result.BadManifest, false)
			if !strings.Contains(f.log(), c.want) {
				t.Errorf("the log does not say %q:\n%s", c.want, f.log())
			}
		})
	}
}

// TestTooLittleIsLeft: what images unpack to is known only when they have.
func TestTooLittleIsLeft(t *testing.T) {
	f := newFlow(t)
	left := int64(100 * mib)
	f.tamper = func(m *machine) {
		m.memory = func() (room, error) { left -= 15 * mib; return room{ram: 256 * mib, memory: left}, nil }
	}
	f.boot()
	f.ends("execute", result.BadImage, false)
	if want := "the images and files have left 55 MiB free, of which PID 1 needs 64 MiB and a workload 8"; !strings.Contains(f.log(), want) {
		t.Errorf("the log does not say %q:\n%s", want, f.log())
	}
}

// TestGrace: the manifest's goes to the workload, and there is one without.
func TestGrace(t *testing.T) {
	for keys, want := range map[string]time.Duration{``: defaultGrace, `, "resources": {"grace": "1m", "cpus": 1}`: time.Minute} {
		f := newFlow(t)
		f.edit(`"version": 1`, `"version": 1`+keys)
		var got workload.Spec
		f.tamper = func(m *machine) {
			work := m.runWorkload
			m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) { got = s; return work(ctx, s) }
		}
		f.boot()
		f.ends("", result.OK, true)
		if got.Grace != want || (got.CPUs != 0) != (keys != "") {
			t.Errorf("%q: grace %v, %d CPUs", keys, got.Grace, got.CPUs)
		}
	}
}
