package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctl interface of the device mapper: include/uapi/linux/dm-ioctl.h.
const (
	dmControl = "/dev/mapper/control"

	dmDevCreate  = 3
	dmDevRemove  = 4
	dmDevSuspend = 6 // without dmSuspendFlag it resumes
	dmTableLoad  = 9

	dmSecureDataFlag = 1 << 15 // the kernel wipes its copies of what it was given

	dmHeader   = 312 // sizeof(struct dm_ioctl)
	dmSpec     = 40  // sizeof(struct dm_target_spec)
	dmMaxName  = 127
	dmDataSize = 12 // offsets in struct dm_ioctl
	dmStart    = 16
	dmTargets  = 20
	dmFlags    = 28
	dmDev      = 40
	dmName     = 48
)

// dmVersion is the interface's 4.0.0: nothing newer is used.
var dmVersion = [3]uint32{4, 0, 0}

// A dmTarget is a mapping of one line: all of a device is of one kind.
type dmTarget struct {
	kind    string
	sectors uint64 // of 512 bytes
	params  []byte // words, as the kernel's documentation of the target has them; may hold a key
}

// dmRequest makes the argument of an ioctl: struct dm_ioctl, and the target where there is one. It holds what t.params holds.
func dmRequest(name string, flags uint32, t *dmTarget) ([]byte, error) {
	if name == "" || len(name) > dmMaxName {
		return nil, fmt.Errorf("device mapper: a name of %d bytes, want 1 to %d", len(name), dmMaxName)
	}
	size := dmHeader
	if t != nil {
		size += dmSpec + (len(t.params)+1+7)&^7 // a NUL, and the alignment that the kernel wants
	}
	b := make([]byte, size)
	le := binary.NativeEndian
	for i, v := range dmVersion {
		le.PutUint32(b[4*i:], v)
	}
	le.PutUint32(b[dmDataSize:], uint32(size))
	le.PutUint32(b[dmStart:], dmHeader)
	le.PutUint32(b[dmFlags:], flags)
	copy(b[dmName:], name)
	if t != nil {
		le.PutUint32(b[dmTargets:], 1)
		spec := b[dmHeader:]
		le.PutUint64(spec[8:], t.sectors) // the mapping begins at sector 0, which spec has already
		le.PutUint32(spec[20:], uint32(size-dmHeader))
		copy(spec[24:40], t.kind)
		copy(spec[dmSpec:], t.params)
	}
	return b, nil
}

// A dmMapper is an open control device.
type dmMapper struct{ f *os.File }

func openMapper() (dmMapper, error) {
	f, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return dmMapper{}, fmt.Errorf("%w; is BLK_DEV_DM in the kernel?", err)
	}
	return dmMapper{f}, nil
}

func (m dmMapper) close() { m.f.Close() }

// do is one ioctl. What was sent is zeroed when it returns; the answer's device number is all that is kept of it.
func (m dmMapper) do(number uintptr, name string, flags uint32, t *dmTarget) (dev uint64, err error) {
	b, err := dmRequest(name, flags, t)
	if err != nil {
		return 0, err
	}
	defer clear(b)
	const readWrite = 3
	cmd := uintptr(readWrite<<30 | dmHeader<<16 | 0xfd<<8 | number)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, m.f.Fd(), cmd, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return 0, errno
	}
	return binary.NativeEndian.Uint64(b[dmDev:]), nil
}

// create makes a device of one target and returns its number. It is /dev/dm-MINOR. t.params is zeroed.
func (m dmMapper) create(name string, t dmTarget) (dev uint64, err error) {
	defer clear(t.params)
	if dev, err = m.do(dmDevCreate, name, 0, nil); err != nil {
		return 0, fmt.Errorf("device mapper: create %s: %w", name, err)
	}
	if _, err = m.do(dmTableLoad, name, dmSecureDataFlag, &t); err != nil {
		err = fmt.Errorf("device mapper: load a table of %d sectors of %s for %s: %w; is it in the kernel?", t.sectors, t.kind, name, err)
	} else if _, err = m.do(dmDevSuspend, name, 0, nil); err != nil {
		err = fmt.Errorf("device mapper: start %s: %w", name, err)
	}
	if err != nil {
		return 0, errors.Join(err, m.remove(name))
	}
	return dev, nil
}

func (m dmMapper) remove(name string) error {
	if _, err := m.do(dmDevRemove, name, 0, nil); err != nil {
		return fmt.Errorf("device mapper: remove %s: %w", name, err)
	}
	return nil
}
