package workload

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock takes away, as struct landlock_ruleset_attr has it (Linux 6.12, ABI 6): device nodes are neither made
// nor talked to by ioctl beyond what was open before, and no signal and no connection to an abstract socket leaves the
// domain. What else comes with a domain is the reason for one: a process in it cannot change its mounts, and cannot
// trace or look into a process outside, whatever capabilities it has come by.
var landlocked = struct{ fs, net, scoped uint64 }{
	fs:     unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV | rename,
	scoped: unix.LANDLOCK_SCOPE_SIGNAL | unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET,
}

// rename, from one folder to another, is what no domain allows unless a rule says so. One does, for all folders.
const rename = unix.LANDLOCK_ACCESS_FS_REFER

// confine puts this thread, and so the program that it becomes, into a domain of its own. no_new_privs must be set.
func confine(o *order) error {
	fd, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&landlocked)), unsafe.Sizeof(landlocked), 0)
	if !o.Strict && (e == unix.ENOSYS || e == unix.EOPNOTSUPP || e == unix.EINVAL || e == unix.E2BIG) {
		return nil // a kernel without Landlock, or with an older one
	}
	if e != 0 {
		return fmt.Errorf("ruleset: %w; it takes Linux 6.12 with landlock among its LSMs", e)
	}
	defer unix.Close(int(fd))
	root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	var rule [12]byte // struct landlock_path_beneath_attr, which is packed
	binary.NativeEndian.PutUint64(rule[:], rename)
	binary.NativeEndian.PutUint32(rule[8:], uint32(root))
	if _, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
		return fmt.Errorf("rule: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return fmt.Errorf("restrict: %w", e)
	}
	return nil
}
