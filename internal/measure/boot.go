package measure

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// Files are what an image is made of. A direct boot has Kernel, Initrd and Cmdline, a UKI the one file.
type Files struct {
	Kernel, Initrd []byte // as in the file
	Cmdline        string // what the launcher passes, before firmware adds to it
	UKI            []byte
	// Disk is the beginning of the disk that the UKI is on, at least its GPT, which is in RTMR1; nil: a disk without one.
	Disk []byte
	// InitData is the SHA-256 digest of the initdata document that binds a manifest (ampoule manifest digest); nil: none.
	InitData *[32]byte
}

func efiVariable(pcr int, vendor uuid.UUID, name string, value []byte) Event {
	data := append([]byte{}, putGUID(vendor)...)
	data = binary.LittleEndian.AppendUint64(data, uint64(len(name)))
	data = binary.LittleEndian.AppendUint64(data, uint64(len(value)))
	data = append(append(data, utf16LE(name)...), value...)
	return Event{pcr, evEFIVariable, "variable " + name, digestsOf(data)}
}

// Vendors of variables (UEFI 2.10 §3.3, §32.6.1).
var (
	globalVariable = uuid.MustParse("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	imageSecurity  = uuid.MustParse("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
)

var (
	callingApplication = Event{4, evEFIAction, "Calling EFI Application from Boot Option", digestsOf([]byte("Calling EFI Application from Boot Option"))}
	exitBootServices   = Event{5, evEFIAction, "Exit Boot Services Invocation", digestsOf([]byte("Exit Boot Services Invocation"))}
	exitSucceeded      = Event{5, evEFIAction, "Exit Boot Services Returned with Success", digestsOf([]byte("Exit Boot Services Returned with Success"))}
	exitFailed         = Event{5, evEFIAction, "Exit Boot Services Returned with Failure", digestsOf([]byte("Exit Boot Services Returned with Failure"))}
)

func separator(pcr int) Event {
	return Event{pcr, evSeparator, "separator", digestsOf(make([]byte, 4))}
}

// secureBoot are the events of PCR 7 where Secure Boot is off and no key is enrolled.
func (b behaviour) secureBoot() ([]Event, error) {
	if b.enrolled {
		return nil, errors.New("the firmware brings Secure Boot keys, and what they sign and forbid is not predicted")
	}
	var off []byte
	if b.secureBootVar {
		off = []byte{0}
	}
	return []Event{
		efiVariable(7, globalVariable, "SecureBoot", off), efiVariable(7, globalVariable, "PK", nil), efiVariable(7, globalVariable, "KEK", nil),
		efiVariable(7, imageSecurity, "db", nil), efiVariable(7, imageSecurity, "dbx", nil), separator(7),
	}, nil
}

// loadOptions and initrd are what Linux's EFI stub measures (drivers/firmware/efi/libstub/efi-stub-helper.c): the
// command line in UTF-16 with its zero, and all of the initrd.
func loadOptions(line string) Event {
	return Event{9, evEventTag, "LOADED_IMAGE::LoadOptions", digestsOf(utf16LE(line + "\x00"))}
}

func initrdEvent(initrd []byte) Event { return Event{9, evEventTag, "Linux initrd", digestsOf(initrd)} }

// direct are the events of PCRs 4 and 9 of a kernel that firmware gets from QEMU.
func direct(b behaviour, f Files, header kernelHeader) ([]Event, error) {
	if err := ascii(f.Cmdline); err != nil {
		return nil, err
	}
	kernel := f.Kernel
	if !b.rawKernel || !header.raw {
		var err error
		if kernel, err = header.patch(kernel, len(f.Initrd)); err != nil {
			return nil, err
		}
	}
	digests, err := Authenticode(kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	line := f.Cmdline
	switch {
	case f.Initrd == nil:
	case b.initrdFirst:
		line = "initrd=initrd " + line
	default:
		line += " initrd=initrd"
	}
	events := []Event{{4, evEFIBoot, "kernel", digests}, callingApplication, separator(4), loadOptions(line)}
	if f.Initrd != nil {
		events = append(events, initrdEvent(f.Initrd))
	}
	return events, nil
}

// ascii refuses a command line that firmware and kernel would convert each in its way.
func ascii(line string) error {
	for _, r := range line {
		if r < ' ' || r > '~' {
			return fmt.Errorf("command line %q: only printable ASCII is predicted", line)
		}
	}
	return nil
}

// events are those of PCRs 4, 5, 9 and 11 of a UKI that firmware starts as the removable medium's \EFI\BOOT\BOOTX64.EFI. Any
// firmware measures it so, because the standard says how.
func (u *UKI) events(disk []byte) ([]Event, error) {
	if err := ascii(u.Cmdline()); err != nil {
		return nil, err
	}
	events := []Event{callingApplication, separator(4)}
	if disk != nil {
		gpt, err := gptEvent(disk)
		if err != nil {
			return nil, err
		}
		events = append(events, gpt)
	}
	image, err := Authenticode(u.image)
	if err != nil {
		return nil, err
	}
	events = append(events, Event{4, evEFIBoot, "UKI", image})
	for _, name := range u.stub.sections {
		if content := u.Section(name); content != nil {
			events = append(events, Event{11, evIPL, "name of section " + name, digestsOf([]byte(name + "\x00"))},
				Event{11, evIPL, "section " + name, digestsOf(content)})
		}
	}
	kernel, err := Authenticode(u.Section(".linux"))
	if err != nil {
		return nil, fmt.Errorf("section .linux: %w", err)
	}
	return append(events, Event{4, evEFIBoot, "section .linux", kernel}, loadOptions(u.Cmdline()), initrdEvent(u.initrd())), nil
}

// gptEvent is EFI_GPT_DATA of a disk's beginning: the header, the number of partitions that are used, and their entries
// (TCG PC Client Platform Firmware Profile §10.4.2.1).
func gptEvent(disk []byte) (Event, error) {
	const sector, header = 512, 92
	le := binary.LittleEndian
	if len(disk) < 2*sector || string(disk[sector:sector+8]) != "EFI PART" {
		return Event{}, errors.New("disk: no GPT of sectors of 512 bytes at its beginning")
	}
	h := disk[sector : sector+header]
	at, n, size := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if size != 128 || n > 1024 || at > 1<<20 || uint64(len(disk)) < at*sector+uint64(n)*uint64(size) {
		return Event{}, fmt.Errorf("disk: GPT of %d entries of %d bytes at sector %d, in %d bytes", n, size, at, len(disk))
	}
	used, data := uint64(0), append([]byte{}, h...)
	var entries []byte
	for i := range uint64(n) {
		e := disk[at*sector+i*uint64(size):][:size]
		if [16]byte(e) != [16]byte{} {
			used++
			entries = append(entries, e...)
		}
	}
	data = append(le.AppendUint64(data, used), entries...)
	return Event{5, 0x80000006, "GPT", digestsOf(data)}, nil
}

// A kernelHeader is what QEMU writes into the header of a kernel that it loads (QEMU hw/i386/x86-common.c, x86_load_linux).
type kernelHeader struct {
	raw    bool // it also offers the kernel as in the file: QEMU 10 and later
	memory int  // MiB
}

// acpiData is the room that QEMU leaves for ACPI tables below the end of low memory, bytes.
const acpiData = 0x28000

func (h kernelHeader) patch(kernel []byte, initrd int) ([]byte, error) {
	le := binary.LittleEndian
	if len(kernel) < 0x1000 || string(kernel[0x202:0x206]) != "HdrS" {
		return nil, errors.New("kernel: no Linux boot header")
	}
	if p := le.Uint16(kernel[0x206:]); p < 0x20c || kernel[0x211]&1 == 0 {
		return nil, fmt.Errorf("kernel: boot protocol %#x, or not loaded high; want 0x20c or later", p)
	}
	if h.memory <= 0 {
		return nil, errors.New("the memory of the VM is missing: this QEMU or firmware measures where the initrd lies, which depends on it")
	}
	out := append([]byte{}, kernel...)
	out[0x210] = 0xb0                        // type_of_loader: QEMU
	out[0x211] |= 0x80                       // loadflags: CAN_USE_HEAP
	le.PutUint16(out[0x224:], 0x10000-0x200) // heap_end_ptr
	le.PutUint32(out[0x228:], 0x20000)       // cmd_line_ptr
	low := uint64(h.memory) << 20
	if low >= 0xb0000000 {
		low = 0x80000000
	}
	highest := uint64(le.Uint32(out[0x22c:])) // initrd_addr_max
	if le.Uint16(out[0x236:])&2 != 0 {        // XLF_CAN_BE_LOADED_ABOVE_4G
		highest = 0xffffffff
	}
	highest = min(highest, low-acpiData-1)
	if initrd > 0 {
		if uint64(initrd) >= highest {
			return nil, fmt.Errorf("initrd: %d bytes do not fit below %#x", initrd, highest)
		}
		le.PutUint32(out[0x218:], uint32((highest-uint64(initrd))&^4095)) // ramdisk_image
		le.PutUint32(out[0x21c:], uint32(initrd))
	}
	return out, nil
}
