package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

// fakeImage makes a folder that looks like a simulation image, and a manifest.
func fakeImage(t *testing.T) (dir, job, line string, raw []byte) {
	t.Helper()
	dir = t.TempDir()
	line = writeImage(t, dir, mkimage.Info{Profile: cmdline.Simulation, Allow: []string{"http"}}, cmdline.Options{Allow: cmdline.Allow{"http": true}})
	raw, job = writeJob(t, dir)
	return dir, job, line, raw
}

// TestDryRun prints what a policy has to allow, and starts nothing: there is no QEMU to find.
func TestDryRun(t *testing.T) {
	t.Setenv("PATH", "")
	dir, job, line, raw := fakeImage(t)
	out := filepath.Join(dir, "out")
	var stdout, stderr bytes.Buffer
	code := dispatch(t.Context(), []string{"run", "--image", dir, "--manifest", job, "--out", out, "--psp", filepath.Join(dir, "psp"),
		"--firmware", "", "--vcpus", "3", "--dry-run", "--json"}, stdio{strings.NewReader(""), &stdout, &stderr})
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, &stderr)
	}
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v in:\n%s", err, &stdout)
	}
	m := measure.Simulated(measure.Launch{Kernel: []byte("kernel"), Initrd: []byte("initramfs"), Cmdline: line, VCPUs: 3})
	init := manifest.InitdataDigest(manifest.Wrap(raw))
	if len(got) != 2 || got["measurement"] != m.String() || got["initdata_sha256"] != hex.EncodeToString(init[:]) {
		t.Errorf("printed %v, want measurement %s and initdata_sha256 %x", got, m, init)
	}
}

// TestDryRunOnHardware prints QEMU's command line, with the manifest's digest where the TEE takes it.
func TestDryRunOnHardware(t *testing.T) {
	t.Setenv("PATH", "")
	dir := t.TempDir()
	writeImage(t, dir, mkimage.Info{Profile: cmdline.Production}, cmdline.Options{})
	raw, job := writeJob(t, dir)
	init := manifest.InitdataDigest(manifest.Wrap(raw))
	firmware, block, auth := filepath.Join(dir, "OVMF.fd"), filepath.Join(dir, "block"), filepath.Join(dir, "auth")
	write(t, firmware, []byte("firmware"))
	write(t, block, bytes.Repeat([]byte{7}, 96))
	write(t, auth, []byte(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{8}, 4096))))
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"snp": {[]string{"--tee", "snp", "--cpu", "EPYC-Genoa", "--id-block", block, "--id-auth", auth}, []string{
			"confidential-guest-support=tee0", "sev-snp-guest,id=tee0", "kernel-hashes=on,host-data=" + base64.StdEncoding.EncodeToString(init[:]),
			"-cpu EPYC-Genoa", "-accel kvm", "id-block=BwcH", "id-auth=CAgI",
		}},
		"tdx": {[]string{"--tee", "tdx", "--qgs", "vsock:2:4050"}, []string{
			`"qom-type":"tdx-guest"`, base64.StdEncoding.EncodeToString(append(init[:], make([]byte, 16)...)), "-cpu host", `"port":"4050"`,
		}},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"run", "--image", dir, "--manifest", job, "--out", filepath.Join(dir, "out"), "--firmware", firmware, "--dry-run"}, c.args...)
		if code := dispatch(t.Context(), args, stdio{strings.NewReader(""), &stdout, &stderr}); code != 0 {
			t.Fatalf("%s: exit code %d:\n%s", name, code, &stderr)
		}
		if !strings.Contains(stderr.String(), "the launch is not predicted: ") {
			t.Errorf("%s: a firmware that is none is measured:\n%s", name, &stderr)
		}
		for _, want := range append(c.want, hex.EncodeToString(init[:])) {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: %q is not in:\n%s", name, want, &stdout)
			}
		}
	}
}

// writeImage makes what looks like an image in dir.
func writeImage(t *testing.T, dir string, info mkimage.Info, o cmdline.Options) (line string) {
	t.Helper()
	line = mkimage.Cmdline(info.Profile, o, "")
	info.Cmdline = line
	for _, f := range [][2]string{{mkimage.KernelFile, "kernel"}, {mkimage.InitramfsFile, "initramfs"}, {mkimage.CmdlineFile, line}} {
		write(t, filepath.Join(dir, f[0]), []byte(f[1]))
		sum := sha256.Sum256([]byte(f[1]))
		if f[0] == mkimage.KernelFile {
			info.Kernel.SHA256, info.Kernel.Size = hex.EncodeToString(sum[:]), int64(len(f[1]))
		}
		info.Files = append(info.Files, mkimage.File{Name: f[0], SHA256: hex.EncodeToString(sum[:]), Size: int64(len(f[1]))})
	}
	b, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, mkimage.InfoFile), b)
	return line
}

// writeJob makes a manifest in dir.
func writeJob(t *testing.T, dir string) (raw []byte, path string) {
	t.Helper()
	raw = []byte(`{"version": 1, "algorithm": {"uri": "docker://registry.example/algorithm@sha256:` + strings.Repeat("2", 64) + `"}, "results": {"recipients": ["age1xaa6w7kl42lgkk6jtseymp08ecl7umavdre4rcssnrp08txllsqqnga2jg"]}}`)
	path = filepath.Join(dir, "job.json")
	write(t, path, raw)
	return raw, path
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestCheckSwap: a disk without a use for it, and a use without a disk, are mistakes that would show only in the guest.
func TestCheckSwap(t *testing.T) {
	for name, c := range map[string]struct {
		mib  int
		disk string
		want string
	}{
		"neither":           {0, "", ""},
		"both":              {8192, "vda", ""},
		"a disk for nobody": {8192, "", "names no disk for it; build with --swap vda"},
		"no disk":           {0, "vda", "say with --swap how many MiB"},
		"less than nothing": {-1, "vda", "want 0 to"},
	} {
		err := checkSwap(c.mib, c.disk, "image")
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestBootFrom(t *testing.T) {
	with := &mkimage.Info{Files: []mkimage.File{{Name: mkimage.RawFile, Size: 1}}}
	for _, c := range []struct {
		what, disk, problem string
		info                *mkimage.Info
	}{
		{bootKernel, "", "", with},
		{bootKernel, "", "", &mkimage.Info{}},
		{bootDisk, "image/disk.raw", "", with},
		{bootDisk, "", "build it with --formats raw", &mkimage.Info{}},
		{"floppy", "", `--boot "floppy": want kernel or disk`, with},
	} {
		cfg := qemu.Config{Kernel: "image/vmlinuz", Initrd: "image/initramfs", Cmdline: "a"}
		err := bootFrom(c.what, &cfg, "image", c.info)
		if (err != nil) != (c.problem != "") || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s: %v, want %q", c.what, err, c.problem)
		}
		if cfg.Disk != c.disk || (cfg.Disk != "") != (cfg.Cmdline == "") {
			t.Errorf("%s: disk %q, command line %q", c.what, cfg.Disk, cfg.Cmdline)
		}
	}
}
