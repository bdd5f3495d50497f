package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempts are the ways out that are tried one by one, each with the answer that it got: "ok", or the name of an errno.
// Each is harmless where nothing stops it: it gives the kernel something to refuse for another reason, once it has let
// the caller in. So the same program shows, outside of a sandbox, that an attempt can go another way.
type attempts map[string]string

func (a attempts) note(name string, err error) {
	a[name] = "ok"
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		a[name] = unix.ErrnoName(errno)
	} else if err != nil {
		a[name] = err.Error()
	}
}

func (a attempts) call(name string, nr uintptr, args ...uintptr) {
	args = append(args, 0, 0, 0, 0, 0, 0)
	_, _, e := unix.RawSyscall6(nr, args[0], args[1], args[2], args[3], args[4], args[5])
	if a.note(name, nil); e != 0 {
		a.note(name, e)
	}
}

func (a attempts) socket(name string, family, kind, protocol int) {
	fd, err := unix.Socket(family, kind, protocol)
	a.note(name, err)
	unix.Close(fd)
}

func (a attempts) open(path string, flags int) {
	f, err := os.OpenFile(path, flags, 0)
	name := "open " + path
	if flags != os.O_RDONLY {
		name = "change " + path
	}
	a.note(name, err)
	f.Close()
}

const nowhere = "/proc/nonexistent" // nobody makes it

func (a attempts) kernel() {
	s := []byte(nowhere + "\x00")
	path := uintptr(unsafe.Pointer(&s[0]))
	a.call("mount", unix.SYS_MOUNT, path, path, path, unix.MS_BIND)
	a.call("unmount", unix.SYS_UMOUNT2, path)
	a.call("move a mount", unix.SYS_MOVE_MOUNT, ^uintptr(0), path, ^uintptr(0), path)
	a.call("open a tree of mounts", unix.SYS_OPEN_TREE, ^uintptr(0), path)
	a.call("new mount API", unix.SYS_FSOPEN, path)
	a.call("attributes of mounts", unix.SYS_MOUNT_SETATTR, ^uintptr(0), path)
	a.call("pivot_root", unix.SYS_PIVOT_ROOT, path, path)
	a.call("chroot", unix.SYS_CHROOT, path)
	for name, flag := range map[string]uintptr{"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID,
		"network": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP} {
		a.call("unshare "+name, unix.SYS_UNSHARE, flag|unix.CLONE_NEWUSER) // which a program with threads cannot have
	}
	a.call("clone with a user namespace", unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.CLONE_FS)
	a.call("clone3", unix.SYS_CLONE3, 0, 0)
	a.call("setns", unix.SYS_SETNS, ^uintptr(0), 0)
	a.call("a file by its handle", unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0), 0, 0)
	a.call("fanotify", unix.SYS_FANOTIFY_INIT, ^uintptr(0), 0)
	a.call("keyctl", unix.SYS_KEYCTL, 0, unix.KEY_SPEC_SESSION_KEYRING&0xffffffff, 0)
	a.call("add a key", unix.SYS_ADD_KEY, 0, 0, 0, 0, 0)
	a.call("request a key", unix.SYS_REQUEST_KEY, 0, 0, 0, 0)
	a.call("bpf", unix.SYS_BPF, ^uintptr(0), 0, 0)
	a.call("perf", unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0)
	a.call("io_uring", unix.SYS_IO_URING_SETUP, 0, 0)
	a.call("io_uring_register", unix.SYS_IO_URING_REGISTER, ^uintptr(0), 0, 0, 0)
	a.call("old asynchronous reads", unix.SYS_IO_SETUP, 0, 0)
	a.call("userfaultfd", unix.SYS_USERFAULTFD, ^uintptr(0))
	a.call("pages of its own choice into a pipe", unix.SYS_VMSPLICE, ^uintptr(0), 0, 0, 0)
	a.call("kexec", unix.SYS_KEXEC_LOAD, 0, 0, 0, ^uintptr(0))
	a.call("kexec of a file", unix.SYS_KEXEC_FILE_LOAD, ^uintptr(0), ^uintptr(0), 0, 0, ^uintptr(0))
	a.call("reboot", unix.SYS_REBOOT, 0, 0, 0, 0)
	a.call("a module", unix.SYS_INIT_MODULE, 0, 0, 0)
	a.call("a module of a file", unix.SYS_FINIT_MODULE, ^uintptr(0), 0, 0)
	a.call("swap", unix.SYS_SWAPON, path, 0)
	a.call("accounting", unix.SYS_ACCT, path)
	a.call("set the time", unix.SYS_CLOCK_SETTIME, 99, 0)
	a.call("adjust the time", unix.SYS_ADJTIMEX, 0)
	a.call("host name", unix.SYS_SETHOSTNAME, 0, ^uintptr(0))
	a.call("kernel log", unix.SYS_SYSLOG, 10, 0, 0)
	a.call("another personality", unix.SYS_PERSONALITY, 0x0040000)
	a.call("memory layout", unix.SYS_PRCTL, unix.PR_SET_MM, 999, 0, 0, 0)
	a.call("type on a terminal", unix.SYS_IOCTL, 0, unix.TIOCSTI, 0)
	a.call("paste on a console", unix.SYS_IOCTL, 0, unix.TIOCLINUX, 0)
	for name, nr := range onlyHere {
		a.call(name, nr, ^uintptr(0), ^uintptr(0), ^uintptr(0))
	}
}

