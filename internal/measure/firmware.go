package measure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// GUIDs of the table at the end of an OVMF image (edk2 OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm), and of the tables
// that it leads to.
var (
	guidFooter      = uuid.MustParse("96b582de-1fb2-45f7-baea-a366c55a082d")
	guidHashTable   = uuid.MustParse("7255371f-3a3b-4b04-927b-1da6efa8d454")
	guidResetBlock  = uuid.MustParse("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
	guidSEVMetadata = uuid.MustParse("dc886566-984a-4798-a75e-5585a7bf67cc")
	guidTDXMetadata = uuid.MustParse("e47a6535-984a-4798-865e-4685a7bf8ec2")
)

const (
	pageSize    = 4096
	fourGiB     = 1 << 32
	maxFirmware = 64 << 20 // bytes; OVMF images have 2 to 4 MiB
	tableTail   = 32       // bytes behind the table
	entryHeader = 18       // u16 length and GUID, behind the data of an entry
	maxSections = 64
)

// Types of SEV metadata sections (edk2 OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	sevSecMem       = 1
	sevSecrets      = 2
	sevCPUID        = 3
	sevSVSMCAA      = 4
	sevKernelHashes = 0x10
)

// A sevSection is a range of guest memory that the hypervisor prepares for an SNP guest.
type sevSection struct{ gpa, size, kind uint32 }

// Types and attributes of TDVF sections (Intel TDX Virtual Firmware Design Guide §11).
const (
	tdvfBFV     = 0
	tdvfCFV     = 1
	tdvfHOB     = 2
	tdvfTempMem = 3

	tdvfExtend  = 1 << 0 // its content is measured
	tdvfPageAug = 1 << 1 // its pages come later, and are not measured
)

// A tdvfSection is a range of guest memory that the hypervisor prepares for a TDX guest.
type tdvfSection struct {
	offset, rawSize       uint32
	gpa, size             uint64
	kind, attributes, pos uint32
}

// A Firmware is an OVMF image that was parsed: what it says of how it is to be launched.
type Firmware struct {
	image []byte
	sev   []sevSection
	tdvf  []tdvfSection
	// resetEIP is where processors other than the first one start; 0: the image does not say.
	resetEIP uint32
	// hashTable is where the hashes of kernel, initrd and command line are put; hashSize is the room. Both 0: nowhere.
	hashTable, hashSize uint32
	noTDVF              error // why tdvf is empty although the image names it
}

// ParseFirmware reads an OVMF image: whole (OVMF.fd), or the code without its variables (OVMF_CODE.fd). One without the
// table at its end is an error: nothing could be said of it.
func ParseFirmware(image []byte) (*Firmware, error) {
	f, err := parseFirmware(image)
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	return f, nil
}

func parseFirmware(image []byte) (*Firmware, error) {
	if len(image) > maxFirmware || len(image) < pageSize || len(image)%pageSize != 0 {
		return nil, fmt.Errorf("%d bytes, want whole pages of %d bytes, at most %d", len(image), pageSize, maxFirmware)
	}
	table, err := footerTable(image)
	if err != nil {
		return nil, err
	}
	f := &Firmware{image: image}
	le := binary.LittleEndian
	if b := table[guidResetBlock]; len(b) >= 4 {
		f.resetEIP = le.Uint32(b)
	}
	if b := table[guidHashTable]; len(b) >= 8 {
		f.hashTable, f.hashSize = le.Uint32(b), le.Uint32(b[4:])
	}
	if b := table[guidSEVMetadata]; b != nil {
		if f.sev, err = sevMetadata(image, b); err != nil {
			return nil, fmt.Errorf("SEV metadata: %w", err)
		}
	}
	if b := table[guidTDXMetadata]; b != nil {
		if f.tdvf, err = tdxMetadata(image, b); err != nil {
			f.noTDVF = fmt.Errorf("TDX metadata: %w", err)
		}
	}
	return f, nil
}

// footerTable reads the entries of the table at the end, from the last to the first.
func footerTable(image []byte) (map[uuid.UUID][]byte, error) {
	end := len(image) - tableTail
	size, id, err := tableEntry(image[:end])
	if err != nil || id != guidFooter {
		return nil, errors.New("no table of GUIDs at its end: this is no OVMF image, or one from before 2021")
	}
	if size > end {
		return nil, errors.New("the table of GUIDs is larger than the image")
	}
	rest := image[end-size : end-entryHeader]
	table := map[uuid.UUID][]byte{}
	for len(rest) >= entryHeader {
		n, id, err := tableEntry(rest)
		if err != nil {
			return nil, err
		}
		if _, twice := table[id]; twice {
			return nil, fmt.Errorf("two entries for GUID %s", id)
		}
		table[id] = rest[len(rest)-n : len(rest)-entryHeader]
		rest = rest[:len(rest)-n]
	}
	return table, nil
}

func tableEntry(b []byte) (size int, id uuid.UUID, err error) {
	if len(b) < entryHeader {
		return 0, id, errors.New("the table of GUIDs ends in the middle")
	}
	tail := b[len(b)-entryHeader:]
	size, id = int(binary.LittleEndian.Uint16(tail)), guidLE(tail[2:])
	if size < entryHeader || size > len(b) {
		return 0, id, fmt.Errorf("entry of %d bytes in the table of GUIDs", size)
	}
	return size, id, nil
}

