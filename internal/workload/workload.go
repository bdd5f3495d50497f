// Package workload runs one program, once, in a sandbox that it cannot leave, and tells how it ended.
//
// PID 1 re-executes itself as a stub in new namespaces; the stub builds the sandbox around itself, drops everything
// that it could do to the machine, and becomes the program. Nobody trusts the program: not the owners of the data, not
// PID 1. It can reach neither the keys in PID 1's memory, nor the TEE's device, nor the host.
//
// The program is PID 1 of its namespace, as in a container: orphans become its children, it does not get signals that
// it has no handler for, and when it ends the kernel ends all that it started.
package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/ampoule-vm/ampoule/internal/guest"
	"golang.org/x/sys/unix"
)

// A Spec is what to run and on what. Paths are absolute.
type Spec struct {
	Root     string   // verified root file system; it is never written to
	Args     []string // the whole argv; a name without a slash is looked for in the PATH of Env, inside the sandbox
	Env      []string // the whole environment
	Cwd      string   // "" is /cocos; made where the image has no such folder
	UID, GID int      // not 0
	Datasets string   // folder, seen read-only as /cocos/datasets
	Results  string   // folder, seen as /cocos/results and given to UID; MountBounded bounds it
	Scratch  string   // an empty folder on which the sandbox mounts its scratch

	Files []File // laid over the image, read-only, for UID alone to read

	Services []Service // that answer the program; at most 128

	ScratchBytes int64 // what may be written besides results, /tmp and /dev/shm included; 0: half of the memory
	MemoryBytes  int64 // of all processes, and of what they write, 8 MiB or more; 0: no limit but the machine's
	SwapBytes    int64 // as many of MemoryBytes may be on swap, and no more; 0: none of them
	PIDs         int64 // processes and threads, 16 or more; 0: 4096

	Stdout, Stderr io.Writer // written to as output comes, from one goroutine each; must not block; nil discards
}

const defaultPIDs = 4096

// The stub is a Go program under the same limits. It was seen to need 6 threads and 2 MiB.
const (
	minPIDs   = 16
	minMemory = 8 << 20
)

// An Outcome is how the workload ended. Several can hold: what ran out of memory was also killed by a signal.
type Outcome struct {
	Exit     int    // status, if it exited by itself
	Signal   string // name of the signal that ended it, like "SIGSEGV", or ""
	Deadline bool   // it was killed because ctx had ended
	OOM      bool   // the kernel killed it, or a process of it, for want of memory
}

// ErrProgram is why Run fails when the sandbox was fine and the program cannot be started in it: there is no such
// file, it is not for this machine, the user may not run it. The image or the manifest is to blame.
var ErrProgram = errors.New("program cannot be started")

// Run runs s in a sandbox and returns when the program and everything that it started is gone. When ctx ends, they are
// killed. An error means that nothing ran: the sandbox could not be made, or, with ErrProgram, the program not be
// started.
func Run(ctx context.Context, r *guest.Reaper, s Spec) (out Outcome, err error) {
	if err := s.check(); err != nil {
		return Outcome{}, err
	}
	group, err := newCgroup(s)
	if err != nil {
		return Outcome{}, fmt.Errorf("cgroup of the workload: %w", err)
	}
	defer group.remove()

	p, err := newPipes(len(s.Services) > 0)
	if err != nil {
		return Outcome{}, err
	}
	defer p.close()
	sys := &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	if group != nil {
		sys.UseCgroupFD, sys.CgroupFD = true, int(group.fd.Fd())
	}
	child, err := r.Start("/proc/self/exe", []string{stubName}, &os.ProcAttr{Dir: "/", Files: p.child(), Sys: sys})
	if err != nil {
		return Outcome{}, fmt.Errorf("start the sandbox: %w", err)
	}
	p.closeChild()
	said := p.talk(s)
	served := p.serve(s, child.Kill)

	status, err := child.Wait(ctx)
	if err != nil {
		// The stub is PID 1 of its namespace: the kernel kills everything in there with it.
		if err := child.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return Outcome{}, fmt.Errorf("kill the workload: %w", err)
		}
		if status, err = child.Wait(context.WithoutCancel(ctx)); err != nil {
			return Outcome{}, err
		}
		// It may have ended by itself in the same moment.
		out.Deadline = status.Signaled() && status.Signal() == unix.SIGKILL
	}
	p.drain()
	unserved := served.end()
	if err := <-said; err != nil && !out.Deadline {
		return Outcome{}, err
	}
	if unserved != nil && !out.Deadline {
		return Outcome{}, unserved
	}
	if status.Signaled() {
		out.Signal = signalName(status.Signal())
	} else {
		out.Exit = status.ExitStatus()
	}
	out.OOM = group.oom()
	return out, nil
}

func (s *Spec) check() error {
	switch {
	case len(s.Args) == 0 || s.Args[0] == "":
		return fmt.Errorf("%w: args is empty", ErrProgram)
	case s.UID <= 0 || s.GID <= 0:
		return fmt.Errorf("user %d, group %d: a workload never runs as root", s.UID, s.GID)
	case s.PIDs != 0 && s.PIDs < minPIDs:
		return fmt.Errorf("%w: its limit is %d processes and threads; the sandbox itself needs %d", ErrProgram, s.PIDs, minPIDs)
	case s.MemoryBytes != 0 && s.MemoryBytes < minMemory:
		return fmt.Errorf("%w: its limit is %d bytes of memory; the sandbox itself needs %d", ErrProgram, s.MemoryBytes, minMemory)
	}
	if err := checkServices(s.Services); err != nil {
		return err
	}
	return checkFiles(s.Files)
}

func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); name != "" {
		return name
	}
	return "signal " + strconv.Itoa(int(s)) // a real-time signal
}

// MountBounded makes dir, which must exist and be empty, a file system of its own that takes at most size bytes, in
// memory. Nothing on it can be executed. It is for Spec.Results.
func MountBounded(dir string, size int64) error {
	if size <= 0 {
		return fmt.Errorf("bound of %s: %d bytes, want more than 0", dir, size)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, tmpfsOptions(size)); err != nil {
		return fmt.Errorf("mount %d bytes on %s: %w", size, dir, err)
	}
	return nil
}

// tmpfsOptions bound a tmpfs in bytes and in files, for an empty file takes memory as well. Size 0 leaves both to the
// kernel: half of the memory, and a file for each other page of it.
func tmpfsOptions(size int64) string {
	if size <= 0 {
		return "mode=0755"
	}
	return fmt.Sprintf("mode=0755,size=%d,nr_inodes=%d", size, 1024+size/4096)
}
