// Package uki makes a unified kernel image: one PE file that holds systemd's EFI stub, a kernel, its initramfs and its
// command line, so that what firmware measures or checks a signature of is all of it.
//
// The layout is that of ukify of systemd 257, to the byte. The formats are the UAPI Group's "Unified Kernel Image" and
// Microsoft's "PE Format".
package uki

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the digests that firmware takes of an image
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// A Section is a named part of an image. A name has at most eight bytes.
type Section struct {
	Name string
	Data []byte
}

// Names of the sections that systemd-stub reads.
const (
	OSRelease = ".osrel"
	Uname     = ".uname"
	Cmdline   = ".cmdline"
	Initrd    = ".initrd"
	Linux     = ".linux"
)

// Offsets of the PE32+ format, from the beginning of the COFF header or of the optional header.
const (
	coffSections        = 2
	coffOptionalSize    = 16
	coffSize            = 20
	optInitializedData  = 8
	optSectionAlignment = 32
	optFileAlignment    = 36
	optImageSize        = 56
	optHeadersSize      = 60
	optChecksum         = 64
	optDLLFlags         = 70
	optDirectories      = 108
	optSecurity         = 112 + 4*8 // of the fifth directory: file offset and size of the signatures
	sectionSize         = 40

	flagNX      = 0x0100
	memRead     = 0x40000000
	code        = 0x20
	initialized = 0x40
)

// An image is a PE file, and where its headers are.
type image struct {
	b         []byte
	coff, opt int
	sections  int // offset of the section table
	n         int
}

var le = binary.LittleEndian

// parse finds the headers. Every offset that a caller uses later is inside b.
func parse(b []byte) (image, error) {
	if len(b) < 64 || b[0] != 'M' || b[1] != 'Z' {
		return image{}, errors.New("not a PE file: no MZ at its beginning")
	}
	at := int64(le.Uint32(b[60:]))
	if at+4+coffSize > int64(len(b)) || !bytes.Equal(b[at:at+4], []byte("PE\x00\x00")) {
		return image{}, fmt.Errorf("not a PE file: no PE header at byte %d", at)
	}
	p := image{b: b, coff: int(at) + 4}
	p.opt = p.coff + coffSize
	size := int(le.Uint16(b[p.coff+coffOptionalSize:]))
	p.sections, p.n = p.opt+size, int(le.Uint16(b[p.coff+coffSections:]))
	switch {
	case p.sections+p.n*sectionSize > len(b):
		return image{}, fmt.Errorf("PE file of %d bytes: its %d section headers reach behind its end", len(b), p.n)
	case size < optSecurity+8 || le.Uint16(b[p.opt:]) != 0x20b || le.Uint32(b[p.opt+optDirectories:]) < 5:
		return image{}, errors.New("PE file: not of 64 bits (PE32+) with a certificate directory")
	}
	return p, nil
}

func (p image) uint32(at int) uint32 { return le.Uint32(p.b[p.opt+at:]) }
func (p image) put(at int, v uint32) { le.PutUint32(p.b[p.opt+at:], v) }

func (p image) header(i int) []byte { return p.b[p.sections+i*sectionSize:][:sectionSize] }

// extents of a section: where it is loaded, and where it is in the file.
func (p image) extents(i int) (name string, address, size, offset, raw uint32) {
	h := p.header(i)
	return string(bytes.TrimRight(h[:8], "\x00")), le.Uint32(h[12:]), le.Uint32(h[8:]), le.Uint32(h[20:]), le.Uint32(h[16:])
}

// signature is the range of the certificate table; 0, 0 for none.
func (p image) signature() (offset, size int, err error) {
	o, s := int64(p.uint32(optSecurity)), int64(p.uint32(optSecurity+4))
	if s == 0 {
		return 0, 0, nil
	}
	if o < int64(p.sections) || o+s != int64(len(p.b)) {
		return 0, 0, fmt.Errorf("PE file of %d bytes: its signature, %d bytes at %d, is not its end", len(p.b), s, o)
	}
	return int(o), int(s), nil
}

