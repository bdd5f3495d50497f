package measure

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

// peers gets a file of a Debian package and the root that it is in.
func peers(t *testing.T, suite, file string, packages ...string) (path string, root *debian.Root) {
	t.Helper()
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), suite, packages, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skip(err)
	}
	if err == nil {
		path, err = root.File(file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path, root
}

// makePE makes an image of sections, as ours are laid out: headers, then each section from a multiple of 512 bytes.
func makePE(sections ...[2]string) []byte {
	const headers = 1024
	b := make([]byte, headers)
	le := binary.LittleEndian
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x44:], 0x8664)
	le.PutUint16(b[0x46:], uint16(len(sections)))
	le.PutUint16(b[0x54:], 240)
	opt := b[0x58:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[32:], 4096)
	le.PutUint32(opt[36:], 512)
	le.PutUint32(opt[56:], uint32(4096*(len(sections)+1)))
	le.PutUint32(opt[60:], headers)
	le.PutUint16(opt[68:], 10) // an EFI application
	le.PutUint32(opt[108:], 16)
	for i, s := range sections {
		h := b[0x58+240+40*i:]
		copy(h, s[0])
		le.PutUint32(h[8:], uint32(len(s[1])))
		le.PutUint32(h[12:], uint32(4096*(i+1)))
		le.PutUint32(h[16:], uint32((len(s[1])+511)/512*512))
		le.PutUint32(h[20:], uint32(len(b)))
		le.PutUint32(h[36:], 0x40000040)
		b = append(b, s[1]...)
		for len(b)%512 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// sampleUKI is a UKI of a stub version, whose kernel is a PE image.
func sampleUKI(version string, more ...[2]string) []byte {
	return makePE(append([][2]string{
		{".text", "code"}, {".sbat", "sbat,1,SBAT\n"}, {".sdmagic", "#### LoaderInfo: systemd-stub " + version + " ####"},
		{".osrel", "ID=ampoule\n"}, {".cmdline", "console=ttyS0 quiet"}, {".uname", "6.12"}, {".linux", string(makePE([2]string{".text", "kernel"}))}, {".initrd", "archive"},
	}, more...)...)
}

func TestAuthenticodeIsPesigns(t *testing.T) {
	_, root := peers(t, "trixie", "usr/bin/pesign", "pesign")
	for _, suite := range []string{"bookworm", "trixie"} {
		for _, name := range []string{"linuxx64.efi.stub", "systemd-bootx64.efi"} {
			path, _ := peers(t, suite, "usr/lib/systemd/boot/efi/"+name, "systemd-boot-efi")
			image, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			// pesign fills a file to whole words, as signing does; firmware measures an unsigned one as it is (test/measured_test.go).
			image = append(image, make([]byte, -len(image)&7)...)
			want, err := Authenticode(image)
			if err != nil {
				t.Fatal(err)
			}
			out, err := root.Command(t.Context(), "pesign", "--hash", "--in="+path, "--digest_type=sha256").CombinedOutput()
			if got, _, _ := strings.Cut(string(out), " "); err != nil || got != want.SHA256.String() {
				t.Errorf("%s of %s: pesign says %s, %v, want %s", name, suite, out, err, want.SHA256)
			}
		}
	}
}

// systemd-measure is given the sections, and says what PCR 11 is before any phase of the boot is measured.
func TestPCR11IsSystemdMeasures(t *testing.T) {
	_, root := peers(t, "trixie", "usr/lib/systemd/systemd-measure", "systemd-ukify", "systemd", "systemd-boot-efi")
	u, err := ParseUKI(sampleUKI("257.13", [2]string{".pcrpkey", "key"}, [2]string{".splash", "picture"}))
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"calculate", "--json=short", "--phase=", "--bank=sha256", "--bank=sha384"}
	for _, name := range u.stub.sections {
		if content := u.Section(name); content != nil {
			file := filepath.Join(t.TempDir(), "section")
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--"+strings.TrimPrefix(name, ".")+"="+file)
		}
	}
	out := measureCommand(t.Context(), t, root, args)
	var got map[string][]struct {
		PCR  int
		Hash string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	events, err := u.events(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Registers(events)[11]
	if len(got["sha256"]) != 1 || len(got["sha384"]) != 1 || got["sha256"][0].Hash != want.SHA256.String() || got["sha384"][0].Hash != want.SHA384.String() {
		t.Errorf("systemd-measure says %s, want %s and %s", out, want.SHA256, want.SHA384)
	}
}

func measureCommand(ctx context.Context, t *testing.T, root *debian.Root, args []string) []byte {
	t.Helper()
	cmd := root.Command(ctx, "../lib/systemd/systemd-measure", args...)
	if cmd.Err != nil {
		t.Fatal(cmd.Err)
	}
	// A library of systemd's own lies beside the others.
	for i, a := range cmd.Args {
		if i > 0 && cmd.Args[i-1] == "--library-path" {
			for dir := range strings.SplitSeq(a, ":") {
				cmd.Args[i] += ":" + filepath.Join(dir, "systemd")
			}
		}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	return out
}

// What Google's gce-tcb-verifier (74582c0) computes of Debian's firmware: MRTD, and the SNP launch digest of four vCPUs.
func TestFirmwareMeasuresAsGooglesVerifierSays(t *testing.T) {
	for _, test := range []struct{ suite, version, mrtd, snp string }{
		{"trixie", "2025.02-8+deb13u1", "bdc6fb145880f06f30c8b346b8dce2a99d9351b56892df22f80fcf6574caa9f9c31df8e8576d53b4d0cd1c3f28910e11",
			"f690a2ef1bd89bcad41ec178213f3223be367abf5d0fa517af52ceb6e5398dfb853391457330f1268e106865d6ad51a4"},
		{"bookworm", "2022.11-6+deb12u2", "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47",
			"dc9e0c41c8b0ca2000043e749d6fd77737d0ef146b3c9eaaaf693f50dd5ce57fbcb379cb4af9918c94d265a7e0bd8317"},
	} {
		t.Run(test.suite, func(t *testing.T) {
			path, root := peers(t, test.suite, "usr/share/ovmf/OVMF.fd", "ovmf")
			if v := root.Version("ovmf"); v != test.version {
				t.Skipf("ovmf is %s here, and the values are of %s", v, test.version)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := ParseFirmware(b)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := MRTD(f, EachPage); err != nil || m.String() != test.mrtd {
				t.Errorf("MRTD %s, %v, want %s", m, err, test.mrtd)
			}
			// The variables of trixie's were in a real guest's log (../shared, ccel/trustee-CCEL_data_ovmf).
			const cfv = "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"
			if e := f.variables(); test.suite == "trixie" && (len(e) != 1 || e[0].Digests.SHA384.String() != cfv) {
				t.Errorf("variables %v, want %s", e, cfv)
			}
			if m, err := SNP(SNPLaunch{Firmware: f, VCPUs: 4, VMM: GCE, Features: FeatureSNP}); err != nil || m.String() != test.snp {
				t.Errorf("SNP %s, %v, want %s", m, err, test.snp)
			}
		})
	}
}

// Which firmware does what is in BOOT.md §2, and was seen in boots.
func TestBehaviourOfDebiansFirmware(t *testing.T) {
	for _, test := range []struct {
		suite, version, pkg, file string
		want                      behaviour
		hashes, tdx               bool
	}{
		{"bookworm", "2022.11", "ovmf", "usr/share/ovmf/OVMF.fd", behaviour{secureBootVar: true}, false, true},
		{"trixie", "2025.02", "ovmf", "usr/share/ovmf/OVMF.fd", behaviour{rawKernel: true}, false, true},
		{"trixie", "2025.02", "ovmf", "usr/share/OVMF/OVMF_CODE_4M.fd", behaviour{rawKernel: true}, false, false},
		{"sid", "2026.08", "ovmf", "usr/share/ovmf/OVMF.fd", behaviour{initrdFirst: true, rawKernel: true}, true, true},
		{"sid", "2026.08", "ovmf-amdsev", "usr/share/ovmf/OVMF.amdsev.fd", behaviour{initrdFirst: true, rawKernel: true}, true, true},
		{"sid", "2026.08", "ovmf-inteltdx", "usr/share/ovmf/OVMF.inteltdx.ms.fd", behaviour{initrdFirst: true, rawKernel: true, secureBootVar: true, enrolled: true}, false, true},
	} {
		t.Run(test.suite+" "+filepath.Base(test.file), func(t *testing.T) {
			path, root := peers(t, test.suite, test.file, test.pkg)
			if v := root.Version(test.pkg); !strings.HasPrefix(v, test.version) {
				t.Skipf("Debian %s has %s %s, and what was looked at is %s", test.suite, test.pkg, v, test.version)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := ParseFirmware(b)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := f.behaviour(); err != nil || got != test.want {
				t.Errorf("%+v, %v, want %+v", got, err, test.want)
			}
			if f.KernelHashes() != test.hashes || (f.TDX() == nil) != test.tdx || !f.SNP() {
				t.Errorf("kernel hashes %v, TDX %v, SNP %v", f.KernelHashes(), f.TDX(), f.SNP())
			}
		})
	}
}