// guidLE reads a GUID as EFI stores it: its first three fields are little-endian.
func guidLE(b []byte) uuid.UUID {
	return uuid.UUID{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

// putGUID writes it so.
func putGUID(id uuid.UUID) []byte {
	swapped := guidLE(id[:])
	return swapped[:]
}

// behind gives the n bytes that an entry names by their distance from the image's end.
func behind(image, entry []byte, n int) (rest []byte, err error) {
	if len(entry) < 4 {
		return nil, fmt.Errorf("its place is %d bytes, want 4", len(entry))
	}
	distance := int64(binary.LittleEndian.Uint32(entry))
	if distance > int64(len(image)) || distance < int64(n) {
		return nil, fmt.Errorf("it is to be %d bytes before the end of an image of %d", distance, len(image))
	}
	return image[int64(len(image))-distance:], nil
}

func sevMetadata(image, entry []byte) ([]sevSection, error) {
	const header, item = 16, 12
	b, err := behind(image, entry, header)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	size, version, n := le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])
	switch {
	case !bytes.Equal(b[:4], []byte("ASEV")):
		return nil, fmt.Errorf("signature %q, want ASEV", b[:4])
	case version != 1:
		return nil, fmt.Errorf("version %d, want 1", version)
	case n > maxSections || uint64(size) < uint64(header+item*n) || uint64(size) > uint64(len(b)):
		return nil, fmt.Errorf("%d sections in %d bytes", n, size)
	}
	var out []sevSection
	for i := range n {
		s := b[header+item*i:]
		section := sevSection{le.Uint32(s), le.Uint32(s[4:]), le.Uint32(s[8:])}
		if section.gpa%pageSize != 0 || section.size%pageSize != 0 {
			return nil, fmt.Errorf("section %d: %d bytes at %#x, want whole pages", i, section.size, section.gpa)
		}
		out = append(out, section)
	}
	return out, nil
}

func tdxMetadata(image, entry []byte) ([]tdvfSection, error) {
	const header, item = 16, 32
	b, err := behind(image, entry, header)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	size, version, n := le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])
	switch {
	case !bytes.Equal(b[:4], []byte("TDVF")):
		return nil, fmt.Errorf("signature %q, want TDVF", b[:4])
	case version != 1:
		return nil, fmt.Errorf("version %d, want 1", version)
	case n == 0 || n > maxSections || uint64(size) != uint64(header+item*n) || uint64(size) > uint64(len(b)):
		return nil, fmt.Errorf("%d sections in %d bytes", n, size)
	}
	var out []tdvfSection
	for i := range n {
		s := b[header+item*i:]
		t := tdvfSection{
			offset: le.Uint32(s), rawSize: le.Uint32(s[4:]), gpa: le.Uint64(s[8:]), size: le.Uint64(s[16:]),
			kind: le.Uint32(s[24:]), attributes: le.Uint32(s[28:]), pos: i,
		}
		if err := t.check(len(image)); err != nil {
			return nil, fmt.Errorf("section %d: %w", i, err)
		}
		out = append(out, t)
	}
	return out, nil
}

func (t tdvfSection) check(image int) error {
	switch {
	case t.gpa%pageSize != 0 || t.size%pageSize != 0 || t.size == 0 || t.gpa >= fourGiB || t.size > fourGiB-t.gpa:
		return fmt.Errorf("%d bytes at %#x, want whole pages below 4 GiB", t.size, t.gpa)
	case uint64(t.offset)+uint64(t.rawSize) > uint64(image):
		return fmt.Errorf("bytes %d to %d of an image of %d: the metadata are those of another file, as in Debian's OVMF_CODE_4M.fd",
			t.offset, uint64(t.offset)+uint64(t.rawSize), image)
	case uint64(t.rawSize) > t.size:
		return fmt.Errorf("%d bytes of the image for %d of memory", t.rawSize, t.size)
	case t.attributes&tdvfExtend != 0 && uint64(t.rawSize) != t.size:
		return fmt.Errorf("measured, but %d bytes of the image for %d of memory", t.rawSize, t.size)
	}
	return nil
}

// gpa is where the image lies in guest memory: its end is at 4 GiB.
func (f *Firmware) gpa() uint64 { return fourGiB - uint64(len(f.image)) }

// has says whether there is an SEV section of a kind.
func (f *Firmware) has(kind uint32) bool {
	for _, s := range f.sev {
		if s.kind == kind {
			return true
		}
	}
	return false
}

// SNP says whether the image names what an SNP guest needs. TDX does so for TDX; the error is why not.
func (f *Firmware) SNP() bool { return len(f.sev) > 0 }

// KernelHashes says whether the image checks kernel, initrd and command line against hashes that the launch measures.
func (f *Firmware) KernelHashes() bool {
	return f.hashTable != 0 && f.hashSize >= hashTableSize && f.has(sevKernelHashes)
}

// TDX says why the image cannot start a TDX guest; nil: it can.
func (f *Firmware) TDX() error {
	switch {
	case f.noTDVF != nil:
		return f.noTDVF
	case len(f.tdvf) == 0:
		return errors.New("the firmware has no TDX metadata; Debian's package ovmf-inteltdx has firmware that has")
	}
	return nil
}