// others are attempts on other processes: PID 1 of the sandbox is the machine's.
func (a attempts) others() {
	a.call("ptrace of PID 1", unix.SYS_PTRACE, unix.PTRACE_PEEKDATA, 1, 0, 0)
	a.call("memory of PID 1", unix.SYS_PROCESS_VM_READV, 1, 0, 0, 0, 0, 0)
	a.call("descriptors of PID 1", unix.SYS_PIDFD_GETFD, ^uintptr(0), 0, 0)
	self := uintptr(os.Getpid())
	a.call("compare processes", unix.SYS_KCMP, self, self, 99, 0, 0)
	a.note("signal PID 1", unix.Kill(1, 0))
	for _, name := range []string{"mem", "environ", "maps", "root", "cwd", "exe", "fd", "ns/net", "cmdline"} {
		path := "/proc/1/" + name
		_, err := os.Readlink(path)
		if errors.Is(err, unix.EINVAL) { // no link
			_, err = os.Open(path)
		}
		a.note("see "+path, err)
	}
}

func (a attempts) sockets() {
	a.socket("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	a.call("vsock with a high half", unix.SYS_SOCKET, 1<<40|unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	a.socket("vsock datagrams", unix.AF_VSOCK, unix.SOCK_DGRAM, 0)
	a.socket("packet socket", unix.AF_PACKET, unix.SOCK_RAW, 0)
	a.socket("raw socket", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	a.socket("raw IPv6 socket", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	a.socket("the kernel's ciphers", unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	a.socket("netlink uevents", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)
	a.socket("netlink netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	a.socket("netlink audit", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT)
	a.socket("netlink routes", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	a.socket("tcp", unix.AF_INET, unix.SOCK_STREAM, 0)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		var ifr *unix.Ifreq
		if ifr, err = unix.NewIfreq("none"); err == nil {
			err = unix.IoctlIfreq(fd, unix.SIOCSIFMTU, ifr)
		}
		unix.Close(fd)
	}
	a.note("set up a link", err)
	links, _ := net.Interfaces()
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	a["links"] = strings.Join(names, " ")
}

func (a attempts) rights() {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		switch name, value, _ := strings.Cut(line, ":"); name {
		case "Uid", "Gid", "CapInh", "CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups":
			a[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	a.call("become root", unix.SYS_SETRESUID, 0, 0, 0)
	a.call("become root's group", unix.SYS_SETRESGID, 0, 0, 0)
	a.note("other groups", unix.Setgroups([]int{os.Getgid()}))
	caps := [2]unix.CapUserData{{Permitted: 1 << unix.CAP_SYS_ADMIN}}
	a.note("a capability", unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]))
	a.call("an ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SYS_ADMIN, 0, 0)
	a.call("secure bits", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0)
	a.note("more open files", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 18, Max: 1 << 18}))
	a.note("real-time priority", unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0))
	for _, name := range []string{"uid_map", "gid_map"} {
		f, err := os.OpenFile("/proc/self/"+name, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("0 0 1\n")
			f.Close()
		}
		a.note("write "+name, err)
	}
}

func (a attempts) files() {
	for _, name := range []string{"mem", "kmem", "port", "kmsg", "console", "tty", "ttyS0", "hvc0", "vsock", "sev-guest", "tdx_guest", "tpm0", "tpmrm0",
		"vda", "sda", "nvme0n1", "mapper/control", "ram0", "loop-control", "fuse", "kvm", "net/tun", "ptmx", "hwrng", "snapshot", "cpu_dma_latency"} {
		a.open("/dev/"+name, os.O_RDONLY)
	}
	for _, path := range []string{"/sys", "/sys/kernel/config/tsm/report", "/sys/kernel/security", "/sys/fs/cgroup", "/sys/firmware", "/sys/class", "/work", "/init",
		"/proc/kcore", "/proc/config.gz"} {
		a.open(path, os.O_RDONLY)
	}
	for _, path := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward",
		"/proc/sys/user/max_user_namespaces", "/proc/sysrq-trigger", "/probe", "/etc/hosts", "/dev", "/cocos/datasets/numbers.csv"} {
		a.open(path, os.O_WRONLY)
	}
	for _, path := range []string{"/proc/cmdline", "/proc/kallsyms", "/proc/keys", "/proc/iomem", "/proc/modules", "/proc/kmsg", "/proc/swaps", "/proc/partitions"} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err == nil {
			var n int
			if n, err = unix.Read(fd, make([]byte, 1<<10)); n == 0 && err == nil {
				err = errors.New("empty")
			}
			unix.Close(fd)
		}
		a.note("read "+path, err)
	}
	for name, mode := range map[string]uint32{"a device": unix.S_IFCHR, "a disk": unix.S_IFBLK} {
		a.note("make "+name, unix.Mknod("/tmp/node", mode|0o666, 1<<8|3))
		os.Remove("/tmp/node")
		a.note("make "+name+" in the results", unix.Mknod("results/node", mode|0o666, 1<<8|3))
		os.Remove("results/node")
	}
	null, err := os.Open("/dev/zero")
	if err == nil {
		_, err = unix.IoctlGetTermios(int(null.Fd()), unix.TCGETS)
		null.Close()
	}
	a.note("talk to a device", err)
	exe, _ := os.ReadFile("/proc/self/exe")
	for _, dir := range []string{"results", "/dev/shm"} {
		path := filepath.Join(dir, "copy")
		err := os.WriteFile(path, exe, 0o755)
		if err == nil {
			var p *os.Process
			if p, err = os.StartProcess(path, []string{"copy", "exit=0"}, &os.ProcAttr{}); err == nil {
				p.Wait()
			}
		}
		a.note("execute in "+dir, err)
		os.Remove(path)
	}
}

// escape tries all of these.
func escape() []byte {
	runtime.LockOSThread()
	a := attempts{}
	a.sockets()
	a.others()
	a.files()
	a.kernel()
	a.rights() // which gives some up
	b, _ := json.MarshalIndent(a, "", "  ")
	return b
}

// bombs takes all that there is of everything, and says how much that was. It kills what it has made, so that the run
// goes on; PID 1's part is that the machine does.
func bombs() []byte {
	took := map[string]int{}
	for _, dir := range []string{"/tmp", "/dev/shm", "results"} {
		took["MiB in "+dir] = fillUp(dir)
		took["files in "+dir] = filesIn(dir)
	}
	var open []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		open = append(open, f)
	}
	took["open files"] = len(open)
	for _, f := range open {
		f.Close()
	}
	line := append(bytes.Repeat([]byte("flood "), 1000), '\n')
	for written := 0; written < 40<<20; written += len(line) {
		os.Stdout.Write(line)
		took["MiB of log"] = written >> 20
	}
	took["CPU of one, per cent"] = burn(time.Second)
	took["processes"] = fork(func(pid int) { unix.Kill(pid, unix.SIGKILL) })
	b, _ := json.MarshalIndent(took, "", "  ")
	return b
}

