package qemu

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files")

func TestArgsAreGolden(t *testing.T) {
	var b strings.Builder
	for _, c := range []struct {
		name string
		s    Shape
		d    Devices
	}{
		{"smallest", Shape{VCPUs: 1, MemoryMiB: 512, Accel: TCG}, Devices{Kernel: "vmlinuz", Initrd: "initrd", Cmdline: "console=ttyS0", Console: "console.log", VhostSocket: "/tmp/x/vsock"}},
		{"OVMF, network, KVM", Shape{VCPUs: 4, MemoryMiB: 2048, Firmware: "/usr/share/ovmf/OVMF.fd", Accel: KVM}, Devices{Kernel: "vmlinuz", Initrd: "initrd", Cmdline: "a \"b c\"", Console: "console.log", VhostSocket: "/tmp/x/vsock", UserNet: true}},
		{"vhost of the kernel", Shape{VCPUs: 1, MemoryMiB: 512, Accel: KVM}, Devices{Kernel: "vmlinuz", Initrd: "initrd", Console: "console.log", VhostFD: 4, CID: 77777}},
		{"commas", Shape{VCPUs: 1, MemoryMiB: 512, Accel: TCG}, Devices{Kernel: "a,b", Initrd: "c,d", Cmdline: "e,f", Console: "out,1/console.log", VhostSocket: "/tmp/a,b/vsock"}},
		{"swap on virtio", Shape{VCPUs: 1, MemoryMiB: 512, Accel: TCG}, Devices{Kernel: "k", Initrd: "i", Console: "c", Swap: "out,1/swap.img", SwapDisk: "vda"}},
		{"swap on SCSI", Shape{VCPUs: 1, MemoryMiB: 512, Accel: TCG}, Devices{Kernel: "k", Initrd: "i", Console: "c", Swap: "s", SwapDisk: "sda"}},
		{"swap on NVMe", Shape{VCPUs: 1, MemoryMiB: 512, Accel: TCG}, Devices{Kernel: "k", Initrd: "i", Console: "c", Swap: "s", SwapDisk: "nvme0n1"}},
		{"SEV-SNP", Shape{VCPUs: 2, MemoryMiB: 2048, Firmware: "OVMF.amdsev.fd", Accel: KVM}, Devices{Kernel: "k", Initrd: "i", Cmdline: "c", Console: "c", VhostFD: 4, CID: 7,
			TEE: &TEE{Kind: evidence.SNP, InitData: [32]byte{1, 2, 3}, IDBlock: []byte{4}, IDAuth: []byte{5}}}},
		{"TDX", Shape{VCPUs: 2, MemoryMiB: 2048, Firmware: "OVMF.inteltdx.fd", Accel: KVM}, Devices{Kernel: "k", Initrd: "i", Cmdline: "c", Console: "c", VhostFD: 4, CID: 7,
			TEE: &TEE{Kind: evidence.TDX, InitData: [32]byte{1, 2, 3}, QGS: "vsock:2:4050"}}},
		{"a disk to boot from", Shape{VCPUs: 1, MemoryMiB: 512, Firmware: "OVMF.fd", Accel: TCG}, Devices{Disk: "out,1/disk.raw", Kernel: "ampoule.efi", Console: "c"}},
		{"no vsock", Shape{VCPUs: 1, MemoryMiB: 512, Accel: TCG}, Devices{Kernel: "k", Initrd: "i", Console: "c"}},
	} {
		b.WriteString("# " + c.name + "\n" + ShellCommand("qemu-system-x86_64", c.s.Args(c.d)) + "\n")
	}
	path := filepath.Join("testdata", "args.golden")
	if *update {
		os.MkdirAll("testdata", 0o755)
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestShellCommandSurvivesAShell(t *testing.T) {
	args := []string{"", "plain", "two words", "it's", `"quoted" \ $HOME ` + "`x`", "new\nline", "*", "~", "#", "a;b", "-x=é"}
	out, err := exec.Command("sh", "-c", ShellCommand("printf", append([]string{"%s|"}, args...))).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out), strings.Join(args, "|")+"|"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