// Build appends sections to a stub, in the order given, and returns the image. The stub is unsigned, has none of the
// sections yet and has room for their headers.
func Build(stub []byte, sections []Section) ([]byte, error) {
	p, err := parse(bytes.Clone(stub))
	if err != nil {
		return nil, fmt.Errorf("EFI stub: %w", err)
	}
	if p.uint32(optSecurity+4) != 0 {
		return nil, errors.New("EFI stub: it is signed, which holds for nothing that is built from it")
	}
	fileAlign, align := p.uint32(optFileAlignment), p.uint32(optSectionAlignment)
	if !power(fileAlign) || !power(align) || p.n == 0 {
		return nil, fmt.Errorf("EFI stub: %d sections aligned to %d bytes, %d in the file", p.n, align, fileAlign)
	}
	if end := p.sections + (p.n+len(sections))*sectionSize; uint64(end) > uint64(p.uint32(optHeadersSize)) || end > len(p.b) {
		return nil, fmt.Errorf("EFI stub: its headers have %d bytes, and %d sections more would take %d", p.uint32(optHeadersSize), len(sections), end)
	}
	_, address, size, _, _ := p.extents(p.n - 1)
	next := up(address+size, align)
	for _, s := range sections {
		if len(s.Name) > 8 || len(s.Data) == 0 || uint64(next)+uint64(len(s.Data)) > 1<<31 {
			return nil, fmt.Errorf("section %q of %d bytes: no PE file can hold that", s.Name, len(s.Data))
		}
		if have, err := Find(p.b, s.Name); have != nil || err != nil {
			return nil, errors.Join(fmt.Errorf("section %s cannot be added, or is there already", s.Name), err)
		}
		p.b = pad(p.b, int(fileAlign))
		h := p.header(p.n)
		clear(h)
		copy(h, s.Name)
		le.PutUint32(h[8:], uint32(len(s.Data)))
		le.PutUint32(h[12:], next)
		le.PutUint32(h[16:], up(uint32(len(s.Data)), fileAlign))
		le.PutUint32(h[20:], uint32(len(p.b)))
		flags := uint32(memRead | initialized)
		if s.Name == Linux {
			flags = memRead | code
			p.agreeOnNX(s.Data)
		}
		le.PutUint32(h[36:], flags)
		p.b = pad(append(p.b, s.Data...), int(fileAlign))
		p.put(optInitializedData, p.uint32(optInitializedData)+uint32(len(s.Data)))
		p.n++
		le.PutUint16(p.b[p.coff+coffSections:], uint16(p.n))
		p.put(optImageSize, up(next+uint32(len(s.Data)), align))
		next = up(next+uint32(len(s.Data)), align)
	}
	p.put(optChecksum, 0)
	return p.b, nil
}

// agreeOnNX takes the stub's word that no page is both written and run, where the kernel does not give it: firmware
// that enforces it would refuse the kernel.
func (p image) agreeOnNX(kernel []byte) {
	flags := p.b[p.opt+optDLLFlags:]
	if k, err := parse(kernel); err == nil && le.Uint16(k.b[k.opt+optDLLFlags:])&flagNX == 0 {
		le.PutUint16(flags, le.Uint16(flags)&^flagNX)
	}
}

// Sections lists the sections of a PE file in the order of their headers, each with the bytes that are loaded from the
// file, which are those of b.
func Sections(b []byte) ([]Section, error) {
	p, err := parse(b)
	if err != nil {
		return nil, err
	}
	var all []Section
	for i := range p.n {
		name, _, size, offset, raw := p.extents(i)
		n := min(size, raw)
		if uint64(offset)+uint64(n) > uint64(len(b)) {
			return nil, fmt.Errorf("section %s: %d bytes at %d reach behind the end of the file", name, n, offset)
		}
		all = append(all, Section{name, b[offset:][:n]})
	}
	return all, nil
}

// Find returns the content of the first section of that name, and nil if there is none.
func Find(b []byte, name string) ([]byte, error) {
	all, err := Sections(b)
	for _, s := range all {
		if s.Name == name {
			return s.Data, nil
		}
	}
	return nil, err
}

// Digest is the Authenticode digest: what firmware measures into PCR 4 and RTMR1, and what a signature is of. It covers
// all but the checksum and the signature, so that it is the same before and after signing.
func Digest(b []byte, hash crypto.Hash) ([]byte, error) {
	p, err := parse(b)
	if err != nil {
		return nil, err
	}
	end := len(b)
	if offset, size, err := p.signature(); err != nil {
		return nil, err
	} else if size > 0 {
		end = offset
	}
	h := hash.New()
	h.Write(b[:p.opt+optChecksum])
	h.Write(b[p.opt+optChecksum+4 : p.opt+optSecurity])
	h.Write(b[p.opt+optSecurity+8 : end])
	h.Write(make([]byte, -end&7)) // signing pads to 8 bytes first
	return h.Sum(nil), nil
}

// Signature returns the certificate table of a signed image, and nil of one that is not signed.
func Signature(b []byte) ([]byte, error) {
	p, err := parse(b)
	if err != nil {
		return nil, err
	}
	offset, size, err := p.signature()
	if size == 0 || err != nil {
		return nil, err
	}
	return b[offset:], nil
}

// Attach returns the image with a signature of it, as Signature returns them from a signed copy. Whether it is one of
// these bytes is not looked at.
func Attach(b, signature []byte) ([]byte, error) {
	out := pad(bytes.Clone(b), 8)
	p, err := parse(out)
	if err != nil {
		return nil, err
	}
	if p.uint32(optSecurity+4) != 0 {
		return nil, errors.New("the image is signed already")
	}
	p.put(optSecurity, uint32(len(out)))
	p.put(optSecurity+4, uint32(len(signature)))
	out = append(out, signature...)
	p.b = out
	p.put(optChecksum, checksum(out, p.opt+optChecksum))
	return out, nil
}

// checksum is that of the optional header, which no UEFI looks at but every signing tool sets: the sum of the 16-bit words
// with their carries, and the length.
func checksum(b []byte, skip int) uint32 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		if i == skip || i == skip+2 {
			continue
		}
		w := uint32(b[i])
		if i+1 < len(b) {
			w |= uint32(b[i+1]) << 8
		}
		sum += w
		sum = sum&0xffff + sum>>16
	}
	return sum + uint32(len(b))
}

func power(v uint32) bool         { return v != 0 && v&(v-1) == 0 }
func up(v, align uint32) uint32   { return (v + align - 1) &^ (align - 1) }
func pad(b []byte, to int) []byte { return append(b, make([]byte, -len(b)&(to-1))...) }
