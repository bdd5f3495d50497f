package workload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be all three: the test, the stub that Run starts, and the program in the sandbox.
func TestMain(m *testing.M) {
	if IsStub() {
		Stub()
	}
	if filepath.Base(os.Args[0]) == "probe" {
		os.Exit(probe(os.Args[1:]))
	}
	code := m.Run()
	for _, f := range cleanups {
		f()
	}
	os.Exit(code)
}

// probe is the program in the sandbox.
func probe(args []string) int {
	switch args[0] {
	case "exit":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
		n, _ := strconv.Atoi(args[1])
		return n
	case "facts":
		return say(gather())
	case "attack":
		return say(attack())
	case "say":
		fmt.Print(strings.Repeat(args[1]+"\n", 100_000))
	case "hang":
		forever()
	case "tidy": // on SIGTERM, as args[1] says
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, unix.SIGTERM)
		fmt.Println("ready")
		<-stop
		fmt.Println("stopped")
		if args[1] == "never" {
			forever()
		}
		n, _ := strconv.Atoi(args[1])
		return n
	case "wait": // for SIGTERM, without a handler
		fmt.Println("ready")
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGTERM), uintptr(unsafe.Pointer(&[4]uint64{})), 0, 8, 0, 0)
		forever()
	case "orphan": // a grandchild that ends when its parent has
		if len(args) > 1 {
			p, err := os.StartProcess("/proc/self/exe", []string{"probe", "exit", "0"}, &os.ProcAttr{})
			if err == nil {
				fmt.Println(p.Pid)
			}
			return 0
		}
		out, err := (&exec.Cmd{Path: "/proc/self/exe", Args: []string{"probe", "orphan", "here"}}).Output()
		fmt.Print(string(out))
		return orphaned(string(out), err)
	case "brood": // children, grandchildren in sessions of their own; all hang
		if n, _ := strconv.Atoi(args[1]); n > 0 {
			for range 2 {
				breed("brood", strconv.Itoa(n-1), args[2])
			}
		} else {
			fmt.Println("born")
		}
		forever()
	case "leave": // ends while its children hang
		breed("hang", args[1])
		return 3
	case "killer": // of all that it may kill, and of the first process
		for _, pid := range []int{1, -1} {
			fmt.Println(unix.Kill(pid, unix.SIGKILL))
		}
		return 7
	case "segv":
		var byDefault [4]uint64 // struct sigaction: the kernel's answer, not the Go runtime's
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGSEGV), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
		var p *int
		if len(args) > 1 {
			p = new(int)
		}
		return *p
	case "x32":
		unix.RawSyscall(0x40000000|unix.SYS_GETPID, 0, 0, 0)
	case "eat":
		var all [][]byte
		for {
			b := make([]byte, 4<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
			runtime.KeepAlive(all)
		}
	case "threads":
		n := 0
		for ; n < 1000; n++ {
			if err := breed("hang"); err != nil {
				break
			}
		}
		fmt.Println(n)
	case "fetch": // what stands at each address
		said := map[string]string{}
		for _, url := range args[1:] {
			said[url] = fetch(url)
		}
		return say(said)
	case "files":
		said := map[string]string{}
		for _, path := range args[1:] {
			said[path] = tryFile(path)
		}
		return say(said)
	case "fill":
		return say(map[string]int64{"/tmp": fill("/tmp"), "/dev/shm": fill("/dev/shm"), "/cocos/results": fill("/cocos/results")})
	}
	return 0
}

// orphaned waits until nothing is left of a process that was not ours to wait for.
func orphaned(pid string, err error) int {
	n, bad := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil || bad != nil {
		fmt.Println(err, bad)
		return 1
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if unix.Kill(n, 0) == unix.ESRCH {
			return 0
		}
	}
	return 2
}

func fetch(url string) string {
	resp, err := http.Get(url)
	// A reset is told once, to whichever of the client's write and read comes first; the other gets one of the rest.
	for _, cut := range []error{unix.ECONNRESET, unix.EPIPE, io.EOF} {
		if errors.Is(err, cut) {
			return "cut off"
		}
	}
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s %v", resp.StatusCode, b, err)
}

