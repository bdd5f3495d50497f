package uki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/pe"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

// peers are systemd's stub and tools, and sbsign, of Debian 13.
func peers(t *testing.T) *debian.Root {
	t.Helper()
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), "trixie", []string{"systemd-boot-efi", "systemd-ukify", "sbsigntool"}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func stubOf(t *testing.T, root *debian.Root) (path string, b []byte) {
	t.Helper()
	path, err := root.File("usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	return path, b
}

// kernel is a PE file too, as every bzImage is; NX is in its flags or not.
func kernel(t *testing.T, nx bool) []byte {
	t.Helper()
	b := tiny(t)
	p, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if !nx {
		le.PutUint16(b[p.opt+optDLLFlags:], 0)
	}
	return append(b, make([]byte, 70000)...)
}

// tiny is the least stub: headers with room for more sections, and one section.
func tiny(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, 0x600)
	copy(b, "MZ")
	le.PutUint32(b[60:], 64)
	copy(b[64:], "PE\x00\x00\x64\x86\x01\x00")
	le.PutUint16(b[64+4+16:], 240)
	opt := b[64+24:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[32:], 4096)
	le.PutUint32(opt[36:], 512)
	le.PutUint32(opt[56:], 8192)
	le.PutUint32(opt[60:], 0x400)
	le.PutUint16(opt[70:], 0x160)
	le.PutUint32(opt[108:], 16)
	h := opt[240:]
	copy(h, ".text")
	le.PutUint32(h[8:], 100)
	le.PutUint32(h[12:], 4096)
	le.PutUint32(h[16:], 512)
	le.PutUint32(h[20:], 0x400)
	return b
}

func sections(t *testing.T, nx bool) []Section {
	return []Section{
		{OSRelease, []byte("ID=ampoule\n")},
		{Cmdline, []byte("console=ttyS0 quiet")},
		{Uname, []byte("6.12.117-ampoule")},
		{Linux, kernel(t, nx)},
		{Initrd, bytes.Repeat([]byte("initrd."), 1000)},
	}
}

func TestTheImageIsUkifysToTheByte(t *testing.T) {
	root := peers(t)
	path, stub := stubOf(t, root)
	for _, nx := range []bool{true, false} {
		t.Run(fmt.Sprintf("kernel that keeps writable and executable pages apart: %v", nx), func(t *testing.T) {
			all := sections(t, nx)
			got, err := Build(stub, all)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			ukify, err := root.Path("ukify")
			if err != nil {
				t.Fatal(err)
			}
			usr := filepath.Dir(filepath.Dir(ukify))
			args := []string{ukify, "build", "--stub=" + path, "--output=" + filepath.Join(dir, "uki")}
			for i, flag := range []string{"--os-release=@", "--cmdline=@", "--uname=", "--linux=", "--initrd="} {
				file := filepath.Join(dir, fmt.Sprint(i))
				if err := os.WriteFile(file, all[i].Data, 0o600); err != nil {
					t.Fatal(err)
				}
				if flag == "--uname=" {
					file = string(all[i].Data)
				}
				args = append(args, flag+file)
			}
			cmd := root.Command(t.Context(), "python3.13", args...)
			cmd.Env = append(os.Environ(), "PYTHONHOME="+usr, "PYTHONPATH="+filepath.Join(usr, "lib/python3/dist-packages"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("ukify: %v\n%s", err, out)
			}
			want, err := os.ReadFile(filepath.Join(dir, "uki"))
			if err != nil {
				t.Fatal(err)
			}
			// ukify adds a line to the stub's .sbat, which only shim reads; we are no link of its chain.
			blank := func(b []byte) []byte {
				p, err := parse(b)
				if err != nil {
					t.Fatal(err)
				}
				for i := range p.n {
					if name, _, _, offset, raw := p.extents(i); name == ".sbat" {
						clear(p.header(i)[8:12])
						clear(b[offset:][:raw])
					}
				}
				return b
			}
			if !bytes.Equal(blank(got), blank(want)) {
				t.Error("ukify makes another image:")
				for i := range min(len(got), len(want)) {
					if got[i] != want[i] {
						t.Fatalf("first difference at byte %#x: %x, want %x", i, got[i], want[i])
					}
				}
				t.Fatalf("%d bytes, want %d", len(got), len(want))
			}
		})
	}
}

func TestTheImageIsGoodForGoAndObjdump(t *testing.T) {
	all := sections(t, true)
	b, err := Build(tiny(t), all)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	end := uint32(0)
	for i, s := range f.Sections {
		if s.VirtualAddress < end || s.VirtualAddress%4096 != 0 || s.Offset%512 != 0 || s.Size%512 != 0 {
			t.Errorf("section %+v", s.SectionHeader)
		}
		end = s.VirtualAddress + s.VirtualSize
		if i > 0 {
			if data, err := s.Data(); err != nil || !bytes.Equal(data[:s.VirtualSize], all[i-1].Data) {
				t.Errorf("section %s holds something else (%v)", s.Name, err)
			}
		}
	}
	if size := f.OptionalHeader.(*pe.OptionalHeader64).SizeOfImage; size < end || size%4096 != 0 {
		t.Errorf("image of %d bytes in memory, and its sections end at %d", size, end)
	}
	got, err := Sections(b)
	if diff := cmp.Diff(all, got[1:]); diff != "" || err != nil {
		t.Errorf("sections (-put +found): %v\n%s", err, diff)
	}
	if s, err := Find(b, ".pcrsig"); s != nil || err != nil {
		t.Errorf("a section that is not there: %q, %v", s, err)
	}
	objdump, err := exec.LookPath("objdump")
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "uki")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(objdump, "-h", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), ".initrd       00001b58") {
		t.Errorf("objdump says (%v)\n%s", err, out)
	}
}

