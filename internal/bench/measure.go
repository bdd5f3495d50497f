package bench

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a process took. Sizes are in bytes.
type Usage struct {
	Wall  time.Duration `json:"wall_ns"`
	Inner time.Duration `json:"inner_ns"`   // of Wall, what is not the program's own start; 0 if not known
	CPU   time.Duration `json:"cpu_ns"`     // user and system
	Peak  int64         `json:"peak_bytes"` // resident memory at its highest
	Anon  int64         `json:"anon_bytes"` // likewise, without the pages of files such as the program's own
	Held  int64         `json:"held_bytes"` // in files at the highest, besides those that it was asked for
}

// then adds a process that ran afterwards.
func (u Usage) then(v Usage) Usage {
	return Usage{u.Wall + v.Wall, u.Inner + v.Inner, u.CPU + v.CPU, max(u.Peak, v.Peak), max(u.Anon, v.Anon), max(u.Held, v.Held)}
}

// Measure runs a program to its end. What it says on standard error is part of the error. Held is what the file system
// of dir had more in use, at the highest, than before, if dir is not "": files that nobody can see any more count.
//
// The peak is VmHWM, read every few milliseconds. It is not ru_maxrss, which Linux makes at least the resident size of
// the process that has started the program.
func Measure(cmd *exec.Cmd, dir string) (Usage, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	before := inUse(dir)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return Usage{}, err
	}
	ended, seen := make(chan struct{}), make(chan Usage)
	go func() { seen <- watch(cmd.Process.Pid, dir, ended) }()
	err := cmd.Wait()
	wall := time.Since(start)
	close(ended)
	u := <-seen
	u.Wall, u.CPU, u.Held = wall, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime(), u.Held-before
	if err != nil {
		return u, fmt.Errorf("%s: %w: %.500s", filepath.Base(cmd.Path), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return u, nil
}

// watch reads the peak of a process, and the use of dir's file system, until ended is closed.
func watch(pid int, dir string, ended <-chan struct{}) (u Usage) {
	status := fmt.Sprintf("/proc/%d/status", pid)
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for {
		if b, err := os.ReadFile(status); err == nil {
			u.Peak, u.Anon = max(u.Peak, statusLine(b, "VmHWM:")), max(u.Anon, statusLine(b, "RssAnon:"))
		}
		u.Held = max(u.Held, inUse(dir))
		select {
		case <-ended:
			return u
		case <-tick.C:
		}
	}
}

// inUse is how much of dir's file system is in use, bytes.
func inUse(dir string) int64 {
	var st unix.Statfs_t
	if dir == "" || unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// statusLine is a line of /proc/PID/status or /proc/meminfo, bytes, or 0. A process that has ended has none.
func statusLine(status []byte, name string) int64 {
	for line := range bytes.Lines(status) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == name {
			kib, _ := strconv.ParseInt(string(f[1]), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// sizeOf sums the room that the files below dir take, bytes.
func sizeOf(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum, err
}
