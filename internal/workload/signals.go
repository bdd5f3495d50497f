package workload

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// A sigaction is the kernel's, which differs from the C library's. Its size is the same on amd64 and arm64.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const (
	sigDefault = 0 // SIG_DFL
	lastSignal = 64
)

// defaultSignals undoes what was ignored before this program began: exec keeps that, while it forgets handlers. The Go
// runtime leaves some signals as it finds them, so its own way would miss those.
func defaultSignals() error {
	set := sigaction{handler: sigDefault}
	for s := uintptr(1); s <= lastSignal; s++ {
		if s == uintptr(unix.SIGKILL) || s == uintptr(unix.SIGSTOP) {
			continue
		}
		var now sigaction
		const maskSize = unsafe.Sizeof(now.mask)
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, s, 0, uintptr(unsafe.Pointer(&now)), maskSize, 0, 0); e != 0 {
			return e
		}
		const ignored = 1 // SIG_IGN
		if now.handler != ignored {
			continue
		}
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&set)), 0, maskSize, 0, 0); e != 0 {
			return e
		}
	}
	return nil
}
