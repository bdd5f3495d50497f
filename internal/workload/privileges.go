package workload

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxFiles is how many files a process of the workload may have open. PID 1's own limit, the kernel's default, is 4096.
const maxFiles = 65536

// maxLocked is how much a process of the workload may lock in memory, bytes: the kernel's default.
const maxLocked = 8 << 20

// setLimits keeps memory out of core files, which would lie in the scratch, and lets programs open more files.
func setLimits() error {
	unix.Umask(0o022)
	if err := unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil {
		return fmt.Errorf("core files: %w", err)
	}
	// Pages that cannot be swapped out, and bytes in message queues, beyond what programs commonly need.
	for _, l := range []struct {
		what  int
		bytes uint64
	}{{unix.RLIMIT_MEMLOCK, maxLocked}, {unix.RLIMIT_MSGQUEUE, 0}} {
		if err := unix.Prlimit(0, l.what, &unix.Rlimit{Cur: l.bytes, Max: l.bytes}, nil); err != nil {
			return fmt.Errorf("limit %d: %w", l.what, err)
		}
	}
	// Go raises the soft limit for itself and puts it back at exec, but not if it was set by this call since.
	files := unix.Rlimit{Cur: maxFiles, Max: maxFiles}
	err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &files, nil)
	if errors.Is(err, unix.EPERM) {
		// Only where root has not all capabilities, which PID 1 has. Fewer open files make nothing less safe.
		return nil
	}
	return err
}

// dropPrivileges leaves a user without any capability, in any set, who can get none back.
func dropPrivileges(o *order) error {
	for c := range uintptr(64) {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_SYS_ADMIN {
			break // the kernel knows no more capabilities
		}
		if err != nil {
			return fmt.Errorf("bounding set: capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	// The raw calls change this thread alone; package syscall's would change all, of which exec keeps one. User and
	// group are the program's already, by the stub's doing; the saved ones too, once more.
	gid, uid := uintptr(o.GID), uintptr(o.UID)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("group %d: %w", gid, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("user %d: %w", uid, e)
	}
	var none [2]unix.CapUserData // the ambient set follows
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}