// tryFile reads a file, and then tries all that must not work on it.
func tryFile(path string) string {
	b, err := os.ReadFile(path)
	said := fmt.Sprintf("%q %v", b, err)
	fi, err := os.Stat(path)
	if err == nil {
		said += " " + fi.Mode().String()
	}
	for _, err := range []error{os.WriteFile(path, nil, 0), os.Remove(path), os.Chmod(path, 0o777), os.Rename(path, path+"2")} {
		if err == nil {
			said += " changed"
		}
	}
	return said
}

func say(v any) int {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return 99
	}
	return 0
}

// forever is not an empty select, which the Go runtime would end as a deadlock.
func forever() {
	for {
		unix.Poll(nil, -1)
	}
}

func breed(args ...string) error {
	_, err := os.StartProcess("/proc/self/exe", append([]string{"probe"}, args...),
		&os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setsid: true}})
	return err
}

// fill writes until the bound and tells how far it came, MiB.
func fill(dir string) (n int64) {
	f, err := os.Create(filepath.Join(dir, "full"))
	if err != nil {
		return -1
	}
	defer os.Remove(f.Name())
	defer f.Close()
	for n < 256 {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return n
		}
		n++
	}
	return n
}

// facts are what the program sees.
type facts struct {
	Status               map[string]string
	PID, Session         int
	Hostname, Cwd        string
	Args, Env            []string
	Links                []string
	Processes, Dev, Root []string
	Mounts               []string
	Descriptors          []string
	Blocking             bool
	Files, Core          uint64
	Cgroup, Hosts        string
	Dataset              string
	Loopback             []string
}

func gather() facts {
	f := facts{PID: os.Getpid(), Args: os.Args, Env: os.Environ(), Status: map[string]string{}}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(status) {
		k, v, _ := strings.Cut(string(line), ":")
		f.Status[k] = strings.Join(strings.Fields(v), " ")
	}
	f.Session, _ = unix.Getsid(0)
	f.Hostname, _ = os.Hostname()
	f.Cwd, _ = os.Getwd()
	links, _ := net.Interfaces()
	for _, l := range links {
		f.Links = append(f.Links, fmt.Sprint(l.Name, " ", l.Flags))
	}
	for _, name := range names("/proc") {
		if _, err := strconv.Atoi(name); err == nil {
			f.Processes = append(f.Processes, name)
		}
	}
	f.Dev, f.Root = names("/dev"), names("/")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range bytes.Lines(mounts) {
		w := strings.Fields(string(line))
		f.Mounts = append(f.Mounts, w[4]+" "+w[5])
	}
	for _, name := range names("/proc/self/fd") {
		if to, err := os.Readlink("/proc/self/fd/" + name); err == nil && !strings.HasPrefix(to, "anon_inode:") {
			f.Descriptors = append(f.Descriptors, name+" "+strings.Split(to, ":")[0])
		}
	}
	flags, err := unix.FcntlInt(1, unix.F_GETFL, 0)
	f.Blocking = err == nil && flags&unix.O_NONBLOCK == 0
	var lim unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	f.Files = lim.Max
	unix.Getrlimit(unix.RLIMIT_CORE, &lim)
	f.Core = lim.Max
	for _, read := range []struct {
		path string
		to   *string
	}{{"/proc/self/cgroup", &f.Cgroup}, {"/etc/hosts", &f.Hosts}, {"datasets/houses.csv", &f.Dataset}} {
		b, err := os.ReadFile(read.path)
		if *read.to = string(b); err != nil {
			*read.to = err.Error()
		}
	}
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			_, err = net.DialTimeout("tcp", l.Addr().String(), time.Second)
		}
		f.Loopback = append(f.Loopback, fmt.Sprint(err))
	}
	return f
}

func names(dir string) (n []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		n = append(n, e.Name())
	}
	slices.Sort(n)
	return n
}

