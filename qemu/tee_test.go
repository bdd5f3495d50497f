package qemu

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/debian"
	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// noHardware is what QEMU says of a line that is right, on a machine that has not got the processor for it.
var noHardware = regexp.MustCompile(`vm-type (SEV-SNP|TDX) not supported by KVM|[Cc]ould not access KVM kernel module|failed to initialize kvm`)

// TestRealQEMUTakesTheLines has QEMU of two suites read the lines: what it complains of must be the hardware.
func TestRealQEMUTakesTheLines(t *testing.T) {
	if testing.Short() {
		t.Skip("short: unpacks two versions of QEMU")
	}
	dir := t.TempDir()
	file := func(name string) string {
		path := dir + "/" + name
		if err := os.WriteFile(path, make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d := Devices{Kernel: file("kernel"), Initrd: file("initrd"), Cmdline: "console=ttyS0", Console: dir + "/console"}
	shape := Shape{VCPUs: 2, MemoryMiB: 512, Firmware: file("OVMF.fd"), Accel: KVM}
	snp := &TEE{Kind: evidence.SNP, InitData: [32]byte{1}, IDBlock: make([]byte, idBlockSize), IDAuth: make([]byte, idAuthSize)}
	tdx := &TEE{Kind: evidence.TDX, InitData: [32]byte{1}}
	for _, c := range []struct {
		suite string
		tees  []*TEE
	}{{"trixie", []*TEE{snp}}, {"sid", []*TEE{snp, tdx}}} {
		t.Run(c.suite, func(t *testing.T) {
			root, err := debian.Fetch(t.Context(), debian.CacheDir(), c.suite, []string{"qemu-system-x86"}, os.Stderr)
			if err != nil {
				t.Skipf("QEMU of %s cannot be had: %v", c.suite, err)
			}
			t.Log(root.Version("qemu-system-x86"))
			said := func(args []string) string {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				out, err := root.Command(ctx, "qemu-system-x86_64", args...).CombinedOutput()
				if err == nil {
					t.Fatalf("it started: %s", ShellCommand("qemu-system-x86_64", args))
				}
				return string(out)
			}
			for _, tee := range c.tees {
				if err := tee.check(shape); err != nil {
					t.Fatal(err)
				}
				d.TEE = tee
				args := shape.Args(d)
				if out := said(args); !noHardware.MatchString(out) {
					t.Errorf("%s: %s\n%s", tee.Kind, out, ShellCommand("qemu-system-x86_64", args))
				}
				// And of a line that is wrong, it complains of the line.
				for n, a := range args {
					if n > 0 && args[n-1] == "-object" && strings.Contains(a, teeID) {
						args[n] = strings.NewReplacer("host-data", "host-date", "mrconfigid", "mrconfigit").Replace(a)
					}
				}
				if out := said(args); noHardware.MatchString(out) || !strings.Contains(out, "host-date") && !strings.Contains(out, "mrconfigit") {
					t.Errorf("%s: a wrong line: %s", tee.Kind, out)
				}
			}
		})
	}
}

func TestTEEChecks(t *testing.T) {
	kvm := Shape{VCPUs: 1, MemoryMiB: 512, Firmware: "f", Accel: KVM}
	for name, c := range map[string]struct {
		tee   TEE
		shape Shape
		want  string
	}{
		"an unknown kind":         {TEE{Kind: "sgx"}, kvm, "want snp or tdx"},
		"without KVM":             {TEE{Kind: evidence.SNP}, Shape{Firmware: "f", Accel: TCG}, "takes KVM"},
		"without a firmware":      {TEE{Kind: evidence.SNP}, Shape{Accel: KVM}, "takes a firmware"},
		"TDX with a model":        {TEE{Kind: evidence.TDX, CPU: "EPYC"}, kvm, "host's model only"},
		"half an identity":        {TEE{Kind: evidence.SNP, IDBlock: make([]byte, 96)}, kvm, "go together"},
		"a short identity":        {TEE{Kind: evidence.SNP, IDBlock: make([]byte, 95), IDAuth: make([]byte, 4096)}, kvm, "want 96 and 4096"},
		"TDX with an identity":    {TEE{Kind: evidence.TDX, IDBlock: make([]byte, 96)}, kvm, "TDX has none"},
		"a quote service by name": {TEE{Kind: evidence.TDX, QGS: "localhost:4050"}, kvm, "unix:PATH"},
		"a port that is none":     {TEE{Kind: evidence.TDX, QGS: "vsock:2:x"}, kvm, "vsock:CID:PORT"},
	} {
		if err := c.tee.check(c.shape); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
