package doctor

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A Host is a machine that is to run VMs.
type Host struct {
	Root     string                         // "/", or a folder that stands for it
	QEMU     string                         // program
	KVMWorks func(ctx context.Context) bool // by a VM that really runs

}

// Examine looks at the machine. want is the TEE that it must have: "" for none.
func (h Host) Examine(ctx context.Context, r *Report, want evidence.Kind) {
	h.kvm(ctx, r, want != "")
	h.snp(r, want == evidence.SNP)
	h.tdx(r, want == evidence.TDX)
	h.vsock(r, want != "")
	h.qemu(ctx, r, want)
}

// missing is Bad for what somebody asked for.
func missing(asked bool) State {
	if asked {
		return Bad
	}
	return Absent
}

func (h Host) kvm(ctx context.Context, r *Report, asked bool) {
	f, err := os.OpenFile(filepath.Join(h.Root, "dev/kvm"), os.O_RDWR, 0)
	switch {
	case err != nil:
		r.add("host", "KVM", missing(asked), "load kvm_amd or kvm_intel, and give yourself access: usermod -aG kvm USER", "/dev/kvm: %v", errors.Unwrap(err))
		return
	case !h.KVMWorks(ctx):
		r.add("host", "KVM", missing(asked), "use a machine whose KVM is the processor's", "/dev/kvm opens, but no guest runs: it is a software one; VMs are emulated")
	default:
		r.add("host", "KVM", OK, "", "a guest runs")
	}
	f.Close()
}

// parameter is a kernel module's, or "".
func (h Host) parameter(module, name string) string {
	b, err := os.ReadFile(filepath.Join(h.Root, "sys/module", module, "parameters", name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h Host) snp(r *Report, asked bool) {
	const fix = "on an EPYC 7003 or later: enable SNP, SMEE and RMP in the BIOS, boot Linux 6.11 or later, load kvm_amd with sev_snp=1"
	switch v := h.parameter("kvm_amd", "sev_snp"); {
	case v != "Y" && v != "1":
		r.add("host", "SEV-SNP", missing(asked), fix, "kvm_amd's sev_snp is %q", v)
	case !h.exists("dev/sev"):
		r.add("host", "SEV-SNP", missing(asked), "load the ccp module and give yourself access to /dev/sev", "kvm_amd has it, but there is no /dev/sev")
	default:
		r.add("host", "SEV-SNP", OK, "", "kvm_amd has it")
	}
}

func (h Host) tdx(r *Report, asked bool) {
	const fix = "on a Xeon of the 5th generation or later: enable TDX and SEAM in the BIOS, boot Linux 6.16 or later with kvm_intel.tdx=1"
	switch v := h.parameter("kvm_intel", "tdx"); {
	case v != "Y" && v != "1":
		r.add("host", "TDX", missing(asked), fix, "kvm_intel's tdx is %q", v)
		return
	default:
		r.add("host", "TDX", OK, "", "kvm_intel has it")
	}
	if !h.exists("var/run/tdx-qgs/qgs.socket") {
		r.add("host", "TDX quotes", missing(asked), "install and start Intel's qgsd, or say with ampoule run --qgs where it listens", "no quote generation service at /var/run/tdx-qgs/qgs.socket")
	} else {
		r.add("host", "TDX quotes", OK, "", "a quote generation service is there")
	}
}

func (h Host) exists(path string) bool {
	_, err := os.Stat(filepath.Join(h.Root, path))
	return err == nil
}

func (h Host) vsock(r *Report, asked bool) {
	f, err := os.OpenFile(filepath.Join(h.Root, "dev/vhost-vsock"), os.O_RDWR, 0)
	if err != nil {
		// Without hardware our own vhost-user device does it.
		r.add("host", "vhost-vsock", missing(asked), "modprobe vhost_vsock, and give yourself access: usermod -aG kvm USER", "/dev/vhost-vsock: %v; VMs without a TEE get a device of ours", errors.Unwrap(err))
		return
	}
	f.Close()
	r.add("host", "vhost-vsock", OK, "", "/dev/vhost-vsock opens")
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// qemuTime bounds a question to QEMU.
const qemuTime = 20 * time.Second

func (h Host) ask(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, qemuTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, h.QEMU, args...).CombinedOutput()
	return string(out), err
}

func (h Host) qemu(ctx context.Context, r *Report, want evidence.Kind) {
	out, err := h.ask(ctx, "--version")
	m := qemuVersion.FindStringSubmatch(out)
	if err != nil || m == nil {
		r.add("host", "QEMU", Bad, "apt install qemu-system-x86", "%s: %v", h.QEMU, err)
		return
	}
	r.add("host", "QEMU", OK, "", "version %s.%s", m[1], m[2])
	objects, err := h.ask(ctx, "-object", "help")
	if err != nil {
		r.add("host", "QEMU's objects", Unknown, "", "%s -object help: %v", h.QEMU, err)
		return
	}
	for _, o := range []struct {
		kind evidence.Kind
		name string
		from string
	}{{evidence.SNP, "sev-snp-guest", "9.1 (Debian 13, or Debian 12's backports)"}, {evidence.TDX, "tdx-guest", "10.1"}} {
		if strings.Contains(objects, o.name) {
			r.add("host", "QEMU "+o.name, OK, "", "is there")
		} else {
			r.add("host", "QEMU "+o.name, missing(want == o.kind), "use QEMU "+o.from+" or a later one", "QEMU %s has no such object", m[1])
		}
	}
}
