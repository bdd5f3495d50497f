package test

import (
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	esp "github.com/ampoule-vm/ampoule/internal/disk"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/internal/result"
	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

var unified builtImage

// onDisk has the trial boot a disk image by firmware.
func (r *trial) onDisk() (dir string, info *mkimage.Info) {
	r.Helper()
	dir, info = unified.get(r.T, mkimage.Options{Profile: cmdline.Simulation, Net: "dhcp", Formats: []string{mkimage.Raw}})
	r.boots(dir)
	return dir, info
}

// boots has the trial boot the disk of the image in dir.
func (r *trial) boots(dir string) {
	r.cfg.Shape.Firmware = ovmf
	r.cfg.Kernel, r.cfg.Initrd, r.cfg.Disk = filepath.Join(dir, mkimage.UKIFile), "", filepath.Join(dir, mkimage.RawFile)
}

// TestUKI is a whole run of a disk image: firmware finds the UKI on its EFI system partition.
func TestUKI(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.onDisk()
	r.run()
	r.ends("", result.OK, 0)
	r.read(filepath.Join(r.open(), "results/ran"))
	if v := r.verified(); !v.Proven || v.Statement.Predicate.Binding != result.BindLaunch {
		t.Errorf("verdict proven=%v binding=%q", v.Proven, v.Statement.Predicate.Binding)
	}
}

// TestUKIRefusesAnotherCommandLine starts the same UKI as an owner of a machine can: by a boot entry with load options,
// here a line in a script of the firmware's shell. Without Secure Boot systemd-stub takes them.
func TestUKIRefusesAnotherCommandLine(t *testing.T) {
	r := newTrial(t, nil, "ran")
	dir, info := r.onDisk()
	image := []byte(r.read(filepath.Join(dir, mkimage.UKIFile)))
	line := strings.Replace(info.Cmdline, "ampoule.allow=", "ampoule.allow=errors,", 1)
	id := sha256.Sum256(image)
	fs, err := esp.FAT32([]esp.File{
		{Name: "AMPOULE.EFI", Data: image},
		{Name: "STARTUP.NSH", Data: []byte("fs0:\r\nAMPOULE.EFI " + line + "\r\n")},
	}, id, kernelconfig.Pin.Date)
	if err != nil {
		t.Fatal(err)
	}
	d, err := esp.GPT(fs, 0, id)
	if err != nil {
		t.Fatal(err)
	}
	r.cfg.Disk = filepath.Join(t.TempDir(), "disk.raw")
	if err := d.WriteFile(r.cfg.Disk); err != nil {
		t.Fatal(err)
	}
	r.run()
	if o := r.report.Outcome; o == nil || o.Step != "mount" || o.Reason != result.BadManifest || r.report.End != qemu.PoweredOff {
		t.Errorf("outcome %+v, and the VM %s; want it refused in mount; the console:\n%s", o, r.report.End, r.read(r.report.ConsolePath))
	}
	r.notRun()
	if said := r.brokerSaid(); said != "" {
		t.Errorf("the broker was asked:\n%s", said)
	}
	// The command line that it was started with would have error texts shown.
	if console, err := os.ReadFile(r.report.ConsolePath); err != nil || strings.Contains(string(console), "was built with") {
		t.Errorf("the console has the error text (%v):\n%s", err, console)
	}
}

// TestBaked runs the manifest that is in the image, and asks the host for none. The image's measurement alone binds it.
func TestBaked(t *testing.T) {
	r := newTrial(t, nil)
	r.job = demo.Job{Algorithm: r.publish("open", "", r.probeImage(), false), Args: []string{"ran"}, Plain: true}
	r.manifest = r.world.Manifest(r.job)
	dir := filepath.Join(t.TempDir(), "image")
	_, err := mkimage.Build(t.Context(), mkimage.Options{
		Profile: cmdline.Simulation, Net: "dhcp", Manifest: r.manifest, Formats: []string{mkimage.Raw},
		Out: dir, SourceDir: "..", Progress: os.Stderr, KernelSource: os.Getenv("KERNEL_SOURCE"),
	})
	if errors.Is(err, mkimage.ErrNotServed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.boots(dir)
	baked := r.manifest
	r.manifest, r.unbound = []byte("the host's own"), true
	r.run()
	r.ends("", result.OK, 0)
	r.manifest = baked
	if b := r.verified().Statement.Predicate.Binding; b != result.BindPinned {
		t.Errorf("the receipt says binding %q, want %q", b, result.BindPinned)
	}
}

// TestMeasuredDisk holds what is predicted of a disk image against a TPM: every PCR, and the events, the partition table's
// among them.
func TestMeasuredDisk(t *testing.T) {
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("no swtpm here (Debian package swtpm)")
	}
	var image builtImage
	dir, _ := image.get(t, mkimage.Options{Profile: cmdline.Simulation, InitPackage: "./test/measured", Formats: []string{mkimage.Raw}})
	firmware, _ := ovmf2025.fetch(t)
	files := measure.Files{UKI: content(t, filepath.Join(dir, mkimage.UKIFile)), Disk: content(t, filepath.Join(dir, mkimage.RawFile))}
	p, err := measure.Predict(measure.Shape{Name: "disk", TEE: measure.OnTPM, VMM: measure.OnQEMU, Boot: measure.BootUKI, Firmware: firmware}, files, content(t, firmware))
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp(work, "tpm")
	if err != nil {
		t.Fatal(err)
	}
	console := bootMeasured(t, run, exec.CommandContext(t.Context(), qemu.DefaultBinary), []string{
		"-drive", "if=none,id=boot,format=raw,readonly=on,file=" + filepath.Join(dir, mkimage.RawFile), "-device", "virtio-blk-pci,drive=boot", "-bios", firmware})
	// PCR 5 has boot options as well, which the machine decides: of it, the event of the table is predicted.
	table := 0
	p.Events = slices.DeleteFunc(p.Events, func(e measure.Event) bool {
		if e.PCR == 5 {
			table++
			if !strings.Contains(console, e.Digests.SHA384.String()) {
				t.Errorf("the log has no event %q with %s", e.What, e.Digests.SHA384)
			}
		}
		return e.PCR == 5
	})
	if table != 1 {
		t.Errorf("%d events are predicted of PCR 5, want that of the partition table", table)
	}
	compareMeasured(t, p, console)
}
