package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	swapBlock = 4096 // bytes: a page, a block of the disk, and what one tag is of
	swapTag   = 28   // bytes per block: 16 of the tag and 12 of the nonce

	// The tags lie in memory. A host that plugs in a larger disk than asked for must not use that up: the tags get a
	// sixteenth of the memory, which serves a swap of nine times the memory, and what is beyond is left alone.
	swapTagShare = 16

	minSwap = 1 << 20 // bytes

	// Files of images go to the disk in the order in which they will be read, so that 32 pages are read at once; the kernel's default is 8.
	swapCluster = "5"

	minSwapping = 16 << 20 // bytes of memory that files and the workload take turns in, at least
	ownMemory   = 32 << 20 // bytes that files leave to PID 1, if there are twice as many

	// tagDevice is the kernel's RAM disk. It takes the pages that are written to, and no others.
	tagDevice = "/dev/ram0"
	// tagOverhead is the superblock and the one section of a journal that dm-integrity wants and mode D never writes to.
	tagOverhead = 1 << 20

	swapFirst = 0x8000 | 0x7fff // SWAP_FLAG_PREFER and the highest priority: include/linux/swap.h
)

// Swap makes a disk of the host's into swap space that the host can neither read nor change unnoticed, and lets the root file system
// grow by as much. It returns the bytes that are there. device is a name below /dev, like "vda", which is waited for until ctx ends.
//
// Each page is sealed with AES-256-GCM under a key of this boot that is in the kernel alone (dm-crypt). Nonce and tag are kept in the
// guest's memory (dm-integrity with a separate metadata device), so that an older content of the disk does not verify either; the
// disk holds ciphertext and nothing else, no header and no length that the kernel would read. A nonce is random: up to 2³² pages, 16 TiB,
// may be written under the key (NIST SP 800-38D §8.3).
//
// This process's own memory is locked first, and so is never on the disk.
//
// free is what the machine has of memory, bytes.
func Swap(ctx context.Context, device string, free int64) (int64, error) {
	disk := "/dev/" + device
	size, err := waitForDisk(ctx, disk)
	if err != nil {
		return 0, err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, err
	}
	ram := int64(info.Totalram) * int64(info.Unit)
	size = swapSize(size, ram)
	if size < minSwap {
		return 0, fmt.Errorf("swap: %s has room for %d bytes, want %d", disk, size, minSwap)
	}
	room := free - tagBytes(size) - SwapHeadroom(ram)
	if room < minSwapping {
		return 0, fmt.Errorf("swap: of %d MiB of memory %d are free, and the kernel needs %d of these to swap: "+
			"start the machine with more (ampoule run --memory)", ram>>20, free>>20, (free-room)>>20)
	}
	if err := lockMemory(); err != nil {
		return 0, fmt.Errorf("swap: keep PID 1 in memory: %w", err)
	}
	if err := fillTags(tagBytes(size)); err != nil {
		return 0, fmt.Errorf("swap: %w", err)
	}
	path, err := mapSwap(disk, size)
	if err != nil {
		return 0, fmt.Errorf("swap on %s: %w", disk, err)
	}
	if err := writeSwapHeader(path, size); err != nil {
		return 0, fmt.Errorf("swap on %s: %w", disk, err)
	}
	if err := writeFile("/proc/sys/vm/page-cluster", swapCluster); err != nil {
		return 0, fmt.Errorf("swap: %w", err)
	}
	if err := leaveHeadroom(room); err != nil {
		return 0, fmt.Errorf("swap: %w", err)
	}
	if err := swapOn(path); err != nil {
		return 0, fmt.Errorf("swap on %s: swapon %s: %w", disk, path, err)
	}
	return size, growWork(room - min(room/2, ownMemory) + size)
}

// swapSize is how much of a disk of so many bytes serves a machine with ram bytes of memory.
func swapSize(disk, ram int64) int64 {
	return max(0, min(disk/swapBlock, ram/swapTagShare/swapTag)) * swapBlock
}

// tagBytes is what the tags of a swap space take.
func tagBytes(size int64) int64 { return size/swapBlock*swapTag + tagOverhead }

// waitForDisk returns the size of a block device in bytes. NVMe and SCSI disks are found while PID 1 runs already.
func waitForDisk(ctx context.Context, path string) (int64, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		size, err := diskSize(path)
		if !errors.Is(err, os.ErrNotExist) && !(err == nil && size == 0) {
			return size, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("swap: the command line says ampoule.swap=%s and this machine has no such disk: "+
				"plug one in (ampoule run --swap)", path[len("/dev/"):])
		case <-tick.C:
		}
	}
}

func diskSize(path string) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return 0, fmt.Errorf("swap: %s is no block device", path)
	}
	return f.Seek(0, io.SeekEnd)
}

