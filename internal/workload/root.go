package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What the Cocos conventions promise to an algorithm.
const (
	defaultCwd  = "/cocos"
	datasetsDir = "/cocos/datasets"
	resultsDir  = "/cocos/results"
)

// makeRoot leaves the process in a root of its own: the image read-only below, bounded scratch above, datasets
// read-only, results writable, a /proc of its own, a handful of devices, no /sys.
func makeRoot(o *order) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("scratch", o.Scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, tmpfsOptions(o.ScratchBytes)); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	at := func(name string) string { return filepath.Join(o.Scratch, name) }
	for _, dir := range []string{"upper", "work", "root", "shm"} {
		if err := os.Mkdir(at(dir), 0o755); err != nil {
			return err
		}
	}
	root := at("root")
	overlay := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.Root, at("upper"), at("work"))
	if err := unix.Mount("overlay", root, "overlay", unix.MS_NOSUID|unix.MS_NODEV, overlay); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, m := range []func(*os.Root, *order) error{mountInputs, layAlgorithm, makeTmp, nameLocalhost, layFiles, mountDev, mountProc} {
		if err := m(r, o); err != nil {
			return err
		}
	}
	return pivot(root)
}

// inside makes the absolute dir in the image and returns where it is now. Where the image has a link or a file in the
// way, the sandbox gets a folder instead: a mount must not go where a link points.
func inside(r *os.Root, dir string) (string, error) {
	path := ""
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		path = filepath.Join(path, part)
		fi, err := r.Lstat(path)
		if err == nil && !fi.IsDir() {
			err = errors.Join(r.Remove(path), fs.ErrNotExist)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = r.Mkdir(path, 0o755)
		}
		if err != nil {
			return "", fmt.Errorf("%s in the image: %w", dir, err)
		}
	}
	return filepath.Join(r.Name(), path), nil
}

func mountInputs(r *os.Root, o *order) error {
	cwd, err := inside(r, defaultCwd)
	if err != nil {
		return err
	}
	for _, b := range []struct {
		from, to string
		flags    uintptr
	}{
		{o.Datasets, datasetsDir, unix.MS_RDONLY},
		{o.Results, resultsDir, 0},
	} {
		to, err := inside(r, b.to)
		if err != nil {
			return err
		}
		if err := bind(b.from, to, b.flags|unix.MS_NOEXEC); err != nil {
			return fmt.Errorf("%s: %w", b.to, err)
		}
	}
	// Algorithms also write to the folder that they start in.
	return errors.Join(os.Chown(cwd, o.UID, o.GID), os.Chown(o.Results, o.UID, o.GID))
}

func bind(from, to string, flags uintptr) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV|flags, "")
}

func makeTmp(r *os.Root, _ *order) error {
	tmp, err := inside(r, "/tmp")
	if err != nil {
		return err
	}
	return os.Chmod(tmp, 0o777|os.ModeSticky)
}

// nameLocalhost writes /etc/hosts where an image has none, for there is no DNS to ask. An image whose /etc is a link
// gets none: it has its own ideas.
func nameLocalhost(r *os.Root, _ *order) error {
	if err := r.Mkdir("etc", 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if fi, err := r.Lstat("etc"); err != nil || !fi.IsDir() {
		return err
	}
	f, err := r.OpenFile("etc/hosts", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	return errors.Join(err, f.Close())
}

// devices are all that a workload can open besides files.
var devices = []string{"null", "zero", "full", "random", "urandom"}

func mountDev(r *os.Root, o *order) error {
	dev, err := inside(r, "/dev")
	if err != nil {
		return err
	}
	if err := unix.Mount("dev", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k,nr_inodes=64"); err != nil {
		return fmt.Errorf("/dev: %w", err)
	}
	for _, name := range devices {
		to := filepath.Join(dev, name)
		if err := os.WriteFile(to, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+name, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("/dev/%s: %w", name, err)
		}
	}
	for _, l := range [][2]string{{"fd", ""}, {"stdin", "/0"}, {"stdout", "/1"}, {"stderr", "/2"}} {
		if err := os.Symlink("/proc/self/fd"+l[1], filepath.Join(dev, l[0])); err != nil {
			return err
		}
	}
	// Shared memory is scratch too: one bound for both.
	shm, from := filepath.Join(dev, "shm"), filepath.Join(o.Scratch, "shm")
	if err := errors.Join(os.Mkdir(shm, 0o755), os.Chmod(from, 0o777|os.ModeSticky)); err != nil {
		return err
	}
	if err := bind(from, shm, unix.MS_NOEXEC); err != nil {
		return fmt.Errorf("/dev/shm: %w", err)
	}
	return nil
}

// Files of /proc that tell of the machine, and folders of it that change it.
var (
	masked = []string{"kcore", "keys", "key-users", "kallsyms", "kmsg", "sysrq-trigger", "timer_list", "sched_debug",
		"cmdline", "config.gz", "iomem", "ioports", "interrupts", "modules", "vmallocinfo", "kpagecount", "kpageflags", "kpagecgroup",
		"swaps", "partitions", "diskstats", "slabinfo", "pagetypeinfo", "buddyinfo", "zoneinfo", "schedstat", "softirqs", "mtrr", "crypto", "consoles", "locks"}
	readOnly = []string{"sys", "bus", "fs", "irq", "acpi", "scsi", "driver", "tty", "asound", "pressure"}
)

func mountProc(r *os.Root, _ *order) error {
	proc, err := inside(r, "/proc")
	if err != nil {
		return err
	}
	const sealed = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", proc, "proc", sealed, "hidepid=invisible"); err != nil {
		return fmt.Errorf("/proc: %w", err)
	}
	for _, name := range masked {
		err := unix.Mount("/dev/null", filepath.Join(proc, name), "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask /proc/%s: %w", name, err)
		}
	}
	for _, name := range readOnly {
		path := filepath.Join(proc, name)
		err := bind(path, path, unix.MS_NOEXEC|unix.MS_RDONLY)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("/proc/%s read-only: %w", name, err)
		}
	}
	return nil
}

// pivot makes root the root directory and lets go of the old one.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root lies on top of the new one now, at the same place.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}
