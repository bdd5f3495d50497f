package measure

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// firstEIP is where the first processor starts.
const firstEIP = 0xfffffff0

// vmsa is the state in which the hypervisor starts processor n (AMD APM Vol. 2, Table B-4), as KVM and each VMM set it.
func vmsa(l SNPLaunch, n int) (page [pageSize]byte) {
	eip := uint32(firstEIP)
	if n > 0 {
		eip = l.Firmware.resetEIP
	}
	le := binary.LittleEndian
	segment := func(at int, selector, attributes uint16, base uint32) {
		le.PutUint16(page[at:], selector)
		le.PutUint16(page[at+2:], attributes)
		le.PutUint32(page[at+4:], 0xffff)
		le.PutUint64(page[at+8:], uint64(base))
	}
	cs, ss, tr, rdx, pat := uint16(0x9b), uint16(0x93), uint16(0x8b), uint64(l.Signature), uint64(0x0007040600070406)
	mxcsr, fcw := uint32(0x1f80), uint16(0x37f)
	switch l.VMM {
	case EC2:
		if n == 0 {
			cs = 0x9a
		}
		ss, tr, rdx, mxcsr, fcw = 0x92, 0x83, 0x600, 0, 0
	case GCE:
		rdx, pat, mxcsr, fcw = 0x600, 0x00070106, 0, 0
	}
	segment(0x00, 0, 0x93, 0) // ES
	segment(0x10, 0xf000, cs, eip&0xffff0000)
	segment(0x20, 0, ss, 0)
	segment(0x30, 0, 0x93, 0) // DS
	segment(0x40, 0, 0x93, 0) // FS
	segment(0x50, 0, 0x93, 0) // GS
	segment(0x60, 0, 0, 0)    // GDTR
	segment(0x70, 0, 0x82, 0) // LDTR
	segment(0x80, 0, 0, 0)    // IDTR
	segment(0x90, 0, tr, 0)
	le.PutUint64(page[0xd0:], 0x1000)      // EFER: KVM sets SVME
	le.PutUint64(page[0x148:], 0x40)       // CR4: KVM sets MCE
	le.PutUint64(page[0x158:], 0x10)       // CR0
	le.PutUint64(page[0x160:], 0x400)      // DR7
	le.PutUint64(page[0x168:], 0xffff0ff0) // DR6
	le.PutUint64(page[0x170:], 0x2)        // RFLAGS
	le.PutUint64(page[0x178:], uint64(eip&0xffff))
	le.PutUint64(page[0x268:], pat)
	le.PutUint64(page[0x310:], rdx)
	le.PutUint64(page[0x3b0:], l.Features)
	le.PutUint64(page[0x3e8:], 0x1) // XCR0
	le.PutUint32(page[0x408:], mxcsr)
	le.PutUint16(page[0x410:], fcw)
	return page
}

// A cpu is family, model and stepping of one of QEMU's CPU models.
type cpu struct{ family, model, stepping uint32 }

// cpus are QEMU's models that SNP guests can have, without the version that may stand behind (-v4). All versions of a
// model have one signature.
var cpus = map[string]cpu{
	"EPYC":       {23, 1, 2},
	"EPYC-IBPB":  {23, 1, 2},
	"EPYC-Rome":  {23, 49, 0},
	"EPYC-Milan": {25, 1, 1},
	"EPYC-Genoa": {25, 17, 0},
	"EPYC-Turin": {26, 0, 0},
}

// CPUSignature is CPUID 1 EAX of a CPU model of QEMU, as EPYC-Milan or EPYC-v4, or of three numbers family/model/stepping.
func CPUSignature(name string) (uint32, error) {
	model := name
	if at := strings.LastIndex(name, "-v"); at > 0 {
		if _, err := strconv.ParseUint(name[at+2:], 10, 8); err == nil {
			model = name[:at]
		}
	}
	c, ok := cpus[model]
	if !ok {
		parts := strings.Split(name, "/")
		var n [3]uint64
		for i := 0; i < 3 && len(parts) == 3; i++ {
			var err error
			if n[i], err = strconv.ParseUint(parts[i], 10, 8); err != nil {
				parts = nil
			}
		}
		if len(parts) != 3 || n[2] > 15 {
			return 0, fmt.Errorf("CPU model %.40q: want one of %s, or FAMILY/MODEL/STEPPING in decimal",
				name, strings.Join(slices.Sorted(maps.Keys(cpus)), ", "))
		}
		c = cpu{uint32(n[0]), uint32(n[1]), uint32(n[2])}
	}
	return c.signature(), nil
}

// signature is that of AMD's CPUID specification, #25481, Fn0000_0001_EAX.
func (c cpu) signature() uint32 {
	low, high := c.family, uint32(0)
	if c.family > 0xf {
		low, high = 0xf, c.family-0xf
	}
	return high<<20 | c.model>>4<<16 | low<<8 | c.model&0xf<<4 | c.stepping
}
