// Package kernelconfig holds what the guest kernel is made from: fragments, checks, source pin, simulated TSM provider.
//
// It is data. Package mkimage builds with it; the files are embedded so that a built command needs no checkout.
package kernelconfig

import (
	"embed"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

//go:embed *.config required.txt source.json patches/*.patch tsm-sim/Kconfig tsm-sim/Makefile tsm-sim/tsm_sim.c
var files embed.FS

// A Source is one exact kernel source: a tarball inside a Debian package.
type Source struct {
	Package string    `json:"package"`
	Version string    `json:"version"` // of the package
	File    string    `json:"file"`    // name of the tarball, in /usr/src of the package
	SHA256  string    `json:"sha256"`  // of the tarball, lower-case hex
	Date    time.Time `json:"date"`    // of the package; the newest moment that a build depends on
}

// Pin is the source that every production kernel is built from.
var Pin = func() (s Source) {
	if err := json.Unmarshal(read("source.json"), &s); err != nil {
		panic(fmt.Errorf("kernel-config/source.json: %w", err))
	}
	return s
}()

// A File is a named text of this folder.
type File struct {
	Name string
	Text []byte
}

// SimulationFragment is the one fragment that the production kernel lacks.
const SimulationFragment = "simulation.config"

// Fragments are the parts of the configuration, in the order in which they are applied. The simulation kernel is the
// production kernel with one fragment more.
func Fragments(simulation bool) []File {
	names := []string{"base.config", "tee.config", "qemu.config", "cloud.config", "hardening.config"}
	if simulation {
		names = append(names, SimulationFragment)
	}
	fs := make([]File, len(names))
	for i, n := range names {
		fs[i] = File{n, read(n)}
	}
	return fs
}

// Required lists what must hold once Kconfig has had its say.
func Required() File { return File{"required.txt", read("required.txt")} }

// A Rule is one line of required.txt, with what stands above it.
type Rule struct {
	Option string // CONFIG_…
	Value  string // "" for an option that has to be off
	Why    string // what would be lost without it, or who would get in
}

var ruleLine = regexp.MustCompile(`^(?:(CONFIG_[A-Za-z0-9_]+)=(.+)|# (CONFIG_[A-Za-z0-9_]+) is not set)$`)

// Rules are what any kernel has to have to be safe in a confidential VM, whoever built it.
func Rules() []Rule {
	var rules []Rule
	var why []string
	told := false // a comment is for all lines that follow, until an empty line or the next comment
	for line := range strings.Lines(string(Required().Text)) {
		line = strings.TrimSpace(line)
		if m := ruleLine.FindStringSubmatch(line); m != nil {
			rules, told = append(rules, Rule{m[1] + m[3], m[2], strings.Join(why, " ")}), true
			continue
		}
		if line == "" || told {
			why, told = nil, false
		}
		if text, ok := strings.CutPrefix(line, "# "); ok {
			why = append(why, text)
		}
	}
	return rules
}

// Patches are what both kernels have besides their source, to be applied in this order with patch -p1.
func Patches() []File {
	names, err := files.ReadDir("patches") // sorted
	if err != nil {
		panic(err) // they are in the embed line above
	}
	var fs []File
	for _, n := range names {
		fs = append(fs, File{n.Name(), read("patches/" + n.Name())})
	}
	return fs
}

// ProviderDir is the parent, inside the kernel's source, of the provider's folder tsm-sim.
const ProviderDir = "drivers/virt/coco"

// Provider is the simulated TSM provider: files relative to ProviderDir.
func Provider() []File {
	var fs []File
	for _, n := range []string{"tsm-sim/Kconfig", "tsm-sim/Makefile", "tsm-sim/tsm_sim.c"} {
		fs = append(fs, File{n, read(n)})
	}
	return fs
}

// ProviderLines are appended to the files of ProviderDir so that the kernel's build descends into tsm-sim.
func ProviderLines() []File {
	return []File{
		{"Kconfig", []byte("\nsource \"" + ProviderDir + "/tsm-sim/Kconfig\"\n")},
		{"Makefile", []byte("obj-$(CONFIG_TSM_SIM) += tsm-sim/\n")},
	}
}

func read(name string) []byte {
	b, err := files.ReadFile(name)
	if err != nil {
		panic(err) // the name is not in the embed line above
	}
	return b
}
