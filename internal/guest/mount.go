package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A MountPoint is one file system and where it goes.
type MountPoint struct {
	Type   string
	Target string // absolute, as PID 1 sees it afterwards
	Flags  uintptr
	Data   string
}

func (m MountPoint) String() string {
	opts := []string{"rw"}
	if m.Flags&unix.MS_RDONLY != 0 {
		opts[0] = "ro"
	}
	for _, f := range []struct {
		bit  uintptr
		name string
	}{{unix.MS_NOSUID, "nosuid"}, {unix.MS_NODEV, "nodev"}, {unix.MS_NOEXEC, "noexec"}} {
		if m.Flags&f.bit != 0 {
			opts = append(opts, f.name)
		}
	}
	if m.Data != "" {
		opts = append(opts, m.Data)
	}
	return fmt.Sprintf("%s on %s (%s)", m.Type, m.Target, strings.Join(opts, ","))
}

const sealed = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// WorkDir is where images, results and scratch are.
const WorkDir = "/work"

// workMount has images, results and scratch. Its size is the budget for everything a computation unpacks or writes: nine
// tenths of the RAM, since nothing but PID 1 and the workload needs any. Programs may be run from it, for images are
// unpacked there. It is a file system of its own so that it can be discarded at once.
var workMount = MountPoint{"tmpfs", WorkDir, unix.MS_NOSUID | unix.MS_NODEV, "mode=0700,size=90%"}

// Mounts lists every file system of the machine, in the order in which Mount makes them.
func Mounts() []MountPoint {
	return []MountPoint{
		{"tmpfs", "/", sealed, "mode=0755,size=16m"}, // what PID 1 moves to: folders, and files of names and addresses
		{"proc", "/proc", sealed, "hidepid=invisible"},
		{"sysfs", "/sys", sealed | unix.MS_RDONLY, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
		{"tmpfs", "/run", sealed, "mode=0755,size=16m"},
		workMount,
		{"configfs", "/sys/kernel/config", sealed, ""},
		{"securityfs", "/sys/kernel/security", sealed, ""},
		{"cgroup2", "/sys/fs/cgroup", sealed, "nsdelegate"},
	}
}

// directories are made on the new root once it is there.
var directories = []struct {
	path string
	mode os.FileMode
}{
	{"/etc", 0o755},
	{"/tmp", 0o700},
}

// controllers are those that the workload's cgroup needs; each must be in the kernel.
const controllers = "+memory +pids +cpu"

const newRoot = "/newroot"

// Mount makes all of Mounts on a tmpfs of bounded size, makes that the root directory, and empties the initramfs
// behind it. The move is needed because pivot_root(2), by which the workload gets its own root, cannot leave the
// initramfs. Only PID 1 may call it, first and once; it needs nothing but an initramfs with /init.
//
// The running program stays reachable as /proc/self/exe although its file is gone.
func Mount() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("mount: process %d is not PID 1", os.Getpid())
	}
	old, err := os.OpenRoot("/")
	if err != nil {
		return err
	}
	defer old.Close()
	if err := os.Mkdir(newRoot, 0o755); err != nil {
		return err
	}
	if err := mountAll(newRoot, Mounts(), unix.Mount); err != nil {
		return err
	}
	if err := switchRoot(newRoot); err != nil {
		return err
	}
	if err := empty(old); err != nil {
		return err
	}
	for _, d := range directories {
		if err := os.Mkdir(d.path, d.mode); err != nil {
			return err
		}
	}
	return writeFile("/sys/fs/cgroup/cgroup.subtree_control", controllers)
}

// Discard unmounts file systems, given the inner ones first, and so frees all memory that they had. One that something still uses goes
// later, with its last user, and is an error. A directory that none is mounted on is none.
func Discard(dirs ...string) error {
	var last error
	for _, dir := range dirs {
		switch err := unix.Unmount(dir, 0); err {
		case nil, unix.EINVAL, unix.ENOENT:
		case unix.EBUSY:
			unix.Unmount(dir, unix.MNT_DETACH)
			fallthrough
		default:
			last = fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return last
}

type mountFunc func(source, target, fstype string, flags uintptr, data string) error

// mountAll mounts the table below root. A target that is missing is made: the kernel provides those inside sysfs.
func mountAll(root string, table []MountPoint, mount mountFunc) error {
	for _, m := range table {
		target := filepath.Join(root, m.Target)
		if err := os.Mkdir(target, 0o755); err != nil && !os.IsExist(err) {
			return fmt.Errorf("mount point of %s: %w; is %s in the kernel?", m, err, m.Type)
		}
		if err := mount(m.Type, target, m.Type, m.Flags, m.Data); err != nil {
			return fmt.Errorf("mount %s: %w", m, err)
		}
	}
	return nil
}

// switchRoot makes the mount at dir the root of this process and of all it starts.
func switchRoot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot to %s: %w", dir, err)
	}
	return os.Chdir("/")
}

// empty removes what the initramfs held, after making sure that it is one: a root on a disk is nobody's to empty.
func empty(old *os.Root) error {
	d, err := old.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &fs); err != nil {
		return fmt.Errorf("statfs of the initramfs: %w", err)
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("the first root has file system type %#x, want ramfs or tmpfs; boot from an initramfs", fs.Type)
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := old.RemoveAll(n); err != nil {
			return fmt.Errorf("empty the initramfs: %w", err)
		}
	}
	return nil
}

// writeFile writes to a file of the kernel, which must exist.
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}
