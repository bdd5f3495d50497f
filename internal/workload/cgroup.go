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
	dir string
	fd  *os.File
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
	err = errors.Join(g.set("pids.max", pids), g.set("memory.oom.group", 1))
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
	f, err := os.OpenFile(filepath.Join(g.dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(strconv.AppendInt(nil, value, 10))
	return errors.Join(err, f.Close())
}

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
const removeGrace = time.Second

// remove kills what is left in the group and removes it.
func (g *cgroup) remove() {
	if g == nil {
		return
	}
	g.fd.Close()
	if os.Remove(g.dir) == nil {
		return // as it should be: the namespace died with its first process
	}
	g.set("cgroup.kill", 1)
	events, err := os.Open(filepath.Join(g.dir, "cgroup.events"))
	if err != nil {
		return
	}
	defer events.Close()
	end := time.Now().Add(removeGrace)
	for g.count("cgroup.events", "populated") > 0 && time.Now().Before(end) {
		// The kernel says when the file has changed.
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		unix.Poll(poll, int(time.Until(end).Milliseconds()))
	}
	os.Remove(g.dir)
}
