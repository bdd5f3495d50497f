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
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_K | unix.BPF_JEQ:
			yes = acc == in.K
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
	const allow, kill = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_KILL_PROCESS
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
		{"unix", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, 1, 0}, allow},
		{"inet", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, 1, 6}, allow},
		{"inet6", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET6, 2, 17}, allow},
		{"netlink route", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, 3, unix.NETLINK_ROUTE}, allow},
		{"netlink audit", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, 3, unix.NETLINK_AUDIT}, failed(unix.EAFNOSUPPORT)},
		{"vsock", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, 1, 0}, failed(unix.EAFNOSUPPORT)},
		{"vsock with a high half", auditArch, unix.SYS_SOCKET, []uint64{1<<32 | unix.AF_VSOCK, 1, 0}, failed(unix.EAFNOSUPPORT)},
		{"unspecified", auditArch, unix.SYS_SOCKET, []uint64{0, 1, 0}, failed(unix.EAFNOSUPPORT)},
		{"unix pair", auditArch, unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX, 1, 0}, allow},
		{"tipc pair", auditArch, unix.SYS_SOCKETPAIR, []uint64{unix.AF_TIPC, 1, 0}, failed(unix.EAFNOSUPPORT)},
	} {
		if got := decide(t, tc.arch, tc.nr, tc.args...); got != tc.want {
			t.Errorf("%s: %#x, want %#x", tc.name, got, tc.want)
		}
	}
	for _, nr := range denied {
		if got := decide(t, auditArch, nr); got != failed(unix.EPERM) {
			t.Errorf("system call %d: %#x, want EPERM", nr, got)
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
