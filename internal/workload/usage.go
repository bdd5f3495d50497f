package workload

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// A Usage is what the workload took, all its processes together, as its cgroup counts. A number is zero where there is
// no cgroup2 or the kernel does not count it.
type Usage struct {
	MemoryPeak int64 // bytes, with what it wrote to memory; Linux 5.19
	CPU        int64 // user and system time, µs
	PIDsPeak   int64 // processes and threads at once; Linux 6.11
	OOMKills   int64 // processes that the kernel killed for want of memory
}

// usage reads the group, which must still be there.
func (g *cgroup) usage() Usage {
	if g == nil {
		return Usage{}
	}
	return Usage{
		MemoryPeak: g.number("memory.peak"), CPU: int64(g.count("cpu.stat", "usage_usec")),
		PIDsPeak: g.number("pids.peak"), OOMKills: int64(g.count("memory.events", "oom_kill")),
	}
}

// number reads a file that holds one.
func (g *cgroup) number(file string) int64 {
	b, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	return n
}
