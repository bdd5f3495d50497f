package measure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf16"

	"github.com/google/uuid"
	"github.com/ulikunitz/xz/lzma"
)

// A behaviour is what versions of OVMF do differently in a boot that is measured. It is read out of the firmware's code,
// because an image does not say reliably which version it is.
type behaviour struct {
	initrdFirst   bool // the kernel gets "initrd=initrd LINE"; else "LINE initrd=initrd"
	rawKernel     bool // it takes the kernel as in the file from a QEMU that offers it (10 and later)
	secureBootVar bool // SecureBoot is there and 0, rather than not there
	enrolled      bool // the image brings Secure Boot keys
}

var (
	guidLZMA       = uuid.MustParse("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
	guidSecureBoot = uuid.MustParse("f0e6a44f-7195-41c3-ac64-54f202cd0a21") // the module SecureBootConfigDxe
)

// behaviour looks for what tells. An image in which that is not to be found is an error.
func (f *Firmware) behaviour() (behaviour, error) {
	code, err := f.decompress()
	if err != nil {
		return behaviour{}, fmt.Errorf("firmware: %w", err)
	}
	before, behind := bytes.Contains(code, []byte("\x00initrd=initrd \x00")), bytes.Contains(code, []byte(" initrd=initrd\x00"))
	if before == behind {
		return behaviour{}, errors.New("firmware: its code does not tell how it hands a command line to the kernel: it is no OVMF that this version knows")
	}
	return behaviour{
		initrdFirst:   before,
		rawKernel:     bytes.Contains(code, []byte("etc/boot/\x00")),
		secureBootVar: bytes.Contains(code, putGUID(guidSecureBoot)),
		enrolled:      bytes.Contains(f.image, utf16LE("KEK\x00")),
	}, nil
}

// decompress gives the volume of drivers, which is a section in LZMA (UEFI PI 1.8, volume 3, EFI_SECTION_GUID_DEFINED).
func (f *Firmware) decompress() ([]byte, error) {
	id := putGUID(guidLZMA)
	for at := 0; at < len(f.image); {
		n := bytes.Index(f.image[at:], id)
		if n < 0 {
			break
		}
		at += n + len(id) + 4 // behind the GUID are the offset of the data, which begin here, and attributes
		if len(f.image)-at < lzma.HeaderLen || binary.LittleEndian.Uint32(f.image[at+1:]) > maxFirmware {
			continue // the GUID stands elsewhere, too; the number is the size of a dictionary, which is allocated
		}
		r, err := lzma.NewReader(bytes.NewReader(f.image[at:]))
		if err != nil {
			continue
		}
		out, err := io.ReadAll(io.LimitReader(r, maxFirmware))
		if err == nil && len(out) > 0 {
			return out, nil
		}
	}
	return nil, errors.New("it has no compressed volume of drivers")
}

// utf16LE is text as EFI has it, without a zero at its end.
func utf16LE(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}
