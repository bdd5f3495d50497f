package main

import (
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// memoryReserve is what a workload without a limit of its own leaves to PID 1, which has to seal what it wrote, bytes.
const memoryReserve = 64 << 20

// What a workload gets where the manifest says nothing, by the memory that it has.
const (
	memoryPerPID = 128 << 10 // bytes: a process that does nothing takes as much of the kernel's memory and its own
	fewestPIDs   = 256
	mostPIDs     = 16384
	defaultGrace = 10 * time.Second
	kernelPIDs   = 512 // of pid_max, what the kernel's threads, PID 1 and the stub may have

	smallestMemory  = 8 << 20 // bytes, below which no program starts
	smallestResults = 1 << 20
)

// limits are what the workload may have.
type limits struct {
	memory, swap     int64 // bytes; swap is the part of memory that may be there
	scratch, results int64 // bytes, in memory
	pids             int64
	cpus             int64 // 0: all
}

// limitsFor gives a workload its share of what is free, or says why the manifest's wishes cannot come true. taken is what the inputs
// will at least have taken of it, bytes; once they lie there, 0.
func limitsFor(doc *manifest.Manifest, free room, taken int64) (l limits, err error) {
	want := doc.Resources
	most := free.total() - taken
	if l.memory = want.MemoryBytes; l.memory == 0 {
		l.memory = most - memoryReserve
	}
	l.swap = max(0, l.memory-free.ram)
	l.scratch, l.results = l.memory/2, min(doc.Results.LimitBytes, max(l.memory/2, smallestResults))
	l.pids = min(max(l.memory/memoryPerPID, fewestPIDs), mostPIDs)
	if free.pids > 0 {
		l.pids = min(l.pids, free.pids)
	}
	if want.DiskBytes > 0 {
		l.scratch = want.DiskBytes
	}
	if want.PIDs > 0 {
		l.pids = want.PIDs
	}
	l.cpus = want.CPUs
	results := int64(0) // asked for
	if doc.Results.LimitBytes != manifest.DefaultLimit {
		results = doc.Results.LimitBytes
		l.results = results
	}
	for _, w := range []struct {
		key  string
		want int64
	}{{"resources.memory_bytes", want.MemoryBytes}, {"resources.disk_bytes", want.DiskBytes}, {"results.limit_bytes", results}} {
		if w.want > most {
			return l, fmt.Errorf("%s: is %d MiB, in memory, and of the %v the images and files take %d MiB at least: "+
				"ask for less, or start the machine with more (ampoule run --memory, or --swap)", w.key, w.want>>20, free, taken>>20)
		}
	}
	switch {
	case free.pids > 0 && want.PIDs > free.pids:
		return l, fmt.Errorf("resources.pids: is %d, and this machine can have %d: ask for less", want.PIDs, free.pids)
	case free.cpus > 0 && want.CPUs > free.cpus:
		return l, fmt.Errorf("resources.cpus: is %d, and this machine has %d: ask for less, or start it with more (ampoule run --vcpus)",
			want.CPUs, free.cpus)
	}
	return l, nil
}

// limit writes the workload's limits into its spec.
func (r *run) limit(s *workload.Spec) (limits, error) {
	free, err := r.memory()
	if err != nil {
		return limits{}, because(result.Internal, err)
	}
	l, err := limitsFor(r.doc, free, 0)
	if err == nil && l.memory < smallestMemory {
		err = fmt.Errorf("the images and files have left %v, of which PID 1 needs %d MiB and a workload %d: "+
			"start the machine with more (ampoule run --memory, or --swap)", free, memoryReserve>>20, smallestMemory>>20)
	}
	s.MemoryBytes, s.SwapBytes, s.ScratchBytes, s.PIDs, s.CPUs = l.memory, l.swap, l.scratch, l.pids, l.cpus
	s.Grace = r.grace()
	return l, because(result.BadImage, err)
}

// grace is how long the workload has to tidy up.
func (r *run) grace() time.Duration {
	if g := r.doc.Resources.Grace; g > 0 {
		return g
	}
	return defaultGrace
}

// readMachine is readRoom, and what else there is of the machine.
func readMachine() (room, error) {
	free, err := readRoom("/proc/meminfo")
	if err != nil {
		return room{}, err
	}
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return room{}, err
	}
	if _, err := fmt.Sscan(string(b), &free.pids); err != nil {
		return room{}, fmt.Errorf("pid_max %q: %w", b, err)
	}
	free.pids, free.cpus = max(1, free.pids-kernelPIDs), int64(runtime.NumCPU())
	return free, nil
}
