package test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/debian"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

// A suiteFile is a file of a Debian package, of a version that begins so. A suite that has gone on to another has what was not
// looked at yet.
type suiteFile struct{ suite, pkg, version, name string }

var (
	ovmf2025 = suiteFile{"trixie", "ovmf", "2025.02", "usr/share/ovmf/OVMF.fd"}
	ovmf2026 = suiteFile{"sid", "ovmf", "2026.08", "usr/share/ovmf/OVMF.fd"}
	stub252  = suiteFile{"bookworm", "systemd-boot-efi", "252.", "usr/lib/systemd/boot/efi/linuxx64.efi.stub"}
	stub257  = suiteFile{"trixie", "systemd-boot-efi", "257.", "usr/lib/systemd/boot/efi/linuxx64.efi.stub"}
	qemu10   = suiteFile{"trixie", "qemu-system-x86", "1:10.", "usr/share/qemu/linuxboot_dma.bin"}
)

// fetch gives the path of the file, unpacked, and its package's root.
func (f suiteFile) fetch(t *testing.T) (path string, root *debian.Root) {
	t.Helper()
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), f.suite, []string{f.pkg}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if v := root.Version(f.pkg); !strings.HasPrefix(v, f.version) {
		t.Skipf("Debian %s has %s %s, and what was looked at is %s", f.suite, f.pkg, v, f.version)
	}
	if path, err = root.File(f.name); err != nil {
		t.Fatal(err)
	}
	return path, root
}

// A measuredBoot is one boot that a TPM watches.
type measuredBoot struct {
	name     string
	firmware suiteFile // none: Debian's installed one
	stub     suiteFile // of a UKI; none: a direct boot
	qemu     suiteFile // none: the installed one
}

var measuredImage builtImage

// TestMeasured boots OVMF with a software TPM, our kernel and an init that tells the registers. It holds every PCR that was
// predicted against the TPM's, in both banks, and every event of these PCRs against the log, in order.
func TestMeasured(t *testing.T) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("no swtpm here (Debian package swtpm)")
	}
	for _, b := range []measuredBoot{
		{name: "direct, OVMF 2022.11"},
		{name: "direct, OVMF of trixie", firmware: ovmf2025},
		{name: "direct, OVMF of sid", firmware: ovmf2026},
		{name: "direct, OVMF and QEMU of trixie", firmware: ovmf2025, qemu: qemu10},
		{name: "UKI, stub 252, OVMF 2022.11", stub: stub252},
		{name: "UKI, stub 257, OVMF of trixie", firmware: ovmf2025, stub: stub257},
		{name: "UKI, stub 257, OVMF of sid", firmware: ovmf2026, stub: stub257},
	} {
		t.Run(b.name, b.test)
	}
}

func (b measuredBoot) test(t *testing.T) {
	// Where an emulated timer comes late, on a busy machine, Linux takes it for broken and panics unless it is told not to look.
	dir, info := measuredImage.get(t, mkimage.Options{Profile: cmdline.Simulation, InitPackage: "./test/measured"})
	kernel, initrd := filepath.Join(dir, mkimage.KernelFile), filepath.Join(dir, mkimage.InitramfsFile)
	run, err := os.MkdirTemp(work, "tpm") // not t.TempDir: the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	firmware, program, data := ovmf, exec.CommandContext(t.Context(), qemu.DefaultBinary), ""
	if b.firmware != (suiteFile{}) {
		firmware, _ = b.firmware.fetch(t)
	}
	if b.qemu != (suiteFile{}) {
		path, root := b.qemu.fetch(t)
		program, data = root.Command(t.Context(), qemu.DefaultBinary), filepath.Dir(path)
	}
	shape := measure.Shape{Name: "test", TEE: measure.OnTPM, VMM: measure.OnQEMU, Memory: 512, Firmware: firmware, QEMU: major(t, program), Boot: measure.BootDirect}
	files := measure.Files{Kernel: content(t, kernel), Initrd: content(t, initrd), Cmdline: info.Cmdline}
	args := []string{"-kernel", kernel, "-initrd", initrd, "-append", info.Cmdline}
	if b.stub != (suiteFile{}) {
		esp, stub := filepath.Join(run, "esp"), ""
		stub, _ = b.stub.fetch(t)
		uki := makeUKI(t, esp, stub, kernel, initrd, info.Cmdline)
		shape.Boot, files = measure.BootUKI, measure.Files{UKI: content(t, uki)}
		// QEMU makes a disk of the folder, with an MBR and so with no GPT that were measured.
		args = []string{"-drive", "if=none,id=esp,format=raw,file=fat:rw:" + esp, "-device", "virtio-blk-pci,drive=esp"}
	}
	p, err := measure.Predict(shape, files, content(t, firmware))
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range p.Unpredicted {
		t.Errorf("%s is not predicted: %s", name, why)
	}
	if data != "" {
		args = append(args, "-L", data)
	}
	console := bootMeasured(t, run, program, append(args, "-bios", firmware))
	compareMeasured(t, p, console)
}

