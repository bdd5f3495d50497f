package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Reaper is the one owner of the processes below this one. It waits for every child, those it started and the
// orphans that the kernel hands to PID 1, so nothing else in the program may start or wait for a process.
type Reaper struct {
	// mu is held across fork and across wait: a child that ends at once is not reaped before it is known.
	mu       sync.Mutex
	children map[int]*Child
	orphans  int

	signals chan os.Signal
	quit    chan struct{}
	gone    chan struct{}
}

// NewReaper starts to reap. Close ends it; PID 1 has no need to.
func NewReaper() *Reaper {
	r := &Reaper{
		children: make(map[int]*Child),
		signals:  make(chan os.Signal, 1),
		quit:     make(chan struct{}),
		gone:     make(chan struct{}),
	}
	signal.Notify(r.signals, syscall.SIGCHLD)
	go r.loop()
	return r
}

// Close stops to reap and returns when the last wait is over. Children go on, unwaited for. Call it once.
func (r *Reaper) Close() {
	signal.Stop(r.signals)
	close(r.quit)
	<-r.gone
}

// Orphans is the number of processes reaped so far that nobody here had started.
func (r *Reaper) Orphans() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.orphans
}

func (r *Reaper) loop() {
	defer close(r.gone)
	for {
		r.reap()
		select {
		case <-r.signals:
		case <-r.quit:
			return
		}
	}
}

// reap takes every status there is: one SIGCHLD may stand for several children.
func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		c, ours := r.children[pid]
		if !ours {
			r.orphans++
			continue
		}
		delete(r.children, pid)
		c.status = status
		close(c.done)
		c.pidfd.Close()
	}
}

// A Child is a process that Start made.
type Child struct {
	pid    int
	pidfd  *os.File
	done   chan struct{}
	status syscall.WaitStatus // valid once done is closed
}

// Start runs the program at path. argv includes argv[0]; attr may be nil. Two things differ from os.StartProcess:
// a nil attr.Env is the empty environment, for ours comes from the boot loader; and attr.Sys.PidFD must be nil, for
// the reaper holds the pidfd.
func (r *Reaper) Start(path string, argv []string, attr *os.ProcAttr) (*Child, error) {
	if attr == nil {
		attr = &os.ProcAttr{}
	}
	var sys syscall.SysProcAttr
	if attr.Sys != nil {
		sys = *attr.Sys
	}
	if sys.PidFD != nil {
		return nil, fmt.Errorf("start %s: SysProcAttr.PidFD is set; leave it to the reaper", path)
	}
	pidfd := -1
	sys.PidFD = &pidfd
	p := &syscall.ProcAttr{Dir: attr.Dir, Env: attr.Env, Sys: &sys}
	for _, f := range attr.Files {
		if f == nil {
			p.Files = append(p.Files, ^uintptr(0)) // closed in the child
			continue
		}
		p.Files = append(p.Files, f.Fd())
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	pid, _, err := syscall.StartProcess(path, argv, p)
	runtime.KeepAlive(attr)
	if err != nil {
		return nil, &os.PathError{Op: "start", Path: path, Err: err}
	}
	if pidfd < 0 { // a kernel older than 5.4
		syscall.Kill(pid, syscall.SIGKILL)
		return nil, fmt.Errorf("start %s: kernel gives no pidfd; Linux 5.4 or later is needed", path)
	}
	c := &Child{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// Pid is the process id. It may belong to another process once Wait has returned a status.
func (c *Child) Pid() int { return c.pid }

// Done is closed when the child has ended and its status is known.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait returns the status of the child when it has ended. If ctx ends first, Wait returns the cause and the child
// goes on: it is the caller who decides to Kill. Any number of goroutines may Wait.
func (c *Child) Wait(ctx context.Context) (syscall.WaitStatus, error) {
	select {
	case <-c.done:
		return c.status, nil
	default:
	}
	select {
	case <-c.done:
		return c.status, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for process %d: %w", c.pid, context.Cause(ctx))
	}
}

// Kill sends SIGKILL. See Signal.
func (c *Child) Kill() error { return c.Signal(unix.SIGKILL) }

// Signal sends s to the child, and never to another process that got its number: it goes through the pidfd. A
// child that has ended already gives os.ErrProcessDone.
func (c *Child) Signal(s unix.Signal) error {
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return os.ErrProcessDone
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, 0) }); err != nil {
		return os.ErrProcessDone // the reaper has closed it
	}
	if errors.Is(sent, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if sent != nil {
		return fmt.Errorf("signal %v to process %d: %w", s, c.pid, sent)
	}
	return nil
}
