package workload

import (
	"testing"

	"golang.org/x/sys/unix"
)

// decide runs the filter as the kernel would, on one system call.
func decide(t *testing.T, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	at := func(offset uint32) uint32 {
		switch {
		case offset == offsetNr:
			return nr
		case offset == offsetArch:
			return arch
		case offset%8 == 0 && int(offset-offsetArgs)/8 < len(args):
			return uint32(args[(offset-offsetArgs)/8])
		}
		return 0
	}
	f := filter()
	var acc uint32
	for pc := 0; pc < len(f); pc++ {
		in := f[pc]
		yes := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = at(in.K)
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ:
			yes = acc == in.K
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JGT:
			yes = acc > in.K
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JGE:
			yes = acc >= in.K
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JSET:
			yes = acc&in.K != 0
		default:
			t.Fatalf("instruction %d has code %#x", pc, in.Code)
		}
		if pc += int(in.Jf); yes {
			pc += int(in.Jt) - int(in.Jf)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

func TestFilter(t *testing.T) {
	const kill = unix.SECCOMP_RET_KILL_PROCESS
	failed := func(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }
	for _, tc := range []struct {
		name string
		arch uint32
		nr   uint32
		args []uint64
		want uint32
	}{
		{"read", auditArch, unix.SYS_READ, nil, allow},
		{"execve", auditArch, unix.SYS_EXECVE, nil, allow},
		{"another instruction set", unix.AUDIT_ARCH_I386, unix.SYS_READ, nil, kill},
		{"another byte order", unix.AUDIT_ARCH_ARMEB, unix.SYS_READ, nil, kill},
		{"a thread", auditArch, unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND}, allow},
		{"a fork", auditArch, unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, allow},
		{"a fork into a user namespace", auditArch, unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, failed(unix.EPERM)},
		{"a fork into a network namespace", auditArch, unix.SYS_CLONE, []uint64{unix.CLONE_NEWNET}, failed(unix.EPERM)},
		{"clone3", auditArch, unix.SYS_CLONE3, nil, failed(unix.ENOSYS)},
		{"a device", auditArch, unix.SYS_MKNODAT, []uint64{0, 0, unix.S_IFCHR | 0o600, 1<<8 | 3}, failed(unix.EPERM)},
		{"a disk", auditArch, unix.SYS_MKNODAT, []uint64{0, 0, unix.S_IFBLK | 0o600, 8 << 8}, failed(unix.EPERM)},
		{"a named pipe", auditArch, unix.SYS_MKNODAT, []uint64{0, 0, unix.S_IFIFO | 0o600, 0}, allow},
		{"a named socket", auditArch, unix.SYS_MKNODAT, []uint64{0, 0, unix.S_IFSOCK | 0o600, 0}, allow},
		{"a file by mknod", auditArch, unix.SYS_MKNODAT, []uint64{0, 0, unix.S_IFREG | 0o600, 0}, allow},
		{"the own personality", auditArch, unix.SYS_PERSONALITY, []uint64{0xffffffff}, allow},
		{"another personality", auditArch, unix.SYS_PERSONALITY, []uint64{0x0040000}, failed(unix.EPERM)},
		{"a thread's name", auditArch, unix.SYS_PRCTL, []uint64{unix.PR_SET_NAME}, allow},
		{"the layout of memory", auditArch, unix.SYS_PRCTL, []uint64{unix.PR_SET_MM}, failed(unix.EPERM)},
		{"the size of a terminal", auditArch, unix.SYS_IOCTL, []uint64{1, unix.TIOCGWINSZ}, allow},
		{"typing on a terminal", auditArch, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, failed(unix.EPERM)},
		{"typing on a terminal with a high half", auditArch, unix.SYS_IOCTL, []uint64{0, 1<<32 | unix.TIOCSTI}, failed(unix.EPERM)},
		{"pasting on a console", auditArch, unix.SYS_IOCTL, []uint64{0, unix.TIOCLINUX}, failed(unix.EPERM)},
		{"a line discipline", auditArch, unix.SYS_IOCTL, []uint64{0, unix.TIOCSETD}, failed(unix.EPERM)},
		{"unix", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET | unix.SOCK_CLOEXEC, 0}, allow},
		{"tcp", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, unix.IPPROTO_TCP}, allow},
		{"udp over IPv6", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, allow},
		{"any stream", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM, 0}, allow},
		{"raw", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP}, failed(unix.EPERM)},
		{"packets of old", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_PACKET, 0}, failed(unix.EPERM)},
		{"multipath tcp", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, failed(unix.EPROTONOSUPPORT)},
		{"sctp", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, failed(unix.EPROTONOSUPPORT)},
		{"ping", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, failed(unix.EPROTONOSUPPORT)},
		{"netlink route", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, 3, unix.NETLINK_ROUTE}, allow},
		{"netlink audit", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, 3, unix.NETLINK_AUDIT}, failed(unix.EAFNOSUPPORT)},
		{"netlink netfilter", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, 3, unix.NETLINK_NETFILTER}, failed(unix.EAFNOSUPPORT)},
		{"vsock", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, 1, 0}, failed(unix.EAFNOSUPPORT)},
		{"vsock with a high half", auditArch, unix.SYS_SOCKET, []uint64{1<<32 | unix.AF_VSOCK, 1, 0}, failed(unix.EAFNOSUPPORT)},
		{"packet", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_PACKET, unix.SOCK_RAW, 0}, failed(unix.EAFNOSUPPORT)},
		{"alg", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, failed(unix.EAFNOSUPPORT)},
		{"unspecified", auditArch, unix.SYS_SOCKET, []uint64{0, 1, 0}, failed(unix.EAFNOSUPPORT)},
		{"unix pair", auditArch, unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX, 1, 0}, allow},
		{"tipc pair", auditArch, unix.SYS_SOCKETPAIR, []uint64{unix.AF_TIPC, 1, 0}, failed(unix.EAFNOSUPPORT)},
		{"a key", auditArch, unix.SYS_KEYCTL, nil, failed(unix.EPERM)},
		{"pages of its own choice", auditArch, unix.SYS_VMSPLICE, nil, failed(unix.ENOSYS)},
		{"old asynchronous reads", auditArch, unix.SYS_IO_SETUP, nil, failed(unix.ENOSYS)},
		{"a call of the future", auditArch, 4000, nil, failed(unix.ENOSYS)},
	} {
		if got := decide(t, tc.arch, tc.nr, tc.args...); got != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.name, got, tc.want)
		}
	}
	if x32Bit != 0 {
		for _, nr := range []uint32{0, unix.SYS_SOCKET, 1 << 31} {
			if got := decide(t, auditArch, x32Bit|nr); got != kill {
				t.Errorf("x32 system call %d: %#x, want the process killed", nr, got)
			}
		}
	}
}

// TestEveryCallHasOneAnswer: what stands in no table is not there, and no call stands in two.
func TestEveryCallHasOneAnswer(t *testing.T) {
	byArgument := []uint32{unix.SYS_SOCKET}
	for _, c := range checked {
		byArgument = append(byArgument, c.nr)
	}
	want := map[uint32]uint32{}
	for _, table := range []struct {
		calls []uint32
		want  uint32
	}{{allowed, unix.SECCOMP_RET_ALLOW}, {refused, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}, {byArgument, 0}} {
		for _, nr := range table.calls {
			if _, twice := want[nr]; twice {
				t.Errorf("system call %d is in the tables twice", nr)
			}
			want[nr] = table.want
		}
	}
	for nr := range uint32(2 * calls) {
		w, listed := want[nr]
		if listed && w == 0 {
			continue
		}
		if !listed {
			w = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		}
		if got := decide(t, auditArch, nr); got != w {
			t.Errorf("system call %d: %#x, want %#x", nr, got, w)
		}
	}
	if n := len(filter()); n > 4096 {
		t.Errorf("the filter has %d instructions; the kernel takes 4096", n)
	}
}
