package doctor

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// Kernel looks at a kernel: its configuration as a text (.config, /boot/config-…), or a bzImage, which may bring its own
// (CONFIG_IKCONFIG) and says its version.
func Kernel(r *Report, file []byte) {
	config := file
	if version, ok := bzImageVersion(file); ok {
		checkVersion(r, version)
		var err error
		if config, err = embeddedConfig(file); err != nil {
			r.add("kernel", "configuration", Unknown, "name its .config: ampoule doctor --kernel /boot/config-…", "%v", err)
			r.risk("nothing is known of how this kernel was configured")
			return
		}
	}
	checkRules(r, config)
}

var configLine = regexp.MustCompile(`(?m)^(CONFIG_[A-Za-z0-9_]+)=(.+)$`)

func checkRules(r *Report, config []byte) {
	have := map[string]string{}
	for _, m := range configLine.FindAllSubmatch(config, -1) {
		have[string(m[1])] = strings.TrimSpace(string(m[2]))
	}
	if len(have) < 100 {
		r.add("kernel", "configuration", Bad, "name a finished .config", "it has %d options: this is no kernel's configuration", len(have))
		return
	}
	held := 0
	rules := kernelconfig.Rules()
	for _, rule := range rules {
		got := have[rule.Option]
		switch {
		case got == rule.Value:
			held++
		case rule.Value == "":
			r.add("kernel", rule.Option, Bad, "turn it off", "is %s. %s", got, rule.Why)
		case got == "m":
			r.add("kernel", rule.Option, Bad, "build it in: /init loads no modules", "is a module. Without it: %s", rule.Why)
		case got == "":
			r.add("kernel", rule.Option, Bad, "set it to "+rule.Value, "is off. Without it: %s", rule.Why)
		default:
			r.add("kernel", rule.Option, Bad, "set it to "+rule.Value, "is %s. Without %s: %s", got, rule.Value, rule.Why)
		}
	}
	state := OK
	if held < len(rules) {
		state = Bad
	}
	r.add("kernel", "rules", state, "build ours: ampoule build --kernel", "%d of %d hold", held, len(rules))
	if have["CONFIG_ACPI_AML_SANDBOX"] != "y" {
		r.risk("the byte code in the host's ACPI tables can read and write all memory of a guest with this kernel (BadAML)")
	}
	if have["CONFIG_TSM_SIM"] == "y" {
		r.risk("this is a simulation kernel: its evidence comes from a simulated processor and proves nothing")
	}
}

// Where a bzImage has what (Linux Documentation/arch/x86/boot.rst).
const (
	bootMagic   = 0x202 // "HdrS"
	bootVersion = 0x20e // offset of the version string, less 0x200
	bootSectors = 0x1f1 // 512-byte sectors of the set-up code, less one
	bootPayload = 0x248 // offset and length of the compressed kernel, from the end of the set-up code
	maxKernel   = 512 << 20
)

func bzImageVersion(b []byte) (string, bool) {
	if len(b) < 0x260 || string(b[bootMagic:bootMagic+4]) != "HdrS" {
		return "", false
	}
	at := int(binary.LittleEndian.Uint16(b[bootVersion:])) + 0x200
	if at >= len(b) {
		return "", true
	}
	text, _, _ := bytes.Cut(b[at:min(len(b), at+256)], []byte{0})
	version, _, _ := strings.Cut(string(text), " ")
	return version, true
}

// The oldest kernel that has the mitigations of int 0x80 and #VC injection, fails without RDRAND, and has all TEE drivers of ours.
const oldestMajor, oldestMinor = 6, 12

func checkVersion(r *Report, version string) {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		r.add("kernel", "version", Unknown, "", "%.80q", version)
		return
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(strings.TrimRight(parts[1], "-abcdefghijklmnopqrstuvwxyz"))
	fix := fmt.Sprintf("use Linux %d.%d or later", oldestMajor, oldestMinor)
	switch {
	case errors.Join(err1, err2) != nil:
		r.add("kernel", "version", Unknown, "", "%.80q", version)
	case major < oldestMajor || major == oldestMajor && minor < oldestMinor:
		r.add("kernel", "version", Bad, fix, "%.80s: interrupts and exceptions of the host's may become system calls (CVE-2024-25742 to 25744)", version)
	default:
		r.add("kernel", "version", OK, "", "%.80s", version)
	}
}

// embeddedConfig finds the .config that a kernel built with CONFIG_IKCONFIG carries.
func embeddedConfig(b []byte) ([]byte, error) {
	start := (int64(b[bootSectors])+1)*512 + int64(binary.LittleEndian.Uint32(b[bootPayload:]))
	end := start + int64(binary.LittleEndian.Uint32(b[bootPayload+4:]))
	if start >= end || end > int64(len(b)) {
		return nil, errors.New("the kernel's payload lies outside the file")
	}
	packed := b[start:end]
	var vmlinux []byte
	var err error
	switch {
	case bytes.HasPrefix(packed, []byte{0x1f, 0x8b}):
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(packed)); err == nil {
			z.Multistream(false) // the size is behind it
			vmlinux, err = io.ReadAll(io.LimitReader(z, maxKernel))
		}
	case bytes.HasPrefix(packed, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var z *zstd.Decoder
		if z, err = zstd.NewReader(bytes.NewReader(packed[:len(packed)-4]), zstd.WithDecoderMaxWindow(maxKernel)); err == nil {
			defer z.Close()
			vmlinux, err = io.ReadAll(io.LimitReader(z, maxKernel))
		}
	default:
		return nil, fmt.Errorf("the kernel is compressed with neither gzip nor zstd (it begins % x)", packed[:min(6, len(packed))])
	}
	if err != nil {
		return nil, fmt.Errorf("decompress the kernel: %w", err)
	}
	_, after, ok := bytes.Cut(vmlinux, []byte("IKCFG_ST"))
	config, _, closed := bytes.Cut(after, []byte("IKCFG_ED"))
	if !ok || !closed {
		return nil, errors.New("the kernel does not carry its configuration (CONFIG_IKCONFIG)")
	}
	z, err := gzip.NewReader(bytes.NewReader(slices.Clone(config)))
	if err != nil {
		return nil, fmt.Errorf("the kernel's configuration: %w", err)
	}
	z.Multistream(false)
	return io.ReadAll(io.LimitReader(z, 16<<20))
}
