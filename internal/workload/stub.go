package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// stubName is the argv[0] by which this program knows that it is to become the workload.
const stubName = "ampoule-sandbox"

// maxSpec bounds the spec that the stub reads, bytes. A manifest has at most 1 MiB, an image config 8 MiB.
const maxSpec = 32 << 20

// An order is what the stub has to know of a Spec.
type order struct {
	Root, Cwd, Datasets, Results, Scratch string
	Args, Env                             []string
	UID, GID                              int
	ScratchBytes                          int64
	Files                                 []fileOrder
	Listen                                []string
	Cgroup                                int  // a descriptor of the workload's, or 0
	Strict                                bool // no wall may be missing: it is PID 1 that asks
	Algorithm                             string
	Links                                 map[string]string
	Program                               int // a descriptor, or 0
}

func orderOf(s Spec) order {
	o := order{Root: s.Root, Cwd: s.Cwd, Datasets: s.Datasets, Results: s.Results, Scratch: s.Scratch,
		Args: s.Args, Env: s.Env, UID: s.UID, GID: s.GID, ScratchBytes: s.ScratchBytes, Strict: os.Getpid() == 1,
		Algorithm: s.Algorithm, Links: s.Links}
	for _, v := range s.Services {
		o.Listen = append(o.Listen, v.Addr)
	}
	for _, f := range s.Files {
		o.Files = append(o.Files, fileOrder{f.Path, f.Data})
	}
	if o.Cwd == "" {
		o.Cwd = defaultCwd
	}
	return o
}

// IsStub tells whether this process was started by Run, or by the stub itself.
func IsStub() bool { return len(os.Args) == 1 && (os.Args[0] == stubName || os.Args[0] == programName) }

// Stub builds the sandbox around this process, starts the workload in it and waits for its end. It does not return.
// What it has to say goes back to Run through a pipe.
func Stub() {
	// Capabilities, seccomp and no_new_privs belong to a thread; the one that execs is the one that counts, and the
	// others end there.
	runtime.LockOSThread()
	// What it needs must not depend on the number of CPUs: a collection would start threads for a quarter of them.
	debug.SetGCPercent(-1)
	up := os.NewFile(faultFD, "fault")
	do := sandboxed
	if os.Args[0] == programName {
		do = become
	}
	err := do(up)
	if err == nil {
		os.Exit(0)
	}
	if errors.Is(err, ErrProgram) {
		fmt.Fprint(up, programFault)
	}
	fmt.Fprint(up, err)
	os.Exit(127)
}

func readOrder() (o order, err error) {
	in := os.NewFile(specFD, "spec")
	defer in.Close()
	d := json.NewDecoder(io.LimitReader(in, maxSpec))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return o, fmt.Errorf("read the spec: %w", err)
	}
	return o, nil
}

type sandboxStep struct {
	name string
	do   func(*order) error
}

func inOrder(o *order, steps []sandboxStep) error {
	for _, step := range steps {
		if err := step.do(o); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// sandboxed is the sandbox, in the order in which it closes, and the life of the program in it.
func sandboxed(up io.Writer) error {
	stop := stopSignals()
	o, err := readOrder()
	if err != nil {
		return err
	}
	if err := inOrder(&o, []sandboxStep{
		{"close descriptors", closeDescriptors},
		{"host name", func(*order) error { return unix.Sethostname([]byte("ampoule")) }},
		{"loopback", func(*order) error { return loopbackUp() }},
		{"listen", passListeners},
		{"root", makeRoot},
		{"groups", func(*order) error { return unix.Setgroups(nil) }}, // nobody can in the user namespace
		{"limits", func(*order) error { return setLimits() }},
		{"make the working directory", func(o *order) error { return asProgram(os.MkdirAll(o.Cwd, 0o755)) }},
	}); err != nil {
		return err
	}
	p, said, err := start(&o)
	if said == "" && err != nil {
		return err
	}
	if _, err := io.WriteString(up, said); err != nil || said != ready {
		os.Exit(127) // that was why
	}
	// Whoever reads the program's output sees the end of it when the program's own descriptors are closed.
	for fd := range 3 {
		unix.Close(fd)
	}
	return p.supervise(up, stop)
}

// become is what the process that is to be the program still has to lose.
func become(up io.Writer) error {
	o, err := readOrder()
	if err != nil {
		return err
	}
	if err := inOrder(&o, []sandboxStep{
		{"close descriptors", closeDescriptors},
		{"signals", func(*order) error { return defaultSignals() }},
		{"privileges", dropPrivileges},
		{"working directory", func(o *order) error { return asProgram(os.Chdir(o.Cwd)) }},
		{"landlock", confine},
		{"system calls", func(*order) error { return filterSyscalls() }},
	}); err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", o.Program)
	if o.Program == 0 {
		var err error
		if path, err = lookPath(o.Args[0], o.Env); err != nil {
			return asProgram(err)
		}
	}
	if _, err := io.WriteString(up, ready); err != nil {
		return err
	}
	return asProgram(fmt.Errorf("%s as user %d: %w", path, o.UID, explain(path, unix.Exec(path, o.Args, o.Env))))
}

// asProgram says that an error is the image's or the manifest's, not the sandbox's.
func asProgram(err error) error {
	if err == nil {
		return nil
	}
	return programError{err}
}

type programError struct{ error }

func (programError) Is(target error) bool { return target == ErrProgram }
func (e programError) Unwrap() error      { return e.error }

// explain adds what execve(2) does not say.
func explain(path string, err error) error {
	_, missing := os.Stat(path)
	switch {
	case errors.Is(err, unix.ENOENT) && missing == nil:
		return fmt.Errorf("%w: the file is there; the interpreter that it names (after #!, or its dynamic loader) is not", err)
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("%w: neither a program for this machine nor a script with #! at its start", err)
	}
	return err
}

func closeDescriptors(*order) error {
	return unix.CloseRange(faultFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
}

// loopbackUp sets up the one link of the new network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// lookPath finds a program as execvp does, in the PATH that the workload will have.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(list, ":") {
			path := filepath.Join("/", dir, name)
			if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
				return path, nil
			}
		}
		return "", fmt.Errorf("no program %q in PATH=%s", name, list)
	}
	return "", fmt.Errorf("no program %q: the environment has no PATH", name)
}
