package kbsserver

import (
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// A verdict is what a policy says, and for a denial which claim failed against what, or why nothing could be judged.
type verdict struct {
	allow                   bool
	claim, expected, actual string
	cause                   error
}

// judge asks every rule that matches. If none allows, the verdict names the claim at which the rules that came furthest
// stopped, and what all of those would have taken.
func (p Policy) judge(resource string, c *verify.Claims) verdict {
	var furthest *miss
	for _, glob := range slices.Sorted(maps.Keys(p)) {
		if ok, err := path.Match(glob, resource); err != nil || !ok {
			continue
		}
		m := p[glob].misses(c)
		switch {
		case m == nil:
			return verdict{allow: true}
		case furthest == nil || m.at > furthest.at:
			furthest = m
		case m.at == furthest.at:
			furthest.expected = append(furthest.expected, m.expected...)
		}
	}
	if furthest == nil {
		return verdict{claim: "resource", expected: "a rule that matches", actual: resource}
	}
	var expected []string
	for _, e := range furthest.expected {
		if !slices.Contains(expected, e) {
			expected = append(expected, e)
		}
	}
	return verdict{claim: furthest.claim, expected: strings.Join(expected, " "), actual: furthest.actual}
}

// A miss is the first thing of a rule that a guest does not meet.
type miss struct {
	at       int // in the order of misses
	claim    string
	expected []string
	actual   string
}

// nothing is the actual value of a claim that evidence of this kind does not make.
const nothing = "nothing: evidence of kind %s has none"

// misses gives nil if the guest meets the whole rule.
func (r Rule) misses(c *verify.Claims) *miss {
	at := 0
	var first *miss
	check := func(ok bool, claim, actual string, expected func() []string) {
		if at++; !ok && first == nil {
			first = &miss{at, claim, expected(), actual}
		}
	}
	if c.Kind == evidence.Sample {
		check(slices.Contains(r.TEE, evidence.Sample), "tee", string(c.Kind), func() []string { return names(r.TEE) })
		check(r.AllowSimulated != nil && *r.AllowSimulated, "simulated", "true", func() []string { return []string{"allow_simulated"} })
		return first
	}
	check(r.TEE == nil || slices.Contains(r.TEE, c.Kind), "tee", string(c.Kind), func() []string { return names(r.TEE) })
	check(slices.Contains(r.Measurements, c.Measurement), "measurement", c.Measurement.String(), func() []string { return names(r.Measurements) })
	check(slices.ContainsFunc(r.InitData, func(d Digest) bool { return c.Holds(d) }), "init_data", hex.EncodeToString(c.InitData),
		func() []string { return names(r.InitData) })
	check(r.AllowSimulated == nil || *r.AllowSimulated || !c.Simulated, "simulated", fmt.Sprint(c.Simulated), func() []string { return []string{"false"} })

	var least MinTCB
	if r.MinTCB != nil {
		least = *r.MinTCB
	}
	snp := c.Kind == evidence.SNP || c.Kind == evidence.AzSNPvTPM
	for _, l := range []struct {
		name      string
		least, is uint8
	}{
		{"bootloader", least.Bootloader, c.TCB.Bootloader}, {"tee", least.TEE, c.TCB.TEE}, {"snp", least.SNP, c.TCB.SNP},
		{"microcode", least.Microcode, c.TCB.Microcode}, {"fmc", least.FMC, c.TCB.FMC},
	} {
		actual := fmt.Sprint(l.is)
		if !snp {
			actual = fmt.Sprintf(nothing, c.Kind)
		}
		check(r.MinTCB == nil || snp && l.is >= l.least, "tcb."+l.name, actual, func() []string { return []string{fmt.Sprintf(">=%d", l.least)} })
	}

	td := c.TDX
	if td == nil {
		td = new(evidence.TDXReport)
	}
	in := func(asked bool, list []evidence.Measurement, claim string, value [48]byte) {
		actual := hex.EncodeToString(value[:])
		if c.TDX == nil {
			actual = fmt.Sprintf(nothing, c.Kind)
		}
		check(!asked || c.TDX != nil && slices.Contains(list, value), claim, actual, func() []string { return names(list) })
	}
	// MRTD is the firmware's, and on Azure the measurement is the paravisor's: whatever they start has it too, and can be
	// bound to the same manifest. A simulated one is of the whole image.
	image := func(named bool, claim string, actual []byte) {
		check(c.Simulated || named, claim, hex.EncodeToString(actual), func() []string {
			return []string{"values in the rule: measurements alone do not tell which image runs on " + string(c.Kind)}
		})
	}
	switch c.Kind {
	case evidence.TDX:
		image(r.RTMR[1] != nil, "rtmr.1", td.RTMR[1][:])
	case evidence.AzSNPvTPM, evidence.AzTDXvTPM:
		pcr4 := [32]byte{}
		if c.PCRs != nil {
			pcr4 = c.PCRs[4]
		}
		image(r.PCR[4] != nil, "pcr.4", pcr4[:])
	}
	in(r.MRSeam != nil, r.MRSeam, "mr_seam", td.MRSeam)
	for i, value := range td.RTMR {
		list, asked := r.RTMR[i]
		in(asked, list, fmt.Sprintf("rtmr.%d", i), value)
	}
	pcrs := c.PCRs
	if pcrs == nil {
		pcrs = new([24][32]byte)
	}
	for i, value := range pcrs {
		list, asked := r.PCR[i]
		actual := hex.EncodeToString(value[:])
		if c.PCRs == nil {
			actual = fmt.Sprintf(nothing, c.Kind)
		}
		check(!asked || c.PCRs != nil && slices.Contains(list, value), fmt.Sprintf("pcr.%d", i), actual, func() []string { return names(list) })
	}
	return first
}

// names are the text forms of a list.
func names[T any](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, fmt.Sprint(v))
	}
	return out
}
