// Command measured is the init of a VM that says on its console what firmware and kernel have measured: a line
// "pcr ALGORITHM NUMBER HEX" for each register, one "log HEX" with the event log, and one "cmdline HEX"; then it cuts
// the power.
package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := say(); err != nil {
		fmt.Println("error", err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func say() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"securityfs", "/sys/kernel/security"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	// What the kernel has to say on a slow machine would stand in the middle of a line.
	if err := os.WriteFile("/proc/sys/kernel/printk", []byte("1"), 0); err != nil {
		return err
	}
	files, err := filepath.Glob("/sys/class/tpm/tpm0/pcr-*/*")
	if err != nil {
		return err
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		bank := strings.TrimPrefix(filepath.Base(filepath.Dir(path)), "pcr-")
		fmt.Println("pcr", bank, filepath.Base(path), strings.ToLower(strings.TrimSpace(string(b))))
	}
	for name, path := range map[string]string{"log": "/sys/kernel/security/tpm0/binary_bios_measurements", "cmdline": "/proc/cmdline"} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Println(name, hex.EncodeToString(b))
	}
	return nil
}
