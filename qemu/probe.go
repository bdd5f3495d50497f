package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	probeTime = 10 * time.Second
	probeExit = 0x31<<1 | 1 // what isa-debug-exit makes of the boot sector's 0x31
	probeText = "ampoule"
	probeDisk = 1 << 20 // bytes; SeaBIOS reads no disk that is smaller than a cylinder
)

// Probe says which accelerator works with this QEMU ("" is DefaultBinary). A /dev/kvm that opens proves nothing: some
// are software underneath and stop at the first instruction that they do not know. So KVM needs hardware support in
// /proc/cpuinfo and a boot sector that runs to its end within 10 s. The answer is kept until the machine reboots.
func Probe(ctx context.Context, qemu string) Accel {
	if qemu == "" {
		qemu = DefaultBinary
	}
	return probeAt(ctx, qemu, "/proc/cpuinfo", "/dev/kvm", func(ctx context.Context) error {
		return probeBoot(ctx, qemu, KVM)
	})
}

func probeAt(ctx context.Context, qemu, cpuinfo, kvm string, boot func(context.Context) error) Accel {
	info, err := os.ReadFile(cpuinfo)
	if err != nil || !hasVirtualization(info) {
		return TCG
	}
	dev, err := os.OpenFile(kvm, os.O_RDWR, 0)
	if err != nil {
		return TCG
	}
	dev.Close()
	c := openProbeCache(qemu)
	if a, ok := c.get(); ok {
		return a
	}
	accel := KVM
	if err := boot(ctx); err != nil {
		if ctx.Err() != nil {
			return TCG // not an answer worth keeping
		}
		accel = TCG
	}
	c.put(accel)
	return accel
}

func hasVirtualization(cpuinfo []byte) bool {
	for line := range bytes.Lines(cpuinfo) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if string(bytes.TrimSpace(key)) != "flags" {
			continue
		}
		for _, f := range strings.Fields(string(value)) {
			if f == "vmx" || f == "svm" {
				return true
			}
		}
	}
	return false
}

// bootSector prints probeText to the debug console (port 0xe9) and leaves through isa-debug-exit (port 0xf4).
func bootSector() []byte {
	code := []byte{
		0xfc,       // cld
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0x17, 0x7c, // mov si, text
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x04, // jz done
		0xe6, 0xe9, // out 0xe9, al
		0xeb, 0xf7, // jmp next
		0xb0, 0x31, // done: mov al, 0x31
		0xe6, 0xf4, // out 0xf4, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to hlt
	}
	code[6] = byte(len(code)) // the text is behind the code, which is loaded at 0x7c00
	s := make([]byte, 512)
	copy(s, code)
	copy(s[len(code):], probeText)
	s[510], s[511] = 0x55, 0xaa
	return s
}

// probeBoot runs the boot sector. An accelerator that does not work may crash, hang, or be refused.
func probeBoot(ctx context.Context, qemu string, accel Accel) error {
	dir, err := newTempDir()
	if err != nil {
		return err
	}
	defer dir.remove()
	disk := dir.file("disk")
	if err := errors.Join(os.WriteFile(disk, bootSector(), 0o600), os.Truncate(disk, probeDisk)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-m", "64",
		"-accel", string(accel), "-cpu", "max",
		"-drive", "if=none,id=disk,format=raw,read-only=on,file="+quoteOption(disk), "-device", "virtio-blk-pci,drive=disk",
		"-chardev", "file,id=text,path=/dev/fd/1", "-device", "isa-debugcon,iobase=0xe9,chardev=text", "-device", "isa-debug-exit,iobase=0xf4")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &errOut, pipeGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Run()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != probeExit || !strings.HasSuffix(out.String(), probeText) {
		return fmt.Errorf("probe boot with %s: %w, %q %q", accel, err, out.String(), errOut.String())
	}
	return nil
}

// A probeCache is one answer in the user's cache directory, for one boot of this machine and one QEMU. It only saves
// time: without a place to keep it, Probe asks again.
type probeCache struct {
	path string
	key  probeKey
}

type probeKey struct {
	BootID, QEMU string
	Size, Time   int64
}

type probeAnswer struct {
	Key   probeKey
	Accel Accel
}

func openProbeCache(qemu string) *probeCache {
	dir, err := os.UserCacheDir()
	boot, err1 := os.ReadFile("/proc/sys/kernel/random/boot_id")
	path, err2 := exec.LookPath(qemu)
	if errors.Join(err, err1, err2) != nil {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return &probeCache{
		path: filepath.Join(dir, "ampoule", "accel.json"),
		key:  probeKey{strings.TrimSpace(string(boot)), path, info.Size(), info.ModTime().UnixNano()},
	}
}

func (c *probeCache) get() (Accel, bool) {
	if c == nil {
		return "", false
	}
	b, err := os.ReadFile(c.path)
	if err != nil {
		return "", false
	}
	var a probeAnswer
	if json.Unmarshal(b, &a) != nil || a.Key != c.key || a.Accel != KVM && a.Accel != TCG {
		return "", false
	}
	return a.Accel, true
}

func (c *probeCache) put(accel Accel) {
	if c == nil {
		return
	}
	b, err := json.Marshal(probeAnswer{c.key, accel})
	if err != nil || os.MkdirAll(filepath.Dir(c.path), 0o755) != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(c.path), "accel")
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), c.path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
}
