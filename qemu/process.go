package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pipeGrace is how long the output of a process that has ended is waited for, should a child of it hold the pipe.
const pipeGrace = 2 * time.Second

// A process is QEMU while it runs.
type process struct {
	mu     sync.Mutex // reaped
	pid    int
	reaped bool
	exited chan struct{} // closed when it has ended and its output is complete
	err    error         // of Wait, then
	signs  chan End      // a crash that its output shows
	stderr *watcher
}

// boot starts QEMU, waits for its end or brings it about, and fills rep.
func (h *host) boot(ctx context.Context, rep *Report) error {
	p, err := h.start(rep)
	if err != nil {
		return err
	}
	end, cause := h.watch(ctx, p)
	p.kill()
	<-p.exited
	rep.Exited, rep.End = time.Now(), end
	if end == PoweredOff && p.err != nil {
		rep.End = Failed
		return fmt.Errorf("QEMU: %w: %s", p.err, p.stderr.lastLines())
	}
	return cause
}

// watch returns how the VM is to end. The error is for ends that are not the guest's doing.
func (h *host) watch(ctx context.Context, p *process) (End, error) {
	timeout := time.NewTimer(h.cfg.Timeout)
	defer timeout.Stop()
	grace := time.NewTimer(0)
	defer grace.Stop()
	<-grace.C
	var pending End
	end := func(e End, in time.Duration) {
		if pending == "" {
			pending = e
			grace.Reset(in)
		}
	}
	outcome := h.server.outcome
	for {
		select {
		case <-p.exited:
			// Its last words may have been that it crashes.
			select {
			case sign := <-p.signs:
				end(sign, 0)
			default:
			}
			if pending == Panicked || pending == KVMFailed {
				return pending, nil
			}
			return PoweredOff, nil
		case <-ctx.Done():
			return Cancelled, fmt.Errorf("VM: %w", context.Cause(ctx))
		case <-timeout.C:
			return TimedOut, nil
		case <-grace.C:
			return pending, nil
		case err := <-h.vsock.fails():
			return Broken, fmt.Errorf("vsock device: %w", err)
		case <-outcome:
			outcome = nil
			end(Killed, powerOffGrace)
		case sign := <-p.signs:
			end(sign, panicGrace)
		}
	}
}

// start runs QEMU in a process group of its own that the kernel kills with us.
func (h *host) start(rep *Report) (*process, error) {
	const consoleFD = 3 // the first of ExtraFiles
	console, consoleIn, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	defer consoleIn.Close()
	p := &process{exited: make(chan struct{}), signs: make(chan End, 4)}
	d := h.cfg.devices()
	d.Console = fmt.Sprintf("/dev/fd/%d", consoleFD) // not the file itself: a guest could fill the disk
	extra := append([]*os.File{consoleIn}, h.vsock.plug(&d, consoleFD+1)...)
	cmd := exec.Command(h.cfg.QEMU, h.cfg.Shape.Args(d)...)
	d.Console = rep.ConsolePath
	rep.Command = ShellCommand(h.cfg.QEMU, h.cfg.Shape.Args(d))

	out, err1 := newWatcher(rep.ConsolePath, p.signs, "Kernel panic - not syncing", Panicked)
	p.stderr, err = newWatcher(filepath.Join(h.cfg.Dir, StderrFile), p.signs, "KVM internal error", KVMFailed)
	if err := errors.Join(err1, err); err != nil {
		return nil, errors.Join(err, console.Close(), out.Close(), p.stderr.Close())
	}
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = extra, p.stderr, p.stderr, pipeGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	rep.QEMUStart = time.Now()
	started := make(chan error)
	go p.run(cmd, started, func() { consoleIn.Close() }, console, out)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return p, nil
}

// run is one goroutine on one thread, for the kernel sends the parent-death signal when the thread that forked ends.
func (p *process) run(cmd *exec.Cmd, started chan<- error, closeIn func(), console *os.File, out *watcher) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.exited)
	err := cmd.Start()
	closeIn()
	if err == nil {
		p.pid = cmd.Process.Pid
	}
	started <- err
	var wg sync.WaitGroup
	wg.Go(func() {
		// It ends when the last holder of the pipe does; what the disk does not take is lost.
		_, _ = io.Copy(out, console)
	})
	if err == nil {
		awaitExit(p.pid)
		p.kill() // what it may have started
		p.mu.Lock()
		p.reaped = true
		p.mu.Unlock()
		p.err = cmd.Wait()
		p.err = errors.Join(p.err, console.SetReadDeadline(time.Now().Add(pipeGrace)))
	}
	wg.Wait()
	p.err = errors.Join(p.err, console.Close(), out.Close(), p.stderr.Close())
}

// awaitExit waits for the end of a process and leaves it unreaped, so that its number is still its own.
func awaitExit(pid int) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// kill ends the whole process group.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		// It fails only when nothing is left to kill.
		_ = unix.Kill(-p.pid, unix.SIGKILL)
	}
}
