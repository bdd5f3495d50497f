package main

import (
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/tee/configfs"
	"github.com/ampoule-vm/ampoule/internal/tee/sample"
	"github.com/ampoule-vm/ampoule/internal/tee/vtpm"
)

// teeDrivers are tried in order; the first whose hardware is there is the TEE of this boot. On Azure only the vTPM speaks for
// the guest, so that its drivers are asked before that of SNP (wire/SPEC.md §2.6).
var teeDrivers = []tee.Driver{
	configfs.TDX,
	vtpm.AzTDX,
	vtpm.AzSNP,
	configfs.SNP,
}

// driversFor gives CoCo's sample attester, which proves nothing and is always there, to an image that asks for it by name,
// and to no other: it must never stand in for hardware that is not found.
func driversFor(o cmdline.Options) []tee.Driver {
	if o.Simulation() && o.Allow.Has(cmdline.AllowSample) {
		return []tee.Driver{sample.Driver}
	}
	return teeDrivers
}
