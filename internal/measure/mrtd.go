package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A PageOrder is how a hypervisor adds and measures the firmware's pages: MRTD differs, and nothing in a quote tells which
// it was.
type PageOrder string

const (
	// EachPage adds a page, measures it, and goes on to the next: KVM's KVM_TDX_INIT_MEM_REGION, which upstream QEMU uses.
	EachPage PageOrder = "each-page"
	// EachSection adds all pages of a section and then measures them: QEMU and hosts from before TDX was in Linux (6.16).
	EachSection PageOrder = "each-section"
)

// MRTD is what the TDX module measures while a guest is built (Intel TDX Module Base Architecture §12.2, TDH.MEM.PAGE.ADD,
// TDH.MR.EXTEND). It is the firmware's alone: neither memory, vCPUs nor kernel are in it.
func MRTD(f *Firmware, order PageOrder) (evidence.Measurement, error) {
	if err := f.TDX(); err != nil {
		return evidence.Measurement{}, fmt.Errorf("MRTD: %w", err)
	}
	h := sha512.New384()
	for _, s := range f.tdvf {
		pages := s.size / pageSize
		switch order {
		case EachPage:
			for p := range pages {
				s.add(h, p)
				s.extend(h, f.image, p)
			}
		case EachSection:
			for p := range pages {
				s.add(h, p)
			}
			for p := range pages {
				s.extend(h, f.image, p)
			}
		default:
			return evidence.Measurement{}, fmt.Errorf("MRTD: page order %q, want %s or %s", order, EachPage, EachSection)
		}
	}
	return evidence.Measurement(h.Sum(nil)), nil
}

func leaf(h hash.Hash, name string, gpa uint64) {
	var b [128]byte
	copy(b[:], name)
	binary.LittleEndian.PutUint64(b[16:], gpa)
	h.Write(b[:])
}

func (t tdvfSection) add(h hash.Hash, page uint64) {
	if t.attributes&tdvfPageAug == 0 {
		leaf(h, "MEM.PAGE.ADD", t.gpa+page*pageSize)
	}
}

func (t tdvfSection) extend(h hash.Hash, image []byte, page uint64) {
	if t.attributes&tdvfExtend == 0 {
		return
	}
	const chunk = 256
	for at := page * pageSize; at < (page+1)*pageSize; at += chunk {
		leaf(h, "MR.EXTEND", t.gpa+at)
		h.Write(image[uint64(t.offset)+at:][:chunk])
	}
}

// variables is the event of RTMR0 with which firmware measures the variables that its image brings, the configuration
// firmware volume. What else is in RTMR0 is not the image's.
func (f *Firmware) variables() (events []Event) {
	for _, s := range f.tdvf {
		if s.kind == tdvfCFV {
			events = append(events, Event{1, evFirmwareBlob, "CFV, the variables in the firmware's file", digestsOf(f.image[s.offset:][:s.rawSize])})
		}
	}
	return events
}
