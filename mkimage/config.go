package mkimage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// A setting is one line of a fragment: an option and what it has to be. value is "" for an option that has to be off.
type setting struct{ option, value, file string }

var (
	onLine  = regexp.MustCompile(`^(CONFIG_[A-Za-z0-9_]+)=(.+)$`)
	offLine = regexp.MustCompile(`^# (CONFIG_[A-Za-z0-9_]+) is not set$`)
)

// parseSettings reads the lines of a fragment or of a finished .config. Other comments and empty lines are passed
// over; anything else is an error, as is "=n", which Kconfig reads in one place and writes in no place.
func parseSettings(f kernelconfig.File) ([]setting, error) {
	var all []setting
	for i, line := range strings.Split(string(f.Text), "\n") {
		on, off := onLine.FindStringSubmatch(line), offLine.FindStringSubmatch(line)
		switch {
		case on != nil && on[2] != "n":
			all = append(all, setting{on[1], on[2], f.Name})
		case off != nil:
			all = append(all, setting{off[1], "", f.Name})
		case line != "" && !strings.HasPrefix(line, "#"):
			return nil, fmt.Errorf("%s:%d: %q is neither CONFIG_X=value nor # CONFIG_X is not set", f.Name, i+1, line)
		}
	}
	return all, nil
}

// checkConfig compares a finished configuration with what it was made from. Kconfig drops a line whose dependency is
// missing without a word, so every line is looked for again. An option that has to be off has to be known as well, or
// a renamed one would pass; known tells. All problems are reported at once.
func checkConfig(config []byte, want []setting, known func(option string) bool) error {
	have := map[string]string{}
	settings, err := parseSettings(kernelconfig.File{Name: ".config", Text: config})
	if err != nil {
		return err
	}
	for _, s := range settings {
		have[s.option] = s.value
	}
	var problems []error
	for _, s := range want {
		got := have[s.option]
		switch {
		case s.value == "" && !known(s.option):
			problems = append(problems, fmt.Errorf("%s: %s has to be off, but this source knows no such option", s.file, s.option))
		case s.value == got:
		case got == "":
			problems = append(problems, fmt.Errorf("%s: %s=%s is not set in the end", s.file, s.option, s.value))
		case s.value == "":
			problems = append(problems, fmt.Errorf("%s: %s has to be off, but is %s", s.file, s.option, got))
		default:
			problems = append(problems, fmt.Errorf("%s: %s has to be %s, but is %s", s.file, s.option, s.value, got))
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("the kernel's configuration is not what was asked for:\n%w", errors.Join(problems...))
	}
	return nil
}

// wanted is everything that has to hold for a profile.
func wanted(simulation bool) ([]setting, error) {
	var all []setting
	for _, f := range append(kernelconfig.Fragments(simulation), kernelconfig.Required()) {
		s, err := parseSettings(f)
		if err != nil {
			return nil, err
		}
		all = append(all, s...)
	}
	return all, nil
}

var kconfigOption = regexp.MustCompile(`(?m)^\s*(?:menu)?config\s+([A-Za-z0-9_]+)\s*$`)

// knownOptions collects every option that the Kconfig files of a source tree define.
func knownOptions(tree string) (func(option string) bool, error) {
	known := map[string]bool{}
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path == filepath.Join(tree, "Documentation") {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() || !strings.HasPrefix(d.Name(), "Kconfig") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range kconfigOption.FindAllSubmatch(b, -1) {
			known["CONFIG_"+string(m[1])] = true
		}
		return nil
	})
	return func(o string) bool { return known[o] }, err
}

// checkProvider makes sure that the simulated TSM provider is in a kernel exactly when it is meant to be: by the
// kernel's symbols and by its own bytes.
func checkProvider(objects string, simulation bool) error {
	for _, name := range []string{"System.map", "vmlinux"} {
		b, err := os.ReadFile(filepath.Join(objects, name))
		if err != nil {
			return err
		}
		switch has := bytes.Contains(b, []byte("tsm_sim")); {
		case has && !simulation:
			return fmt.Errorf("%s of the production kernel holds the simulated TSM provider (tsm_sim)", name)
		case !has && simulation:
			return fmt.Errorf("%s of the simulation kernel lacks the simulated TSM provider (tsm_sim)", name)
		}
	}
	return nil
}
