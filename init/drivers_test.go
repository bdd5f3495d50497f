package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// TestSampleByNameOnly: evidence that anybody can make up is never what a machine falls back to.
func TestSampleByNameOnly(t *testing.T) {
	for _, o := range []cmdline.Options{
		{Profile: cmdline.Production},
		{Profile: cmdline.Production, Allow: cmdline.Allow{cmdline.AllowSample: true}},
		{Profile: cmdline.Simulation, Allow: cmdline.Allow{cmdline.AllowUnbound: true}},
	} {
		if slices.ContainsFunc(driversFor(o), func(d tee.Driver) bool { return d.Name == string(evidence.Sample) }) {
			t.Errorf("%+v has the sample attester", o)
		}
	}
}

// TestSampleBoot: a broker that has not been told to gives it no key, and its receipt is worth nothing.
func TestSampleBoot(t *testing.T) {
	sampled := func(t *testing.T, allow string) *flow {
		f := newFlow(t)
		f.line = "ampoule.profile=simulation ampoule.allow=http,sample" + allow
		f.tamper = func(m *machine) { m.openTEE = tee.Open }
		return f
	}
	f := sampled(t, ",unbound")
	f.boot()
	f.ends("attest", result.Denied, false)
	if log := f.log(); !strings.Contains(log, "sample") {
		t.Errorf("the sealed log does not name the kind:\n%s", log)
	}

	f = sampled(t, "")
	f.boot()
	f.ends("bind", result.NotBound, false)

	f = sampled(t, ",unbound")
	f.allPlain()
	f.boot()
	f.ends("", result.OK, true)
	if _, err := verify.Receipt(f.peer.receipt, verify.Expect{}); err == nil || !strings.Contains(err.Error(), "sample") {
		t.Errorf("receipt: %v", err)
	}
}