// fillTags writes zeros over the first n bytes of the RAM disk. It is then empty for dm-integrity, which formats it, and has all its pages:
// to need memory for a tag when a page has to go, because there is none, would be too late.
func fillTags(n int64) error {
	f, err := os.OpenFile(tagDevice, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("%w; is BLK_DEV_RAM in the kernel?", err)
	}
	defer f.Close()
	const piece = 256 << 10
	zeros, err := unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned
	if err != nil {
		return err
	}
	defer unix.Munmap(zeros)
	for ; n > 0; n -= piece {
		if _, err := f.Write(zeros); err != nil {
			return fmt.Errorf("write to %s: %w", tagDevice, err)
		}
	}
	return nil
}

// integrityTable keeps a tag for each block and checks none: that is for dm-crypt to do. Mode D has no journal, for nothing of this
// survives a crash.
func integrityTable(disk string, size int64) dmTarget {
	p := fmt.Appendf(nil, "%s 0 %d D 4 block_size:%d meta_device:%s journal_sectors:1 buffer_sectors:%d",
		disk, swapTag, swapBlock, tagDevice, swapBlock/512)
	return dmTarget{"integrity", uint64(size / 512), p}
}

// cryptTable seals each block with AES-256-GCM. What is authenticated besides the block is its sector number, so that blocks cannot
// change places.
func cryptTable(dev uint64, key []byte, size int64) dmTarget {
	p := make([]byte, 0, 256) // never grown, which would leave a copy of the key behind
	p = append(p, "capi:gcm(aes)-random "...)
	p = hex.AppendEncode(p, key)
	p = fmt.Appendf(p, " 0 %d:%d 0 2 integrity:%d:aead sector_size:%d", unix.Major(dev), unix.Minor(dev), swapTag, swapBlock)
	return dmTarget{"crypt", uint64(size / 512), p}
}

// mapSwap makes the device that swap goes to, on disk.
func mapSwap(disk string, size int64) (path string, err error) {
	m, err := openMapper()
	if err != nil {
		return "", err
	}
	defer m.close()
	const lower, upper = "swap-tags", "swap"
	under, err := m.create(lower, integrityTable(disk, size))
	if err != nil {
		return "", err
	}
	key := make([]byte, 32)
	defer clear(key)
	rand.Read(key) // never fails
	dev, err := m.create(upper, cryptTable(under, key, size))
	if err != nil {
		return "", errors.Join(err, m.remove(lower))
	}
	return "/dev/dm-" + strconv.Itoa(int(unix.Minor(dev))), nil
}

// swapHeader is the first page of a swap space: union swap_header of include/linux/swap.h, version 1.
func swapHeader(size int64) []byte {
	b := make([]byte, swapBlock)
	binary.NativeEndian.PutUint32(b[1024:], 1)
	last := min(size/swapBlock-1, 1<<32-2)
	binary.NativeEndian.PutUint32(b[1028:], uint32(last))
	copy(b[swapBlock-10:], "SWAPSPACE2")
	return b
}

func writeSwapHeader(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(swapHeader(size)); err != nil {
		return err
	}
	return f.Close()
}

// swapOn has the kernel use the device before all others, without discards, which would tell the host what is free.
func swapOn(path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(p)), swapFirst, 0); errno != 0 {
		return errno
	}
	return nil
}

// lockMemory keeps this process's memory from being swapped, now and later: it holds keys. Pages are locked as they come
// into use, save those of the program's file, which are all read now: were one of them to come back altered, there would be
// nobody to say so. What it starts is not locked. From here on the Go runtime gives no memory back.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	for line := range bytes.Lines(maps) {
		if !bytes.HasSuffix(bytes.TrimSpace(line), []byte(" "+program)) {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(string(line), "%x-%x", &from, &to); err != nil {
			return fmt.Errorf("/proc/self/maps: %w", err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, from, to-from, 0); errno != 0 {
			return fmt.Errorf("mlock of the program: %w", errno)
		}
	}
	return nil
}

// RunCgroup holds this process and, in a group of its own, the workload, on a machine that swaps.
const RunCgroup = "/sys/fs/cgroup/run"

// SwapHeadroom is how much of so many bytes of memory files and the workload cannot have on a machine that swaps. To put a page on
// the disk the kernel needs memory itself, for a copy of it and for requests, and waits for ever where others have taken the last.
func SwapHeadroom(ram int64) int64 { return max(32<<20, ram/16) }

// leaveHeadroom moves this process below RunCgroup, which may take max bytes more than what is in use.
func leaveHeadroom(max int64) error {
	own := RunCgroup + "/init"
	for _, dir := range []string{RunCgroup, own} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, f := range []struct{ path, value string }{
		{RunCgroup + "/memory.max", strconv.FormatInt(max, 10)},
		{RunCgroup + "/cgroup.subtree_control", controllers},
		{own + "/cgroup.procs", strconv.Itoa(os.Getpid())},
	} {
		if err := writeFile(f.path, f.value); err != nil {
			return err
		}
	}
	return nil
}

// growWork lets the file system that everything is unpacked to hold so many bytes.
func growWork(bytes int64) error {
	m := workMount
	data := "size=" + strconv.FormatInt(bytes, 10)
	if err := unix.Mount("", m.Target, "", m.Flags|unix.MS_REMOUNT, data); err != nil {
		return fmt.Errorf("remount %s with %s: %w", m.Target, data, err)
	}
	return nil
}
