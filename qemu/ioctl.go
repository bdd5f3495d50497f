package qemu

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vhostVsockSetGuestCID is _IOW(VHOST_VIRTIO, 0x60, __u64) of linux/vhost.h.
const vhostVsockSetGuestCID = 0x4008af60

func setCID(dev *os.File, cid uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), vhostVsockSetGuestCID, uintptr(unsafe.Pointer(&cid)))
	if errno != 0 {
		return os.NewSyscallError("ioctl VHOST_VSOCK_SET_GUEST_CID", errno)
	}
	return nil
}
