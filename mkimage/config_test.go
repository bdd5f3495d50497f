package mkimage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

func TestCheckConfig(t *testing.T) {
	want, err := parseSettings(kernelconfig.File{Name: "f.config", Text: []byte(`# a comment
CONFIG_A=y
CONFIG_N=256
CONFIG_S="a b"
# CONFIG_B is not set
`)})
	if err != nil {
		t.Fatal(err)
	}
	known := func(o string) bool { return o != "CONFIG_GONE" }
	for _, c := range []struct {
		name, config string
		more         []setting
		problems     []string
	}{
		{name: "all as asked for", config: "CONFIG_A=y\nCONFIG_N=256\nCONFIG_S=\"a b\"\n# CONFIG_B is not set\nCONFIG_OTHER=y\n"},
		{name: "an option that is off need not be mentioned", config: "CONFIG_A=y\nCONFIG_N=256\nCONFIG_S=\"a b\"\n"},
		{name: "every problem is told", config: "# CONFIG_A is not set\nCONFIG_N=64\nCONFIG_B=y\n", problems: []string{
			"CONFIG_A=y is not set in the end", "CONFIG_N has to be 256, but is 64", `CONFIG_S="a b" is not set`, "CONFIG_B has to be off, but is y", "f.config"}},
		{name: "a renamed option is not off", config: "CONFIG_A=y\nCONFIG_N=256\nCONFIG_S=\"a b\"\n",
			more: []setting{{"CONFIG_GONE", "", "required.txt"}}, problems: []string{"CONFIG_GONE", "no such option"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkConfig([]byte(c.config), append(want, c.more...), known)
			if (err != nil) != (c.problems != nil) {
				t.Fatalf("error %v, want %q", err, c.problems)
			}
			for _, p := range c.problems {
				if !strings.Contains(err.Error(), p) {
					t.Errorf("%q is not in: %v", p, err)
				}
			}
		})
	}
}

func TestParseSettingsIsStrict(t *testing.T) {
	for _, line := range []string{"CONFIG_A=n", "CONFIG_A = y", "A=y", "CONFIG_A", "CONFIG_A="} {
		if s, err := parseSettings(kernelconfig.File{Name: "f", Text: []byte(line)}); err == nil {
			t.Errorf("%q was read as %+v", line, s)
		}
	}
}

func TestEveryFragmentParses(t *testing.T) {
	for _, simulation := range []bool{false, true} {
		if s, err := wanted(simulation); err != nil || len(s) < 200 {
			t.Errorf("%d settings, %v", len(s), err)
		}
	}
}

func TestKnownOptions(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "Kconfig"), "config A\n\tbool\nmenuconfig B\n\tdef_bool y\n  config NESTED\n# config NOT\n")
	write(t, filepath.Join(dir, "drivers/Kconfig.debug"), "config DEEP\n")
	write(t, filepath.Join(dir, "Documentation/Kconfig"), "config EXAMPLE\n")
	known, err := knownOptions(dir)
	if err != nil {
		t.Fatal(err)
	}
	for o, want := range map[string]bool{"A": true, "B": true, "NESTED": true, "DEEP": true, "NOT": false, "EXAMPLE": false} {
		if known("CONFIG_"+o) != want {
			t.Errorf("%s: %v, want %v", o, !want, want)
		}
	}
}

func TestProviderGoesIntoTheTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), kernelconfig.ProviderDir)
	if err := addProvider(dir); err == nil {
		t.Error("a tree without the provider's place was taken")
	}
	write(t, filepath.Join(dir, "Kconfig"), "config X\n")
	write(t, filepath.Join(dir, "Makefile"), "obj-y += x.o\n")
	if err := addProvider(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Kconfig": "config X\n\nsource \"drivers/virt/coco/tsm-sim/Kconfig\"\n", "Makefile": "obj-y += x.o\nobj-$(CONFIG_TSM_SIM) += tsm-sim/\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
}

func TestProviderIsInOneKernelOnly(t *testing.T) {
	dir := t.TempDir()
	set := func(systemMap, vmlinux string) {
		write(t, filepath.Join(dir, "System.map"), systemMap)
		write(t, filepath.Join(dir, "vmlinux"), vmlinux)
	}
	for _, c := range []struct {
		name, systemMap, vmlinux string
		production, simulation   bool // whether the kernel passes as one
	}{
		{"in both files", "ffff t tsm_sim_init\n", "\x00tsm_sim.vsock_port", false, true},
		{"in neither", "ffff t tsm_init\n", "\x00tsm", true, false},
		{"in the bytes only", "ffff t tsm_init\n", "\x00tsm_sim", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			set(c.systemMap, c.vmlinux)
			if err := checkProvider(dir, false); (err == nil) != c.production {
				t.Errorf("as production: %v", err)
			}
			if err := checkProvider(dir, true); (err == nil) != c.simulation {
				t.Errorf("as simulation: %v", err)
			}
		})
	}
}
