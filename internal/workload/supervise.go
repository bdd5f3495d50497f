package workload

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The stub is the first process of the sandbox and stays in it: it starts the program, waits for all that loses its
// parent, hands on the signal that says that time is over, and tells how the program ended. The program cannot reach
// it: it is another user's, in a user namespace above, and the kernel spares the first process of a pid namespace what
// signals come from within.

// programName is the argv[0] by which this program knows that it is in the sandbox and has to become the program.
const programName = "ampoule-program"

// A child is a program that the stub has started.
type child struct {
	pid   int
	pidfd int
}

// start makes the process that becomes the program: in the workload's cgroup, and in a user namespace that holds the
// program's user and group and nobody else. That namespace owns no mounts, no network, no processes: whoever gets
// capabilities in it by a hole in the kernel has them over nothing, nor is there a user 0.
func start(o *order) (p child, said string, err error) {
	specR, specW, err := os.Pipe()
	if err != nil {
		return p, "", err
	}
	defer specR.Close()
	defer specW.Close()
	upR, upW, err := os.Pipe()
	if err != nil {
		return p, "", err
	}
	defer upR.Close()
	defer upW.Close()
	p.pidfd = -1
	sys := &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWUSER,
		// The workload's cgroup is to look like the root of the tree: once the process is in it.
		Unshareflags: unix.CLONE_NEWCGROUP,
		UidMappings:  []syscall.SysProcIDMap{{ContainerID: o.UID, HostID: o.UID, Size: 1}},
		GidMappings:  []syscall.SysProcIDMap{{ContainerID: o.GID, HostID: o.GID, Size: 1}},
		Credential:   &syscall.Credential{Uid: uint32(o.UID), Gid: uint32(o.GID), NoSetGroups: true},
		// The bounding set of a new user namespace is full. This is what emptying it takes, and goes with it.
		AmbientCaps: []uintptr{unix.CAP_SETPCAP},
		PidFD:       &p.pidfd,
	}
	if o.Cgroup != 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, o.Cgroup
	}
	files := []uintptr{0, 1, 2, specR.Fd(), upW.Fd()}
	rest := *o
	rest.Files = nil // they lie there already
	if o.Program != 0 {
		rest.Program = len(files)
		files = append(files, uintptr(o.Program))
	}
	for _, fd := range files[3:5] {
		unix.SetNonblock(int(fd), false)
	}
	p.pid, _, err = syscall.StartProcess("/proc/self/exe", []string{programName}, &syscall.ProcAttr{Dir: "/", Env: []string{}, Files: files, Sys: sys})
	if err != nil {
		return p, "", fmt.Errorf("user namespace of user %d, group %d: %w", o.UID, o.GID, err)
	}
	specR.Close()
	upW.Close()
	// While the program runs, this process is no prize. Until it has its spec, that one waits.
	if err := keepOnlyKill(); err != nil {
		return p, "", err
	}
	sent := json.NewEncoder(specW).Encode(rest)
	specW.Close()
	b, err := io.ReadAll(io.LimitReader(upR, maxFault))
	return p, string(b), errors.Join(sent, err)
}

// stop are the signals that are handed on to the program.
func stopSignals() chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM)
	return c
}

// supervise waits for the program, and for whatever the kernel gives this process to wait for, and says on up how the
// program ended.
func (p child) supervise(up io.Writer, stop <-chan os.Signal) error {
	stopped, ended := make(chan bool, 1), make(chan struct{})
	go func() {
		select {
		case <-stop:
			stopped <- unix.PidfdSendSignal(p.pidfd, unix.SIGTERM, nil, 0) == nil
		case <-ended:
			stopped <- false
		}
	}()
	var status unix.WaitStatus
	for {
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the program: %w", err)
		}
		if pid == p.pid {
			break
		}
	}
	close(ended)
	e := ending{stopped: <-stopped, status: status}
	_, err := up.Write(e.bytes())
	return err
}

// An ending is how the program ended, and whether it had been asked to.
type ending struct {
	stopped bool
	status  unix.WaitStatus
}

func (e ending) bytes() []byte {
	b := []byte{0}
	if e.stopped {
		b[0] = 1
	}
	return binary.BigEndian.AppendUint32(b, uint32(e.status))
}

func parseEnding(said string) (e ending, err error) {
	if len(said) == 5 {
		e = ending{said[0] == 1, unix.WaitStatus(binary.BigEndian.Uint32([]byte(said[1:])))}
		if said[0] <= 1 && (e.status.Exited() || e.status.Signaled()) {
			return e, nil
		}
	}
	return ending{}, fmt.Errorf("sandbox: the stub said %.80q of the program's end", said)
}

// keepOnlyKill leaves the stub, in all its threads, the one capability that handing on a signal takes.
func keepOnlyKill() error {
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("no_new_privs of the stub: %w", e)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	kill := [2]unix.CapUserData{{Effective: 1 << unix.CAP_KILL, Permitted: 1 << unix.CAP_KILL}}
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&kill)), 0)
	if e != 0 {
		return fmt.Errorf("capabilities of the stub: %w", e)
	}
	return nil
}
