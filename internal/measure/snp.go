package measure

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"

	"github.com/google/uuid"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A VMM is the hypervisor that sets up processors and pages: what it puts there is measured.
type VMM string

const (
	QEMU VMM = "qemu"
	EC2  VMM = "ec2"
	GCE  VMM = "gce"
)

// Bits of SEV_FEATURES that are measured (AMD APM Vol. 2, Table B-4).
const (
	FeatureSNP       = 1 << 0
	FeatureDebugSwap = 1 << 5 // Linux hosts from 6.2 to 6.10 had it on
)

// An SNPLaunch is what an SNP launch digest, or one of SEV-ES or SEV, is computed from.
type SNPLaunch struct {
	Firmware *Firmware
	// Kernel, Initrd and Cmdline are what QEMU gets as -kernel, -initrd and -append with kernel-hashes=on. Without Kernel
	// the digest is of the firmware alone.
	Kernel, Initrd []byte
	Cmdline        string
	VCPUs          int
	VMM            VMM
	Signature      uint32 // CPUID 1 EAX of the CPU model, see CPUSignature; QEMU's processors alone show it
	Features       uint64 // SEV_FEATURES; FeatureSNP on hosts of Linux 6.11 and later
}

func (l SNPLaunch) check() error {
	switch {
	case l.VCPUs < 1 || l.VCPUs > 512:
		return fmt.Errorf("%d vCPUs, want 1 to 512", l.VCPUs)
	case l.VMM != QEMU && l.VMM != EC2 && l.VMM != GCE:
		return fmt.Errorf("VMM %q, want %s, %s or %s", l.VMM, QEMU, EC2, GCE)
	case l.VMM == QEMU && l.Signature == 0:
		return errors.New("the CPU model is missing: QEMU's processors start with its signature in a register that is measured")
	case l.Kernel == nil && (l.Initrd != nil || l.Cmdline != ""):
		return errors.New("an initrd or a command line without a kernel: nothing would measure them")
	case l.Kernel != nil && l.VMM != QEMU:
		return fmt.Errorf("a kernel for VMM %s: only QEMU boots one directly; what a cloud starts from a disk is measured by a TPM", l.VMM)
	case l.VCPUs > 1 && l.Firmware.resetEIP == 0:
		return fmt.Errorf("%d vCPUs: the firmware does not say where the others start (no SEV-ES reset block)", l.VCPUs)
	}
	return nil
}

// noHashes is why a firmware's digest would not cover a kernel.
func noHashes(f *Firmware) error {
	what := "no section for kernel hashes (SNP_KERNEL_HASHES)"
	if f.hashTable == 0 || f.hashSize < hashTableSize {
		what = "no table for kernel hashes (its base and size are 0)"
	}
	return fmt.Errorf("the firmware has %s, so that no kernel, initrd or command line that QEMU loads is measured or checked: "+
		"any other would have the same launch digest. Use OVMF built for AmdSev (Debian: ovmf-amdsev), a recent plain one, or boot a UKI with a TPM", what)
}

// SNP is the launch digest of an SNP guest, the MEASUREMENT of its reports (AMD SEV-SNP ABI §8.17.2). It refuses where a
// guest with that digest could run another kernel than l's.
func SNP(l SNPLaunch) (evidence.Measurement, error) {
	if err := l.check(); err != nil {
		return evidence.Measurement{}, fmt.Errorf("SNP: %w", err)
	}
	if !l.Firmware.SNP() {
		return evidence.Measurement{}, errors.New("SNP: the firmware has no SEV metadata: it cannot start an SNP guest")
	}
	if l.Kernel != nil && !l.Firmware.KernelHashes() {
		return evidence.Measurement{}, fmt.Errorf("SNP: %w", noHashes(l.Firmware))
	}
	var d snpDigest
	d.pages(l.Firmware.gpa(), l.Firmware.image)
	return d.launch(l)
}

// launch continues behind the pages of the firmware.
func (d *snpDigest) launch(l SNPLaunch) (evidence.Measurement, error) {
	if err := d.metadata(l); err != nil {
		return evidence.Measurement{}, fmt.Errorf("SNP: %w", err)
	}
	for i := range l.VCPUs {
		page := vmsa(l, i)
		d.update(snpVMSA, vmsaGPA, sha512.Sum384(page[:]))
	}
	return evidence.Measurement(d.ld), nil
}

// Page types of SNP_LAUNCH_UPDATE (AMD SEV-SNP ABI, Table 68).
const (
	snpNormal     = 1
	snpVMSA       = 2
	snpZero       = 3
	snpUnmeasured = 4
	snpSecrets    = 5
	snpCPUID      = 6
)

// vmsaGPA is where KVM says a VMSA lies: -1, cut to page and 48 bits.
const vmsaGPA = 0xFFFFFFFFF000

// A snpDigest grows by one PAGE_INFO a page (AMD SEV-SNP ABI, Table 67).
type snpDigest struct{ ld [48]byte }

func (d *snpDigest) update(kind byte, gpa uint64, contents [48]byte) {
	info := make([]byte, 0, 0x70)
	info = append(info, d.ld[:]...)
	info = append(info, contents[:]...)
	info = binary.LittleEndian.AppendUint16(info, 0x70)
	info = append(info, kind, 0, 0, 0, 0, 0) // not an initial migration image; no permissions for other VMPLs
	info = binary.LittleEndian.AppendUint64(info, gpa)
	d.ld = sha512.Sum384(info)
}

