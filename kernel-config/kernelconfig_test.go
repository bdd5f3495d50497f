package kernelconfig

import (
	"encoding/hex"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestPinIsComplete(t *testing.T) {
	if Pin.Package == "" || Pin.Version == "" || !strings.HasSuffix(Pin.File, ".tar.xz") {
		t.Errorf("incomplete pin: %+v", Pin)
	}
	if b, err := hex.DecodeString(Pin.SHA256); err != nil || len(b) != 32 || strings.ToLower(Pin.SHA256) != Pin.SHA256 {
		t.Errorf("sha256 %q is not 64 lower-case hex digits", Pin.SHA256)
	}
	if Pin.Date.Before(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) || Pin.Date.Location() != time.UTC {
		t.Errorf("date %v", Pin.Date)
	}
}

// Two fragments with an opinion each on one option would make the order of the fragments matter.
func TestAnOptionStandsInOneFragmentOnly(t *testing.T) {
	option := regexp.MustCompile(`(?m)^(?:# )?(CONFIG_[A-Za-z0-9_]+)(?:=| is not set$)`)
	seen := map[string]string{}
	for _, f := range Fragments(true) {
		for _, m := range option.FindAllSubmatch(f.Text, -1) {
			o := string(m[1])
			if first, ok := seen[o]; ok {
				t.Errorf("%s is in %s and in %s", o, first, f.Name)
			}
			seen[o] = f.Name
		}
	}
	if len(seen) < 200 {
		t.Errorf("only %d options in all fragments", len(seen))
	}
}

func TestTheProviderIsTheOnlyDifference(t *testing.T) {
	prod, sim := Fragments(false), Fragments(true)
	if len(sim) != len(prod)+1 || sim[len(prod)].Name != SimulationFragment {
		t.Fatalf("%d production and %d simulation fragments", len(prod), len(sim))
	}
	var lines []string
	for line := range strings.Lines(string(sim[len(prod)].Text)) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 1 || lines[0] != "CONFIG_TSM_SIM=y" {
		t.Errorf("the simulation fragment sets %q", lines)
	}
	for _, f := range append(prod, Required()) {
		if strings.Contains(string(f.Text), "TSM_SIM") {
			t.Errorf("%s speaks of TSM_SIM", f.Name)
		}
	}
}

func TestKernelCodeSaysItsLicence(t *testing.T) {
	for _, f := range Provider() {
		line, _, _ := strings.Cut(string(f.Text), "\n")
		if !strings.Contains(line, "SPDX-License-Identifier: GPL-2.0-only") {
			t.Errorf("%s begins %q", f.Name, line)
		}
	}
}

func TestEveryRuleSaysWhy(t *testing.T) {
	rules := Rules()
	on, off := 0, 0
	for _, r := range rules {
		if r.Why == "" || !strings.HasSuffix(r.Why, ".") {
			t.Errorf("%s: %q is no sentence", r.Option, r.Why)
		}
		if r.Value == "" {
			off++
		} else {
			on++
		}
	}
	if on < 30 || off < 25 {
		t.Errorf("%d options on and %d off", on, off)
	}
}
