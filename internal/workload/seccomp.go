package workload

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter is written out and not made by a library: it is three tables and forty lines, and a module less in PID 1.

// denied are system calls that no computation needs, and that reach parts of the kernel where the next hole will be.
// They give EPERM. This is not yet the list of what is allowed, which is stricter; capabilities, namespaces and the
// missing devices do most of the work.
var denied = append([]uint32{
	// Other mounts, other namespaces: a user namespace would give capabilities back.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_CHROOT,
	// Files without a path.
	unix.SYS_OPEN_BY_HANDLE_AT,
	// Keyrings are not namespaced.
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	// Another process's memory and descriptors.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_USERFAULTFD,
	// Programs inside the kernel, and calls that go round this filter.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	// Other kernels and other modules.
	unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
}, deniedHere...)

// families are the sockets there are. Above all there is no AF_VSOCK among them: vsock has no namespaces, so it would
// reach the host from a sandbox that has no network.
var families = []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}

// newNamespaces are the flags of clone(2) that make one.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Offsets into struct seccomp_data. Of the arguments, which are 64 bits wide on a little-endian machine, the filter
// reads the lower half: that is the half that the kernel reads of those that matter here.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

func arg(n uint32) uint32 { return offsetArgs + 8*n }

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// jump goes on after yes or no further instructions.
func jump(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | test, Jt: yes, Jf: no, K: k}
}

func answer(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

func fail(e unix.Errno) unix.SockFilter { return answer(unix.SECCOMP_RET_ERRNO | uint32(e)) }

// filter is the program that decides on each system call of the workload.
func filter() []unix.SockFilter {
	allow, kill := answer(unix.SECCOMP_RET_ALLOW), answer(unix.SECCOMP_RET_KILL_PROCESS)
	f := []unix.SockFilter{
		// The numbers below mean something else to another instruction set.
		load(offsetArch), jump(unix.BPF_JEQ, auditArch, 1, 0), kill,
		load(offsetNr),
	}
	if x32Bit != 0 {
		f = append(f, jump(unix.BPF_JGE, x32Bit, 0, 1), kill)
	}
	for _, nr := range denied {
		f = append(f, jump(unix.BPF_JEQ, nr, 0, 1), fail(unix.EPERM))
	}
	// Its flags are behind a pointer, out of a filter's sight. C libraries go on with clone then.
	f = append(f, jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), fail(unix.ENOSYS))
	f = append(f, when(unix.SYS_CLONE,
		load(arg(0)), jump(unix.BPF_JSET, newNamespaces, 0, 1), fail(unix.EPERM), allow)...)
	f = append(f, when(unix.SYS_SOCKETPAIR,
		load(arg(0)), jump(unix.BPF_JEQ, unix.AF_UNIX, 0, 1), allow, fail(unix.EAFNOSUPPORT))...)

	socket := []unix.SockFilter{load(arg(0))}
	for _, family := range families {
		socket = append(socket, jump(unix.BPF_JEQ, family, 0, 1), allow)
	}
	// Netlink only for what C libraries ask of it: addresses and routes.
	socket = append(socket, jump(unix.BPF_JEQ, unix.AF_NETLINK, 0, 3),
		load(arg(2)), jump(unix.BPF_JEQ, unix.NETLINK_ROUTE, 0, 1), allow, fail(unix.EAFNOSUPPORT))
	f = append(f, when(unix.SYS_SOCKET, socket...)...)
	return append(f, allow)
}

// when guards instructions that end in an answer.
func when(nr uint32, then ...unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{jump(unix.BPF_JEQ, nr, 0, uint8(len(then)))}, then...)
}

// filterSyscalls puts the filter on this thread, and so on the program that it becomes. no_new_privs must be set.
func filterSyscalls() error {
	f := filter()
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(f)
	if e != 0 {
		return fmt.Errorf("seccomp filter of %d instructions: %w", len(f), e)
	}
	return nil
}
