package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestMountsAreTheseAndNoOthers(t *testing.T) {
	var got []string
	for _, m := range Mounts() {
		got = append(got, m.String())
	}
	want := []string{
		"tmpfs on / (rw,nosuid,nodev,noexec,mode=0755,size=16m)",
		"proc on /proc (rw,nosuid,nodev,noexec,hidepid=invisible)",
		"sysfs on /sys (ro,nosuid,nodev,noexec)",
		"devtmpfs on /dev (rw,nosuid,noexec,mode=0755)",
		"tmpfs on /run (rw,nosuid,nodev,noexec,mode=0755,size=16m)",
		"tmpfs on /work (rw,nosuid,nodev,mode=0700,size=90%)",
		"configfs on /sys/kernel/config (rw,nosuid,nodev,noexec)",
		"securityfs on /sys/kernel/security (rw,nosuid,nodev,noexec)",
		"cgroup2 on /sys/fs/cgroup (rw,nosuid,nodev,noexec,nsdelegate)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}

func TestMountIsForPID1Only(t *testing.T) {
	if err := Mount(); err == nil || !strings.Contains(err.Error(), "PID 1") {
		t.Errorf("error %v", err)
	}
}

func TestMountAll(t *testing.T) {
	dir := t.TempDir()
	table := []MountPoint{{"tmpfs", "/", 0, ""}, {"proc", "/proc", sealed, ""}, {"sysfs", "/sys", sealed, ""}}
	var calls []string
	broken := errors.New("no such device")
	err := mountAll(dir, table, func(source, target, fstype string, flags uintptr, data string) error {
		if _, err := os.Stat(target); err != nil {
			t.Errorf("mount point: %v", err)
		}
		calls = append(calls, fstype+" "+strings.TrimPrefix(target, dir))
		if fstype == "proc" {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "proc on /proc (rw,nosuid,nodev,noexec)") {
		t.Errorf("error %v does not name the mount", err)
	}
	if diff := cmp.Diff([]string{"tmpfs ", "proc /proc"}, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	err = mountAll(dir, []MountPoint{{"nofs", "/no/parent", 0, ""}}, nil)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "is nofs in the kernel?") {
		t.Errorf("missing mount point: %v", err)
	}
}

func TestDiscard(t *testing.T) {
	outer := t.TempDir()
	if err := unix.Mount("tmpfs", outer, "tmpfs", 0, ""); err != nil {
		t.Skip("mounting needs root:", err)
	}
	inner := filepath.Join(outer, "inner")
	if err := errors.Join(os.Mkdir(inner, 0o755), unix.Mount("tmpfs", inner, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	open, err := os.Create(filepath.Join(outer, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Discard(inner, outer); !errors.Is(err, unix.EBUSY) || strings.Contains(err.Error(), inner) {
		t.Errorf("with a file that is open: %v", err)
	}
	open.Close()
	if left, err := os.ReadDir(outer); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := Discard(outer, filepath.Join(outer, "none")); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestEmptyTakesAnInitramfsOnly(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"init", "dev/console", "etc/a/b"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	inMemory := fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC

	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = empty(root)
	left, _ := os.ReadDir(dir)
	switch {
	case inMemory && (err != nil || len(left) != 0):
		t.Errorf("%d entries left, %v", len(left), err)
	case !inMemory && (err == nil || len(left) != 3):
		t.Errorf("%d of 3 entries left of a disk's directory, %v", len(left), err)
	}
}
