package workload

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_AARCH64
	x32Bit    = 0 // there is one ABI
)

var allowedHere = []uint32{unix.SYS_FSTATAT}

var refusedHere = []uint32{unix.SYS_KEXEC_FILE_LOAD}

var checkedHere []check
