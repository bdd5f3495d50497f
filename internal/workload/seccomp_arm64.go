package workload

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_AARCH64
	x32Bit    = 0 // there is one ABI
)

var deniedHere = []uint32{unix.SYS_KEXEC_FILE_LOAD}
