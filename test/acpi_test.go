package test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/debian"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

// TestHostByteCodeReachesNoMemory boots the production kernel with a table of the host's. Its byte code says on a port, with a small
// letter, what it is about to do, and with the capital that it could: without the sandbox all are there.
func TestHostByteCodeReachesNoMemory(t *testing.T) {
	t.Parallel()
	dir, _ := production.get(t, mkimage.Options{Profile: cmdline.Production, Net: "dhcp"})
	for name, firmware := range map[string][]string{"SeaBIOS": nil, "OVMF": {"-bios", ovmf}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := filepath.Join(t.TempDir(), "port")
			args := append([]string{
				"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nographic", "-no-reboot", "-net", "none",
				"-kernel", filepath.Join(dir, mkimage.KernelFile), "-append", "console=ttyS0 panic=-1", // there is no init: it ends then
				"-acpitable", "file=testdata/badaml.aml",
				"-chardev", "file,id=port,path=" + port, "-device", "isa-debugcon,iobase=0x503,chardev=port",
			}, firmware...)
			t.Logf("to reproduce:\n%s", qemu.ShellCommand("qemu-system-x86_64", args))
			ctx, cancel := context.WithTimeout(t.Context(), vmLimit)
			defer cancel()
			console, err := exec.CommandContext(ctx, "qemu-system-x86_64", args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, console)
			}
			got, err := os.ReadFile(port)
			if err != nil {
				t.Fatal(err)
			}
			// A device is read, and a table; RAM is neither read nor written, by whatever address, a table not written, NVS not read.
			if want := "aAbcdDefg"; string(got) != want {
				t.Errorf("the byte code said %q, want %q:\n%s", got, want, console)
			}
			if !bytes.Contains(console, []byte("ACPI: sandbox: refused 4 bytes at 0x1000000: memory, not a device")) {
				t.Errorf("the kernel's log does not name what was refused:\n%s", console)
			}
		})
	}
}

// TestByteCodeIsFromItsSource: nobody reads byte code.
func TestByteCodeIsFromItsSource(t *testing.T) {
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), "bookworm", []string{"acpica-tools"}, os.Stderr)
	if err != nil {
		t.Skipf("iasl cannot be had: %v", err)
	}
	out := filepath.Join(t.TempDir(), "badaml")
	src, err := filepath.Abs("testdata/badaml.asl")
	if err != nil {
		t.Fatal(err)
	}
	if said, err := root.Command(t.Context(), "iasl", "-p", out, src).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	made, err := os.ReadFile(out + ".aml")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(strings.TrimSuffix(src, ".asl") + ".aml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made, kept) {
		t.Errorf("testdata/badaml.aml is not made from badaml.asl; run iasl -p badaml badaml.asl there")
	}
}
