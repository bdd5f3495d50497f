package doctor

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// state is that of one finding; "" is none.
func (r *Report) state(what string) (s State) {
	for _, f := range r.Findings {
		if f.What == what {
			s = f.State
		}
	}
	return s
}

// machine makes a folder that stands for a machine, with a QEMU that says what it is told to.
func machine(t *testing.T, files map[string]string, version, objects string) Host {
	t.Helper()
	root := t.TempDir()
	files["qemu"] = fmt.Sprintf("#!/bin/sh\ncase \"$1\" in --version) echo '%s';; -object) echo '%s';; esac\n", version, objects)
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root, QEMU: filepath.Join(root, "qemu"), KVMWorks: func(context.Context) bool { return true }}
}

func TestHost(t *testing.T) {
	const amd, intel, qgs = "sys/module/kvm_amd/parameters/sev_snp", "sys/module/kvm_intel/parameters/tdx", "var/run/tdx-qgs/qgs.socket"
	const new, both = "QEMU emulator version 11.1.3", "  sev-snp-guest\n  tdx-guest"
	for name, c := range map[string]struct {
		files            map[string]string
		version, objects string
		broken           bool // KVM
		want             evidence.Kind
		states           map[string]State
		bad              int
	}{
		"an ordinary machine": {map[string]string{"dev/kvm": "", "dev/vhost-vsock": ""}, "QEMU emulator version 7.2.22", "  sev-guest", false, "",
			map[string]State{"KVM": OK, "SEV-SNP": Absent, "TDX": Absent, "vhost-vsock": OK, "QEMU": OK, "QEMU sev-snp-guest": Absent}, 0},
		"an ordinary machine that should have SNP": {map[string]string{"dev/kvm": "", "dev/vhost-vsock": ""}, "QEMU emulator version 7.2.22", "  sev-guest", false, evidence.SNP,
			map[string]State{"SEV-SNP": Bad, "TDX": Absent, "QEMU sev-snp-guest": Bad, "QEMU tdx-guest": Absent}, 2},
		"one with SNP": {map[string]string{"dev/kvm": "", "dev/vhost-vsock": "", "dev/sev": "", amd: "Y\n"}, new, both, false, evidence.SNP,
			map[string]State{"SEV-SNP": OK, "QEMU sev-snp-guest": OK}, 0},
		"one whose processor has SNP and nobody may use it": {map[string]string{"dev/kvm": "", "dev/vhost-vsock": "", amd: "Y\n"}, new, both, false, evidence.SNP,
			map[string]State{"SEV-SNP": Bad}, 1},
		"one with TDX": {map[string]string{"dev/kvm": "", "dev/vhost-vsock": "", intel: "Y\n", qgs: ""}, new, both, false, evidence.TDX,
			map[string]State{"TDX": OK, "TDX quotes": OK, "QEMU tdx-guest": OK}, 0},
		"one with TDX and nobody to make quotes": {map[string]string{"dev/kvm": "", "dev/vhost-vsock": "", intel: "Y\n"}, new, both, false, evidence.TDX,
			map[string]State{"TDX": OK, "TDX quotes": Bad}, 1},
		"one whose KVM is software": {map[string]string{"dev/kvm": "", "dev/vhost-vsock": "", "dev/sev": "", amd: "1\n"}, new, both, true, evidence.SNP,
			map[string]State{"KVM": Bad}, 1},
		"one without anything": {map[string]string{}, "", "", false, "",
			map[string]State{"KVM": Absent, "vhost-vsock": Absent, "QEMU": Bad}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := machine(t, c.files, c.version, c.objects)
			h.KVMWorks = func(context.Context) bool { return !c.broken }
			var r Report
			h.Examine(t.Context(), &r, c.want)
			for what, want := range c.states {
				if got := r.state(what); got != want {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
			}
			if r.Bad() != c.bad {
				t.Errorf("%d are bad, want %d:\n%s", r.Bad(), c.bad, r.Text())
			}
			for _, f := range r.Findings {
				if (f.State == Bad || f.State == Absent) && f.Fix == "" {
					t.Errorf("%s is %s, and nobody is told what to do", f.What, f.State)
				}
			}
		})
	}
}