// attack tries what must not work, and a little that must.
func attack() map[string]string {
	said := map[string]string{}
	note := func(what string, err error) {
		said[what] = "ok"
		if errno, ok := errors.AsType[unix.Errno](err); ok {
			said[what] = unix.ErrnoName(errno)
		} else if err != nil {
			said[what] = err.Error()
		}
	}
	call := func(what string, nr uintptr, a ...uintptr) {
		a = append(a, 0, 0, 0, 0, 0, 0)
		_, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if note(what, nil); e != 0 {
			note(what, e)
		}
	}
	socket := func(what string, family, kind, proto int) {
		fd, err := unix.Socket(family, kind, proto)
		note(what, err)
		unix.Close(fd)
	}
	socket("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	socket("packet", unix.AF_PACKET, unix.SOCK_RAW, 0)
	socket("alg", unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	socket("netlink uevent", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)
	socket("netlink route", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	socket("raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	socket("inet", unix.AF_INET, unix.SOCK_STREAM, 0)
	socket("inet6", unix.AF_INET6, unix.SOCK_DGRAM, 0)
	socket("unix", unix.AF_UNIX, unix.SOCK_STREAM, 0)
	call("vsock with a high half", unix.SYS_SOCKET, 1<<40|unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	call("vsock pair", unix.SYS_SOCKETPAIR, unix.AF_VSOCK, unix.SOCK_STREAM, 0, 0)
	_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	note("unix pair", err)

	note("mount", unix.Mount("x", "/tmp", "tmpfs", 0, ""))
	note("unmount", unix.Unmount("/cocos/datasets", 0))
	note("remount", unix.Mount("", "/cocos/datasets", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	note("chroot", unix.Chroot("/tmp"))
	call("unshare user", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	call("clone user", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	call("clone3", unix.SYS_CLONE3)
	call("setns", unix.SYS_SETNS)
	call("keyctl", unix.SYS_KEYCTL)
	call("bpf", unix.SYS_BPF)
	call("perf", unix.SYS_PERF_EVENT_OPEN)
	call("io_uring", unix.SYS_IO_URING_SETUP)
	call("userfaultfd", unix.SYS_USERFAULTFD)
	call("ptrace", unix.SYS_PTRACE)
	call("kexec", unix.SYS_KEXEC_LOAD)
	call("handle", unix.SYS_OPEN_BY_HANDLE_AT)
	call("become root", unix.SYS_SETUID, 0)
	note("mknod", unix.Mknod("/tmp/null", unix.S_IFCHR|0o666, 1<<8|3))
	note("hostname", unix.Sethostname([]byte("x")))

	write := func(path string) {
		note("write "+path, os.WriteFile(path, []byte("x"), 0o755))
	}
	for _, path := range []string{"/cocos/datasets/x", "/cocos/datasets/houses.csv", "/etc/x", "/x", "/dev/x", "/probe",
		"/proc/sys/kernel/hostname", "/tmp/x", "/cocos/x", "/cocos/results/x", "/dev/shm/x", "/dev/null"} {
		write(path)
	}
	for _, path := range []string{"/sys/kernel", "/dev/vsock", "/dev/sev-guest", "/dev/kvm", "/dev/mem", "/dev/console"} {
		_, err := os.Stat(path)
		note("see "+path, err)
	}
	for _, path := range []string{"/proc/cmdline", "/proc/kallsyms"} {
		b, err := os.ReadFile(path)
		if err == nil && len(b) > 0 {
			err = fs.ErrExist
		}
		note("read "+path, err)
	}
	exe, _ := os.ReadFile("/probe")
	for _, dir := range []string{"/cocos/results", "/dev/shm", "/tmp"} {
		path := dir + "/probe"
		if err := os.WriteFile(path, exe, 0o755); err != nil {
			note("exec in "+dir, err)
			continue
		}
		p, err := os.StartProcess(path, []string{"probe", "exit", "0"}, &os.ProcAttr{})
		if err == nil {
			p.Wait()
		}
		note("exec in "+dir, err)
		os.Remove(path)
	}
	return said
}
