package measure

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

const (
	maxPE          = 1 << 30
	maxPESections  = 96 // Microsoft's loader has this limit
	peSectionEntry = 40
)

// A peImage is a PE32+ image: where its parts are in the file.
type peImage struct {
	file                []byte
	checksum, directory int // offsets of the fields that a signature leaves out
	headers             int // SizeOfHeaders
	certs, certsSize    int // the signatures; 0: none
	sections            []peSection
}

// A peSection is one section: its bytes are file[offset:offset+rawSize], of which size are its content.
type peSection struct {
	name            string
	offset, rawSize int
	size            int // VirtualSize
}

// parsePE reads the headers of a PE32+ image (Microsoft PE Format), as EFI images are.
func parsePE(file []byte) (*peImage, error) {
	le := binary.LittleEndian
	if len(file) > maxPE || len(file) < 0x40 || string(file[:2]) != "MZ" {
		return nil, errors.New("no PE image: want MZ at its beginning, and at most 1 GiB")
	}
	at := int(le.Uint32(file[0x3c:]))
	if at < 0x40 || at > len(file)-24-112 || string(file[at:at+4]) != "PE\x00\x00" {
		return nil, errors.New("no PE image: its header is not there")
	}
	n, optional := int(le.Uint16(file[at+6:])), int(le.Uint16(file[at+20:]))
	header := file[at+24:]
	if le.Uint16(header) != 0x20b || optional < 112 || n == 0 || n > maxPESections || at+24+optional+n*peSectionEntry > len(file) {
		return nil, fmt.Errorf("PE header: magic %#x, %d bytes, %d sections; want a PE32+ image", le.Uint16(header), optional, n)
	}
	p := &peImage{file: file, checksum: at + 24 + 64, headers: int(le.Uint32(header[60:]))}
	if le.Uint32(header[108:]) > 4 {
		if optional < 112+5*8 {
			return nil, fmt.Errorf("PE header: %d bytes have no room for its directories", optional)
		}
		p.directory = at + 24 + 112 + 4*8
		p.certs, p.certsSize = int(le.Uint32(file[p.directory:])), int(le.Uint32(file[p.directory+4:]))
		if p.certsSize != 0 && p.certs+p.certsSize != len(file) {
			return nil, fmt.Errorf("PE signatures: %d bytes at %d are not the end of %d", p.certsSize, p.certs, len(file))
		}
	}
	if p.headers < at+24+optional+n*peSectionEntry || p.headers > len(file)-p.certsSize {
		return nil, fmt.Errorf("PE header: %d bytes of headers", p.headers)
	}
	for i := range n {
		b := file[at+24+optional+i*peSectionEntry:]
		s := peSection{name: string(bytes.TrimRight(b[:8], "\x00")), size: int(le.Uint32(b[8:])), rawSize: int(le.Uint32(b[16:])), offset: int(le.Uint32(b[20:]))}
		if s.rawSize == 0 {
			s.offset = 0 // whatever it says: nothing is there
		}
		if s.offset+s.rawSize > len(file)-p.certsSize {
			return nil, fmt.Errorf("PE section %q: %d bytes at %d of a file of %d", s.name, s.rawSize, s.offset, len(file))
		}
		p.sections = append(p.sections, s)
	}
	return p, nil
}

// section gives the content of a section, without what fills its last block; ok is false where there is none of that name.
func (p *peImage) section(name string) (content []byte, ok bool) {
	for _, s := range p.sections {
		if s.name == name {
			return p.file[s.offset:][:min(s.size, s.rawSize)], true
		}
	}
	return nil, false
}

// Authenticode is the digest of a PE image as firmware measures it when it loads one, and as signatures sign it (Windows
// Authenticode Portable Executable Signature Format; edk2 SecurityPkg/Library/DxeTpm2MeasureBootLib): the file without
// its checksum, its signatures and the entry that says where they are.
func Authenticode(file []byte) (Digests, error) {
	p, err := parsePE(file)
	if err != nil {
		return Digests{}, err
	}
	h256, h384 := sha256.New(), sha512.New384()
	w := io.MultiWriter(h256, h384)
	w.Write(file[:p.checksum])
	if p.directory != 0 {
		w.Write(file[p.checksum+4 : p.directory])
		w.Write(file[p.directory+8 : p.headers])
	} else {
		w.Write(file[p.checksum+4 : p.headers])
	}
	sum := p.headers
	sections := slices.DeleteFunc(slices.Clone(p.sections), func(s peSection) bool { return s.rawSize == 0 })
	slices.SortStableFunc(sections, func(a, b peSection) int { return a.offset - b.offset })
	for _, s := range sections {
		w.Write(file[s.offset : s.offset+s.rawSize])
		sum += s.rawSize
	}
	if end := len(file) - p.certsSize; end > sum {
		w.Write(file[sum:end])
	}
	return Digests{Hash256(h256.Sum(nil)), evidence.Measurement(h384.Sum(nil))}, nil
}
