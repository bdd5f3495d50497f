// Package workload runs one program, once, in a sandbox that it cannot leave, and tells how it ended.
//
// PID 1 re-executes itself as a stub in new namespaces; the stub builds the sandbox around itself and starts a process
// in a user namespace, which drops everything that it could do to the machine and becomes the program. Nobody trusts the program: not the owners of the data, not
// PID 1. It can reach neither the keys in PID 1's memory, nor the TEE's device, nor the host.
//
// The stub stays as the first process of the namespace, out of the program's reach: it collects orphans, so that a
// program need not, and when it ends, which it does with the program, the kernel ends all that the program has started.
package workload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

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

	Algorithm string            // a tree, seen read-only as /cocos/algorithm; "": none besides Root
	Links     map[string]string // symbolic links in /cocos, absolute path to target; the image's own things of these names give way
	Program   *os.File          // what is executed, with Args as its argv; nil: Args[0]. No path of the sandbox leads to it

	Files []File // laid over the image, read-only, for UID alone to read

	Services []Service // that answer the program; at most 128

	ScratchBytes int64 // what may be written besides results, /tmp and /dev/shm included; 0: half of the memory
	MemoryBytes  int64 // of all processes, and of what they write, 8 MiB or more; 0: no limit but the machine's
	SwapBytes    int64 // as many of MemoryBytes may be on swap, and no more; 0: none of them
	PIDs         int64 // processes and threads, 16 or more; 0: 4096
	CPUs         int64 // as much time as so many of them give; 0: all that the machine has

	// Grace is how long the program has after SIGTERM, which it gets when ctx ends; 0: none, it is killed at once.
	Grace time.Duration

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
	Deadline bool   // it was told to end, or killed, because ctx had ended
	OOM      bool   // the kernel killed it, or a process of it, for want of memory
	Usage    Usage
}

// ErrProgram is why Run fails when the sandbox was fine and the program cannot be started in it: there is no such
// file, it is not for this machine, the user may not run it. The image or the manifest is to blame.
var ErrProgram = errors.New("program cannot be started")

// Run runs s in a sandbox and returns when the program and everything that it started is gone. When ctx ends, the
// program gets SIGTERM, and after a grace all are killed. An error means that nothing ran: the sandbox could not be made
// or, with ErrProgram, the program not be started; or that not all of it is gone.
func Run(ctx context.Context, r *guest.Reaper, s Spec) (out Outcome, err error) {
	if err := s.check(); err != nil {
		return Outcome{}, err
	}
	group, err := newCgroup(s)
	if err != nil {
		return Outcome{}, fmt.Errorf("cgroup of the workload: %w", err)
	}
	defer group.close()

	p, err := newPipes(len(s.Services) > 0)
	if err != nil {
		return Outcome{}, err
	}
	defer p.close()
	sys := &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
	}
	files := p.child()
	if group != nil {
		p.cgroup = len(files)
		files = append(files, group.fd)
	}
	if s.Program != nil {
		p.program = len(files)
		files = append(files, s.Program)
	}
	child, err := r.Start("/proc/self/exe", []string{stubName}, &os.ProcAttr{Dir: "/", Files: files, Sys: sys})
	if err != nil {
		return Outcome{}, fmt.Errorf("start the sandbox: %w", err)
	}
	p.closeChild()
	told := p.talk(s)
	served := p.serve(s, child.Kill)

	killed, err := end(ctx, child, s.Grace)
	if err != nil {
		return Outcome{}, err
	}
	p.drain()
	unserved := served.end()
	said := <-told
	out.OOM, out.Usage = group.oom(), group.usage()
	if err := group.remove(); err != nil {
		return Outcome{}, err
	}
	switch e := said.ending; {
	case killed:
		return Outcome{Signal: "SIGKILL", Deadline: true, OOM: out.OOM, Usage: out.Usage}, nil
	case said.err != nil:
		return Outcome{}, said.err
	case unserved != nil:
		return Outcome{}, unserved
	case e == nil:
		return Outcome{}, errors.New("sandbox: the stub ended before the program")
	case e.status.Signaled():
		out.Signal, out.Deadline = signalName(e.status.Signal()), e.stopped
	default:
		out.Exit, out.Deadline = e.status.ExitStatus(), e.stopped
	}
	return out, nil
}

// end waits for the stub's end. When ctx is over, the program has grace to tidy up; then everything is killed.
func end(ctx context.Context, stub *guest.Child, grace time.Duration) (killed bool, err error) {
	_, err = stub.Wait(ctx)
	if err == nil {
		return false, nil
	}
	if grace > 0 {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err := stub.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return false, fmt.Errorf("stop the workload: %w", err)
		}
		if _, err = stub.Wait(late); err == nil {
			return false, nil
		}
	}
	// The stub is PID 1 of its namespace: the kernel kills everything in there with it.
	if err := stub.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false, fmt.Errorf("kill the workload: %w", err)
	}
	status, err := stub.Wait(context.WithoutCancel(ctx))
	// It may have ended by itself in the same moment.
	return status.Signaled() && status.Signal() == unix.SIGKILL, err
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