// bootMeasured boots a VM with a software TPM and returns what its console said.
func bootMeasured(t *testing.T, run string, program *exec.Cmd, args []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), vmLimit)
	defer cancel()
	socket, console := filepath.Join(run, "s"), filepath.Join(run, "console")
	tpm := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+run, "--ctrl", "type=unixio,path="+socket, "--flags", "startup-clear", "--terminate")
	if err := tpm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); tpm.Wait() }()
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("swtpm does not listen")
		}
	}
	// Of the two interfaces Linux waits for this one in seconds, which a busy emulator needs; for tpm-crb it is 200 ms.
	args = append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-m", "512", "-accel", "tcg", "-cpu", "max",
		"-chardev", "file,id=console,path=" + console, "-serial", "chardev:console",
		"-chardev", "socket,id=tpm,path=" + socket, "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0"}, args...)
	vm := exec.CommandContext(ctx, program.Path, append(program.Args[1:len(program.Args):len(program.Args)], args...)...)
	t.Logf("to reproduce, with a swtpm that listens:\n%s", qemu.ShellCommand(vm.Path, vm.Args[1:]))
	if out, err := vm.CombinedOutput(); err != nil {
		t.Fatalf("QEMU: %v\n%s", err, out)
	}
	return string(content(t, console))
}

var measuredPCR = regexp.MustCompile(`(?m)pcr (sha256|sha384) (\d+) ([0-9a-f]+)\r?$`)

func compareMeasured(t *testing.T, p *measure.Prediction, console string) {
	t.Helper()
	banks := map[string]string{}
	for _, m := range measuredPCR.FindAllStringSubmatch(console, -1) {
		banks[m[1]+" "+m[2]] = m[3]
	}
	if len(banks) != 48 {
		t.Fatalf("%d registers on the console, want 24 of each bank:\n%s", len(banks), console)
	}
	for n, want := range p.PCR {
		if got := banks[fmt.Sprint("sha256 ", n)]; got != want.SHA256.String() {
			t.Errorf("PCR %d of SHA-256 is %s, predicted was %s", n, got, want.SHA256)
		}
		if got := banks[fmt.Sprint("sha384 ", n)]; got != want.SHA384.String() {
			t.Errorf("PCR %d of SHA-384 is %s, predicted was %s", n, got, want.SHA384)
		}
	}
	_, line, _ := strings.Cut(console, "\nlog ")
	line, _, _ = strings.Cut(line, "\n")
	raw, err := hex.DecodeString(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("log: %v; the console:\n%s", err, console)
	}
	log, err := measure.ParseLog(raw)
	if err != nil {
		t.Fatal(err)
	}
	// The names are ours; the rest is to be equal.
	var got, want []measure.Event
	for _, e := range log {
		if _, predicted := p.PCR[e.PCR]; predicted {
			got = append(got, measure.Event{PCR: e.PCR, Type: e.Type, Digests: e.Digests})
		}
	}
	for _, e := range p.Events {
		e.What = ""
		want = append(want, e)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("events, predicted (-) and of the log (+):\n%s", d)
	}
}

// makeUKI puts a UKI where firmware looks for it on a removable disk, with the binutils that a compiler needs anyway.
func makeUKI(t *testing.T, esp, stub, kernel, initrd, line string) string {
	t.Helper()
	path, parts := filepath.Join(esp, "EFI", "BOOT", "BOOTX64.EFI"), t.TempDir()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// Above all of either stub's sections.
	address, args := uint64(0), []string{}
	out, err := exec.Command("objdump", "-h", stub).Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("no objdump here (Debian package binutils)")
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^ +\d+ \S+ +([0-9a-f]{8}) +([0-9a-f]{16})`).FindAllSubmatch(out, -1) {
		size, err1 := strconv.ParseUint(string(m[1]), 16, 64)
		at, err2 := strconv.ParseUint(string(m[2]), 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		address = max(address, at+size)
	}
	for _, s := range []struct{ name, file, text string }{
		{".osrel", "", "ID=ampoule\nVERSION_ID=1\n"}, {".uname", "", "6.12.117-ampoule"}, {".cmdline", "", line}, {".linux", kernel, ""}, {".initrd", initrd, ""},
	} {
		if s.file == "" {
			s.file = filepath.Join(parts, s.name)
			if err := os.WriteFile(s.file, []byte(s.text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		address = (address + 4095) &^ 4095
		args = append(args, "--add-section", s.name+"="+s.file, "--change-section-vma", fmt.Sprintf("%s=%#x", s.name, address))
		address += uint64(len(content(t, s.file)))
	}
	if out, err := exec.Command("objcopy", append(args, stub, path)...).CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v\n%s", err, out)
	}
	return path
}

// major is the version of a QEMU.
func major(t *testing.T, program *exec.Cmd) int {
	t.Helper()
	out, err := exec.Command(program.Path, append(program.Args[1:len(program.Args):len(program.Args)], "--version")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(string(out), "version ")
	version, _, _ = strings.Cut(version, ".")
	n, err := strconv.Atoi(version)
	if err != nil {
		t.Fatalf("%s", out)
	}
	return n
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