// fork starts children until it cannot, and gives each to end.
func fork(end func(pid int)) int {
	var all []*os.Process
	for len(all) < 1<<16 {
		p, err := os.StartProcess("/proc/self/exe", []string{"probe", "sleep"}, &os.ProcAttr{})
		if err != nil {
			break
		}
		all = append(all, p)
	}
	for _, p := range all {
		end(p.Pid)
		p.Wait()
	}
	return len(all)
}

func fillUp(dir string) (mib int) {
	f, err := os.Create(filepath.Join(dir, "full"))
	if err != nil {
		return -1
	}
	defer os.Remove(f.Name())
	defer f.Close()
	for chunk := make([]byte, 1<<20); ; mib++ {
		if _, err := f.Write(chunk); err != nil {
			return mib
		}
	}
}

func filesIn(dir string) (n int) {
	sub := filepath.Join(dir, "many")
	if os.Mkdir(sub, 0o755) != nil {
		return -1
	}
	defer os.RemoveAll(sub)
	for ; ; n++ {
		f, err := os.Create(filepath.Join(sub, fmt.Sprint(n)))
		if err != nil {
			return n
		}
		f.Close()
	}
}

// burn has two threads compute for so long, and tells how much time they got of one processor, per cent.
func burn(d time.Duration) int {
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	start := time.Now()
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for time.Since(start) < d {
			}
		})
	}
	all.Wait()
	took := time.Since(start)
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	used := after.Utime.Nano() - before.Utime.Nano() + after.Stime.Nano() - before.Stime.Nano()
	return int(100 * used / took.Nanoseconds())
}

// stubborn ignores that it is asked to stop, keeps all processors busy, and has children that do likewise.
func stubborn(children int) {
	signal.Ignore(unix.SIGTERM)
	for range children {
		os.StartProcess("/proc/self/exe", []string{"probe", "stubborn=0"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
	}
	burn(time.Hour)
}

// litter leaves in the results what nobody should follow or open.
func litter() {
	for name, target := range map[string]string{"passwd": "/etc/passwd", "environ": "/proc/1/environ", "up": "../../../../../../etc", "root": "/", "self": "self"} {
		must(os.Symlink(target, filepath.Join("results", name)))
	}
}
