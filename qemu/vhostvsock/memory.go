package vhostvsock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxRegions is what vhost-user allows in one memory table.
const maxRegions = 8

var errAddress = errors.New("address outside guest memory")

// A region is one mapped piece of guest memory. The guest changes it while we read: whatever decides something is
// copied once and then judged.
type region struct {
	gpa, uva uint64 // its address for the guest, and for the front-end
	mem      []byte
	mapping  []byte // what munmap wants back: mem and the bytes before it
}

type memory []region

// guest finds n bytes at a guest address; a range that crosses regions is refused.
func (m memory) guest(addr, n uint64) ([]byte, error) {
	for _, r := range m {
		if b, ok := r.slice(r.gpa, addr, n); ok {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%w: guest %#x, %d bytes", errAddress, addr, n)
}

// user finds n bytes at an address of the front-end.
func (m memory) user(addr, n uint64) ([]byte, error) {
	for _, r := range m {
		if b, ok := r.slice(r.uva, addr, n); ok {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%w: front-end %#x, %d bytes", errAddress, addr, n)
}

func (r *region) slice(base, addr, n uint64) ([]byte, bool) {
	size := uint64(len(r.mem))
	if addr < base || addr-base >= size || n > size-(addr-base) {
		return nil, false
	}
	off := addr - base
	return r.mem[off : off+n : off+n], true
}

func (m memory) unmap() {
	for _, r := range m {
		// It cannot fail for a mapping of ours, and there is nothing to do if it did.
		_ = unix.Munmap(r.mapping)
	}
}

// parseMemory reads the payload of SET_MEM_TABLE and maps its files: le32 count, le32 padding, then for each region le64
// guest address, size, front-end address and offset in the file. The files stay the caller's to close.
func parseMemory(p []byte, fds []int) (m memory, err error) {
	if len(p) < 8 {
		return nil, fmt.Errorf("memory table: %d bytes", len(p))
	}
	n := le.Uint32(p)
	if n == 0 || n > maxRegions || len(p) != int(8+32*n) || len(fds) != int(n) {
		return nil, fmt.Errorf("memory table: %d regions in %d bytes with %d files, at most %d", n, len(p), len(fds), maxRegions)
	}
	defer func() {
		if err != nil {
			m.unmap()
			m = nil
		}
	}()
	for i, fd := range fds {
		e := p[8+32*i:]
		gpa, size, uva, off := le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:]), le.Uint64(e[24:])
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return m, fmt.Errorf("memory region %d: %w", i, err)
		}
		// Touching a mapping behind the end of its file would be a SIGBUS.
		file := uint64(max(st.Size, 0))
		if size == 0 || off > file || size > file-off || gpa+size < gpa || uva+size < uva {
			return m, fmt.Errorf("memory region %d: %d bytes at guest %#x, offset %d of a file of %d bytes", i, size, gpa, off, file)
		}
		b, err := unix.Mmap(fd, 0, int(off+size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return m, fmt.Errorf("memory region %d: mmap %d bytes: %w", i, off+size, err)
		}
		m = append(m, region{gpa: gpa, uva: uva, mem: b[off:], mapping: b})
	}
	return m, nil
}