func TestFirmware(t *testing.T) {
	var r Report
	Firmware(&r, []byte("not a firmware"), "")
	if r.state("format") != Bad {
		t.Errorf("anything is a firmware:\n%s", r.Text())
	}
	b, err := os.ReadFile("/usr/share/ovmf/OVMF.fd")
	if err != nil {
		t.Skip(err)
	}
	r = Report{}
	Firmware(&r, b, evidence.SNP)
	if r.state("format") != OK || r.state("SEV-SNP") != OK || r.state("kernel hashes") != Bad || !strings.Contains(r.Text(), "could boot another /init") {
		t.Errorf("Debian's OVMF measures no initramfs:\n%s", r.Text())
	}
}

// settings is a configuration by which all rules hold.
func settings() string {
	var b strings.Builder
	for _, r := range kernelconfig.Rules() {
		if r.Value != "" {
			fmt.Fprintf(&b, "%s=%s\n", r.Option, r.Value)
		} else {
			fmt.Fprintf(&b, "# %s is not set\n", r.Option)
		}
	}
	for n := range 100 {
		fmt.Fprintf(&b, "CONFIG_FILLER_%d=y\n", n)
	}
	return b.String()
}

func TestKernelRules(t *testing.T) {
	good := settings()
	for name, c := range map[string]struct {
		config, what, want string
	}{
		"all hold":             {good, "", ""},
		"no sandbox for AML":   {strings.Replace(good, "CONFIG_ACPI_AML_SANDBOX=y\n", "", 1), "CONFIG_ACPI_AML_SANDBOX", "BadAML"},
		"table upgrades":       {strings.Replace(good, "# CONFIG_ACPI_TABLE_UPGRADE is not set", "CONFIG_ACPI_TABLE_UPGRADE=y", 1), "CONFIG_ACPI_TABLE_UPGRADE", "More byte code"},
		"a driver as a module": {strings.Replace(good, "CONFIG_SEV_GUEST=y", "CONFIG_SEV_GUEST=m", 1), "CONFIG_SEV_GUEST", "/init loads no modules"},
		"a simulation kernel":  {good + "CONFIG_TSM_SIM=y\n", "", "proves nothing"},
		"no configuration":     {"hello", "configuration", "no kernel's configuration"},
	} {
		var r Report
		Kernel(&r, []byte(c.config))
		if c.what != "" && r.state(c.what) != Bad || c.what == "" && r.Bad() > 0 || !strings.Contains(r.Text(), c.want) {
			t.Errorf("%s: want %s to be bad, and %q:\n%s", name, c.what, c.want, r.Text())
		}
	}
}

// bzImage packs what stands for a kernel as Linux' build does.
func bzImage(version string, payload []byte) []byte {
	b := make([]byte, 1024, 1024+len(payload)) // one sector, and one of set-up code
	b[bootSectors] = 1
	copy(b[bootMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[bootVersion:], 0x180)
	copy(b[0x380:], version+" (build@host)\x00")
	binary.LittleEndian.PutUint32(b[bootPayload+4:], uint32(len(payload)))
	return append(b, payload...)
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func TestKernelImages(t *testing.T) {
	inside := append(append([]byte("code IKCFG_ST"), gzipped([]byte(settings()))...), "IKCFG_ED code"...)
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	size := []byte{0, 0, 0, 0}
	for name, c := range map[string]struct {
		image                  []byte
		version, configuration State
		rules                  State
	}{
		"gzip":                        {bzImage("6.12.1", append(gzipped(inside), size...)), OK, "", OK},
		"zstd":                        {bzImage("6.16.0", append(enc.EncodeAll(inside, nil), size...)), OK, "", OK},
		"an old one":                  {bzImage("6.1.0-40-amd64", append(gzipped(inside), size...)), Bad, "", OK},
		"one that keeps it to itself": {bzImage("6.12.1", append(gzipped([]byte("code")), size...)), OK, Unknown, ""},
		"xz":                          {bzImage("6.12.1", []byte("\xfd7zXZ\x00")), OK, Unknown, ""},
		"a broken one":                {bzImage("6.12.1", append(gzipped(inside)[:40], size...)), OK, Unknown, ""},
	} {
		var r Report
		Kernel(&r, c.image)
		if r.state("version") != c.version || r.state("configuration") != c.configuration || r.state("rules") != c.rules {
			t.Errorf("%s:\n%s", name, r.Text())
		}
	}
}

func FuzzKernel(f *testing.F) {
	f.Add(bzImage("6.12.1", append(gzipped([]byte("IKCFG_ST IKCFG_ED")), 0, 0, 0, 0)))
	f.Add([]byte(settings()))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Report
		Kernel(&r, b)
		if len(r.Findings) == 0 {
			t.Error("nothing was said")
		}
	})
}