// sbsign's signature is found, survives being taken off and put back, and does not change what firmware measures.
func TestASignatureComesOffAndGoesBackOn(t *testing.T) {
	root := peers(t)
	_, stub := stubOf(t, root)
	plain, err := Build(stub, sections(t, true))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if b != nil {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "db"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	out := file("signed", nil)
	cmd := root.Command(t.Context(), "sbsign", "--output", out,
		"--key", file("key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"--cert", file("cert", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), file("plain", plain))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sbsign: %v\n%s", err, out)
	}
	signed, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := Signature(signed)
	if err != nil || len(signature) == 0 {
		t.Fatalf("signature of %d bytes, %v", len(signature), err)
	}
	if s, err := Signature(plain); s != nil || err != nil {
		t.Errorf("signature of an unsigned image: %d bytes, %v", len(s), err)
	}
	again, err := Attach(plain, signature)
	if err != nil || !bytes.Equal(again, signed) {
		t.Errorf("sbsign makes %d bytes, the signature put on the plain image %d, not the same (%v)", len(signed), len(again), err)
	}
	if _, err := Attach(signed, signature); err == nil {
		t.Error("a second signature was put on")
	}
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		a, err1 := Digest(plain, h)
		b, err2 := Digest(signed, h)
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%v of the image is %x, after signing %x (%v)", h, a, b, err)
		}
	}
	sum, err := Digest(plain, crypto.SHA256)
	if err != nil || !bytes.Contains(signature, sum) {
		t.Errorf("sbsign signed another digest than %x (%v)", sum, err)
	}
	if _, err := Build(signed, []Section{{".more", []byte("x")}}); err == nil {
		t.Error("sections were added to a signed image")
	}
}

func TestWhatIsNoStubIsRefused(t *testing.T) {
	with := func(change func([]byte)) []byte {
		b := tiny(t)
		change(b)
		return b
	}
	one := []Section{{".one", []byte("1")}}
	for name, c := range map[string]struct {
		stub     []byte
		sections []Section
	}{
		"nothing":               {nil, one},
		"no MZ":                 {with(func(b []byte) { b[0] = 0 }), one},
		"header behind the end": {with(func(b []byte) { le.PutUint32(b[60:], 1<<31) }), one},
		"no PE":                 {with(func(b []byte) { b[64] = 0 }), one},
		"32 bits":               {with(func(b []byte) { b[88] = 0x0b; b[89] = 1 }), one},
		"alignment of 3":        {with(func(b []byte) { b[88+36] = 3 }), one},
		"no section":            {with(func(b []byte) { b[64+6] = 0 }), one},
		"many sections":         {with(func(b []byte) { b[64+6] = 200 }), one},
		"no room for headers":   {tiny(t), slicesOf(30)},
		"an empty section":      {tiny(t), []Section{{".one", nil}}},
		"a long name":           {tiny(t), []Section{{".sections", []byte("1")}}},
		"a section twice":       {tiny(t), []Section{one[0], one[0]}},
	} {
		if _, err := Build(c.stub, c.sections); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}

func slicesOf(n int) (all []Section) {
	for i := range n {
		all = append(all, Section{fmt.Sprintf(".s%d", i), []byte("x")})
	}
	return all
}

// No bytes crash the parser, and what it returns lies in the file.
func FuzzSections(f *testing.F) {
	b, err := Build(tiny(&testing.T{}), []Section{{".one", []byte("1")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = Sections(b)
		_, _ = Signature(b)
		_, _ = Digest(b, crypto.SHA256)
		if out, err := Build(b, []Section{{".more", []byte("x")}}); err == nil {
			if got, err := Find(out, ".more"); err != nil || string(got) != "x" {
				t.Errorf("section .more: %q, %v", got, err)
			}
		}
	})
}
