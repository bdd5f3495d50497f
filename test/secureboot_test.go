package test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// The firmware of Debian's package ovmf that enforces Secure Boot, variables in which a key is enrolled whose private half
// is published for tests, and that key.
const (
	secureCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	secureVars = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"
	snakeKey   = "/usr/share/ovmf/PkKek-1-snakeoil.key" // its pass phrase is the file's adjective
	snakeCert  = "/usr/share/ovmf/PkKek-1-snakeoil.pem"
)

// TestSecureBoot: firmware that enforces Secure Boot starts a signed image and refuses the same one without a signature.
func TestSecureBoot(t *testing.T) {
	for _, path := range []string{secureCode, secureVars, snakeKey, snakeCert} {
		if _, err := os.Stat(path); err != nil {
			t.Skip(err)
		}
	}
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip(err)
	}
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key.pem")
	if out, err := exec.Command(openssl, "pkcs8", "-in", snakeKey, "-passin", "pass:snakeoil", "-out", key).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	o := mkimage.Options{Profile: cmdline.Simulation, Net: "dhcp", Formats: []string{mkimage.Raw}, SourceDir: "..", KernelSource: os.Getenv("KERNEL_SOURCE")}
	for _, c := range []struct{ name, key, cert, says string }{
		{"signed", key, snakeCert, "ampoule SIMULATION  2/13 lockdown"},
		{"unsigned", "", "", "Access Denied"},
	} {
		o.Out, o.SecureBootKey, o.SecureBootCert = filepath.Join(work, "secure-"+c.name), c.key, c.cert
		if _, err := mkimage.Build(t.Context(), o); errors.Is(err, mkimage.ErrNotServed) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		others := "Access Denied"
		if c.says == others {
			others = "ampoule"
		}
		line := bootSecurely(t, filepath.Join(o.Out, mkimage.RawFile), c.says, others)
		if !strings.Contains(line, c.says) {
			t.Errorf("%s: the console says %q, want %q", c.name, line, c.says)
		}
	}
}

// bootSecurely returns the first line of the console that has one of the words, and ends the VM.
func bootSecurely(t *testing.T, image string, words ...string) string {
	t.Helper()
	vars := filepath.Join(t.TempDir(), "vars.fd")
	b, err := os.ReadFile(secureVars)
	if err == nil {
		err = os.WriteFile(vars, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), vmLimit)
	defer cancel()
	// Variables are the firmware's own only in system management mode.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,smm=on,vmport=off,hpet=off", "-global", "driver=cfi.pflash01,property=secure,value=on",
		"-m", "512", "-accel", "tcg,thread=multi", "-cpu", "max", "-serial", "stdio",
		"-drive", "if=pflash,format=raw,readonly=on,file="+secureCode, "-drive", "if=pflash,format=raw,file="+vars,
		"-drive", "if=none,id=boot,format=raw,readonly=on,file="+image, "-device", "virtio-blk-pci,drive=boot,bootindex=0")
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}()
	said := ""
	for lines := bufio.NewScanner(console); lines.Scan(); {
		said += lines.Text() + "\n"
		for _, w := range words {
			if strings.Contains(lines.Text(), w) {
				return lines.Text()
			}
		}
	}
	t.Fatalf("the console ended with none of %q:\n%s", words, said)
	return ""
}
