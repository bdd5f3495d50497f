package measure

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A stub is what a version of systemd-stub does with the sections of a UKI.
type stub struct {
	version    int
	sections   []string // those that PCR 11 has, in the order of measuring
	measuresCC bool     // also into the RTMRs of a TDX guest
	// extra are sections that become files of the initrd, in this order, each in an archive of its own.
	extra []extraFile
}

type extraFile struct{ section, name string }

// stubs are the versions whose measurements were compared with those of a TPM (test/measured_test.go). What others do
// between them has changed from one to the next, so that no other is predicted.
var stubs = map[int]stub{
	252: {
		sections: []string{".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey"},
		extra:    []extraFile{{".pcrsig", "tpm2-pcr-signature.json"}, {".pcrpkey", "tpm2-pcr-public-key.pem"}},
	},
	257: {
		measuresCC: true,
		sections:   []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"},
		extra: []extraFile{{".pcrsig", "tpm2-pcr-signature.json"}, {".pcrpkey", "tpm2-pcr-public-key.pem"},
			{".osrel", "os-release"}},
	},
}

// notPredicted are sections that choose among others by what the machine says, or load more.
var notPredicted = []string{".profile", ".dtbauto", ".hwids", ".efifw"}

// A UKI is a kernel with its initrd and command line in one PE image, which systemd-stub starts (UAPI.5).
type UKI struct {
	image []byte
	pe    *peImage
	stub  stub
}

// ParseUKI reads a UKI. One whose stub this version has no model of is an error.
func ParseUKI(image []byte) (*UKI, error) {
	u, err := parseUKI(image)
	if err != nil {
		return nil, fmt.Errorf("UKI: %w", err)
	}
	return u, nil
}

func parseUKI(image []byte) (*UKI, error) {
	pe, err := parsePE(image)
	if err != nil {
		return nil, err
	}
	magic, ok := pe.section(".sdmagic")
	version, ours := strings.CutPrefix(string(bytes.TrimRight(magic, "\x00")), "#### LoaderInfo: systemd-stub ")
	if !ok || !ours {
		return nil, errors.New("it has no section .sdmagic that names systemd-stub")
	}
	digits := version[:len(version)-len(strings.TrimLeft(version, "0123456789"))]
	n, _ := strconv.Atoi(digits)
	s, known := stubs[n]
	if !known {
		return nil, fmt.Errorf("it has systemd-stub %.40q, and what that measures has not been compared with a TPM; want version 252 or 257", version)
	}
	s.version = n
	u := &UKI{image, pe, s}
	for _, name := range []string{".linux", ".cmdline", ".initrd"} {
		if _, ok := pe.section(name); !ok {
			return nil, fmt.Errorf("it has no section %s: another would be taken from outside of the measured image", name)
		}
	}
	seen := map[string]bool{}
	for _, section := range pe.sections {
		switch {
		case seen[section.name]:
			return nil, fmt.Errorf("it has two sections %q", section.name)
		case slices.Contains(notPredicted, section.name):
			return nil, fmt.Errorf("it has a section %s, whose effect depends on the machine and is not predicted", section.name)
		case slices.Contains(s.sections, section.name) && section.size > section.rawSize:
			return nil, fmt.Errorf("section %s is %d bytes in memory and %d in the file", section.name, section.size, section.rawSize)
		}
		seen[section.name] = true
	}
	return u, nil
}

// Section gives the content of a section, nil where there is none.
func (u *UKI) Section(name string) []byte {
	content, ok := u.pe.section(name)
	if !ok {
		return nil
	}
	return content
}

// Cmdline is the command line that the kernel gets, the whole of it.
func (u *UKI) Cmdline() string { return string(bytes.TrimRight(u.Section(".cmdline"), "\x00\n")) }

// Stub is the version of systemd-stub, as 257.
func (u *UKI) Stub() int { return u.stub.version }

// initrd is what the stub hands to the kernel: the section of that name and what it adds, each to a multiple of four bytes
// where there is more than one.
func (u *UKI) initrd() []byte {
	parts := [][]byte{u.Section(".initrd")}
	if ucode := u.Section(".ucode"); ucode != nil && u.stub.version >= 257 {
		parts = slices.Insert(parts, 0, ucode)
	}
	for _, e := range u.stub.extra {
		if content := u.Section(e.section); content != nil {
			parts = append(parts, extraArchive(e.name, content))
		}
	}
	if len(parts) == 1 {
		return parts[0]
	}
	var out []byte
	for _, p := range parts {
		out = pad4(append(out, p...))
	}
	return out
}

func pad4(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// extraArchive is the cpio archive in which the stub puts one file of /.extra (newc, see Linux
// Documentation/driver-api/early-userspace/buffer-format.rst).
func extraArchive(name string, content []byte) []byte {
	var out []byte
	entry := func(inode, mode, links int, name, digits string, content []byte) {
		out = append(out, "070701"...)
		for _, n := range []int{inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
			out = fmt.Appendf(out, digits, n)
		}
		out = pad4(append(append(out, name...), 0))
		out = pad4(append(out, content...))
	}
	entry(1, 0o40555, 1, ".extra", "%08x", nil)
	entry(2, 0o100444, 1, ".extra/"+name, "%08x", content)
	entry(0, 0, 1, "TRAILER!!!", "%08X", nil)
	return out
}