func (d *snpDigest) pages(gpa uint64, data []byte) {
	for at := 0; at < len(data); at += pageSize {
		d.update(snpNormal, gpa+uint64(at), sha512.Sum384(data[at:at+pageSize]))
	}
}

func (d *snpDigest) blank(kind byte, gpa, size uint32) {
	for at := uint32(0); at < size; at += pageSize {
		d.update(kind, uint64(gpa)+uint64(at), [48]byte{})
	}
}

func (d *snpDigest) metadata(l SNPLaunch) error {
	for i, s := range l.Firmware.sev {
		switch s.kind {
		case sevSecMem:
			kind := byte(snpZero)
			if l.VMM == GCE {
				kind = snpUnmeasured
			}
			d.blank(kind, s.gpa, s.size)
		case sevSecrets:
			d.blank(snpSecrets, s.gpa, pageSize)
		case sevCPUID:
			if l.VMM != EC2 { // which has it last
				d.blank(snpCPUID, s.gpa, pageSize)
			}
		case sevSVSMCAA:
			d.blank(snpZero, s.gpa, s.size)
		case sevKernelHashes:
			if err := d.hashes(l, s); err != nil {
				return err
			}
		default:
			return fmt.Errorf("the firmware's section %d is of type %#x, which this version does not know", i, s.kind)
		}
	}
	if l.VMM == EC2 {
		for _, s := range l.Firmware.sev {
			if s.kind == sevCPUID {
				d.blank(snpCPUID, s.gpa, pageSize)
			}
		}
	}
	return nil
}

func (d *snpDigest) hashes(l SNPLaunch, s sevSection) error {
	if l.Kernel == nil {
		d.blank(snpZero, s.gpa, s.size)
		return nil
	}
	table := kernelHashes(l)
	offset := int(l.Firmware.hashTable % pageSize)
	if s.size != pageSize || l.Firmware.hashTable-uint32(offset) != s.gpa || offset+len(table) > pageSize {
		return fmt.Errorf("the firmware's table for kernel hashes at %#x does not lie in its page for them, at %#x", l.Firmware.hashTable, s.gpa)
	}
	page := make([]byte, pageSize)
	copy(page[offset:], table)
	d.update(snpNormal, uint64(s.gpa), sha512.Sum384(page))
	return nil
}

// The table that QEMU makes of what it loads (QEMU target/i386/sev.c, sev_add_kernel_loader_hashes).
var (
	guidHashes  = uuid.MustParse("9438d606-4f22-4cc9-b479-a793d411fd21")
	guidCmdline = uuid.MustParse("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
	guidInitrd  = uuid.MustParse("44baf731-3a2f-4bd7-9af1-41e29169781d")
	guidKernel  = uuid.MustParse("4de79437-abd2-427f-b835-d5b172d2045b")
)

const (
	hashEntrySize = entryHeader + sha256.Size
	hashTableSize = (entryHeader + 3*hashEntrySize + 15) &^ 15
)

func kernelHashes(l SNPLaunch) []byte {
	t := make([]byte, 0, hashTableSize)
	entry := func(id uuid.UUID, size int) {
		t = append(t, putGUID(id)...)
		t = binary.LittleEndian.AppendUint16(t, uint16(size))
	}
	entry(guidHashes, entryHeader+3*hashEntrySize)
	for _, e := range []struct {
		id   uuid.UUID
		data []byte
	}{{guidCmdline, append([]byte(l.Cmdline), 0)}, {guidInitrd, l.Initrd}, {guidKernel, l.Kernel}} {
		entry(e.id, hashEntrySize)
		sum := sha256.Sum256(e.data)
		t = append(t, sum[:]...)
	}
	return t[:hashTableSize]
}

// A SEVMode is a launch before SNP.
type SEVMode string

const (
	PlainSEV SEVMode = "sev"
	SEVES    SEVMode = "seves"
)

// SEV is the launch digest of a SEV or SEV-ES guest: SHA-256 over the firmware, the table of kernel hashes, and for
// SEV-ES the processors' first state (AMD SEV API §6.5.1, 6.5.4).
func SEV(mode SEVMode, l SNPLaunch) ([32]byte, error) {
	if mode != PlainSEV && mode != SEVES {
		return [32]byte{}, fmt.Errorf("mode %q, want %s or %s", mode, PlainSEV, SEVES)
	}
	if mode == PlainSEV {
		l.Signature = 1 // in no digest
		l.VCPUs = 1
	}
	if err := l.check(); err != nil {
		return [32]byte{}, fmt.Errorf("%s: %w", mode, err)
	}
	h := sha256.New()
	h.Write(l.Firmware.image)
	return sev(mode, h, l)
}

// sev continues behind the firmware.
func sev(mode SEVMode, h hash.Hash, l SNPLaunch) ([32]byte, error) {
	if l.Kernel != nil {
		if l.Firmware.hashTable == 0 || l.Firmware.hashSize < hashTableSize {
			return [32]byte{}, fmt.Errorf("%s: %w", mode, noHashes(l.Firmware))
		}
		h.Write(kernelHashes(l))
	}
	if mode == SEVES {
		l.Features = 0
		for i := range l.VCPUs {
			page := vmsa(l, i)
			h.Write(page[:])
		}
	}
	return [32]byte(h.Sum(nil)), nil
}
