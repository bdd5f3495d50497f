package workload

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/guest"
)

// cgroupRoot is where PID 1 has mounted cgroup2.
const cgroupRoot = "/sys/fs/cgroup"

// A cgroup holds the workload and limits it. A nil *cgroup is a machine without cgroup2, as hosts of tests can be.
type cgroup struct {
	dir     string
	fd      *os.File
	removed bool
}

// newCgroup returns nil where there is no cgroup2. To PID 1 that is an error: a limit that was asked for holds.
func newCgroup(s Spec) (*cgroup, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		if os.Getpid() == 1 {
			return nil, fmt.Errorf("no cgroup2 on %s (file system type %#x, %v)", cgroupRoot, fs.Type, err)
		}
		return nil, nil
	}
	parent := cgroupRoot
	if _, err := os.Stat(guest.RunCgroup); err == nil {
		parent = guest.RunCgroup
	}
	dir, err := os.MkdirTemp(parent, "workload-")
	if err != nil {
		return nil, err
	}
	g := &cgroup{dir: dir}
	pids := s.PIDs
	if pids <= 0 {
		pids = defaultPIDs
	}
	// One process killed for want of memory ends the run: half a computation is none.
	err = errors.Join(g.set("pids.max", pids), g.set("memory.oom.group", 1), g.set("cpu.weight", cpuWeight))
	if s.CPUs > 0 {
		err = errors.Join(err, g.write("cpu.max", fmt.Sprintf("%d %d", s.CPUs*cpuPeriod, cpuPeriod)))
	}
	if s.MemoryBytes > 0 {
		err = errors.Join(err, g.set("memory.max", s.MemoryBytes-s.SwapBytes))
		if e := g.set("memory.swap.max", s.SwapBytes); !errors.Is(e, os.ErrNotExist) { // a kernel without swap has no such file
			err = errors.Join(err, e)
		}
	}
	if err == nil {
		g.fd, err = os.Open(dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return g, nil
}

func (g *cgroup) set(name string, value int64) error {
	return g.write(name, strconv.FormatInt(value, 10))
}

func (g *cgroup) write(name, value string) error {
	f, err := os.OpenFile(filepath.Join(g.dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

const (
	// cpuWeight is what all of the workload's threads together weigh, where each thread of PID 1 counts 100: they get
	// what PID 1 leaves, and leave it what it needs.
	cpuWeight = 20
	cpuPeriod = 100_000 // microseconds, the kernel's default
)

// oom tells whether the kernel killed anything in the group for want of memory.
func (g *cgroup) oom() bool {
	return g != nil && g.count("memory.events", "oom_kill") > 0
}

// count reads one line of a file like memory.events.
func (g *cgroup) count(file, key string) int {
	b, err := os.ReadFile(filepath.Join(g.dir, file))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte(key+" ")); ok {
			n, _ := strconv.Atoi(string(bytes.TrimSpace(v)))
			return n
		}
	}
	return 0
}

// removeGrace bounds the wait for the kernel to let go of a group.
const removeGrace = 5 * time.Second

// remove kills what is left in the group and removes it. Nothing should be left, for the namespace died with its first
// process; an error is that something is.
func (g *cgroup) remove() error {
	if g == nil || g.removed {
		return nil
	}
	if err := g.set("cgroup.kill", 1); err != nil {
		return fmt.Errorf("kill what is left of the workload: %w", err)
	}
	events, err := os.Open(filepath.Join(g.dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	for end := time.Now().Add(removeGrace); g.count("cgroup.events", "populated") > 0; {
		if time.Now().After(end) {
			left, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
			return fmt.Errorf("processes of the workload outlive it by %v: %q", removeGrace, left)
		}
		// The kernel says when the file has changed.
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		unix.Poll(poll, int(time.Until(end).Milliseconds()))
	}
	if err := os.Remove(g.dir); err != nil {
		return fmt.Errorf("cgroup of the workload: %w", err)
	}
	g.removed = true
	return nil
}

// close is for where there was no workload, or an error that says more than remove would.
func (g *cgroup) close() {
	if g == nil {
		return
	}
	g.remove()
	g.fd.Close()
}
