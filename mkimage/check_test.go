package mkimage

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckNamesWhatDiffers(t *testing.T) {
	o := small(t)
	build(t, o)
	flip := func(find string) func([]byte) []byte {
		return func(b []byte) []byte {
			at := bytes.Index(b, []byte(find))
			if at < 0 {
				t.Fatalf("nothing to change: no %q", find)
			}
			b = bytes.Clone(b)
			b[at] ^= 1
			return b
		}
	}
	for _, c := range []struct {
		name, file string
		spoil      func([]byte) []byte // nil: the file is missing
		where      string
		inputs     string
	}{
		{"nothing", KernelFile, bytes.Clone, "", ""},
		{"the kernel", KernelFile, flip("kernel"), "vmlinuz: byte 2", ""},
		{"a command line on a disk", RawFile, flip("console=ttyS0"), "disk.raw > /EFI/BOOT/BOOTX64.EFI > section .cmdline: byte 0", ""},
		{"a folder on a disk", AzureFile, flip("AMPOULE    \x08"), "disk.vhd > disk > file system: folder /: byte 0", ""},
		{"the footer of a VHD", AzureFile, flip("qem2"), "disk.vhd > footer: byte 28", ""},
		{"a disk in QCOW2", QCOW2File, flip("console=ttyS0"), "disk.qcow2: byte", ""},
		{"a record", ProvenanceFile, flip("slsa.dev"), "provenance.intoto.json > predicateType: byte", ""},
		{"a file that is missing", SBOMFile, nil, "sbom.cdx.json: it is missing, and the build has", ""},
		{"another compiler", InfoFile, flip("go1.2"), "build.json > init.go: byte", "init.go"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(o.Out, c.file)
			good := read(t, path)
			defer write(t, path, string(good))
			if c.spoil == nil {
				os.Remove(path)
			} else {
				write(t, path, string(c.spoil(good)))
			}
			got, err := Check(t.Context(), o, o.Out)
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, d := range got.Differences {
				said = append(said, d.String())
			}
			all := strings.Join(said, "\n")
			if (c.where == "") != (all == "") || !strings.Contains(all, c.where) || len(said) > 1 {
				t.Errorf("it says\n%s\nwant %q alone", all, c.where)
			}
			if (c.inputs == "") != (len(got.Inputs) == 0) || c.inputs != "" && got.Inputs[0].Within != c.inputs {
				t.Errorf("inputs %v, want %q", got.Inputs, c.inputs)
			}
		})
	}
}

func TestCheckReadsNoFileElsewhere(t *testing.T) {
	o := small(t)
	o.Formats = nil
	build(t, o)
	b := read(t, o.Out, InfoFile)
	write(t, filepath.Join(o.Out, InfoFile), strings.Replace(string(b), `"name": "vmlinuz"`, `"name": "../../etc/passwd"`, 1))
	if c, err := Check(t.Context(), o, o.Out); err == nil || !strings.Contains(err.Error(), "not below its own folder") {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestDifferencesAreOfTheInnermostMember(t *testing.T) {
	pack := func(files ...file) []byte {
		b, err := cpioOf(files...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	zst := func(b []byte) []byte {
		b, err := compress(b, smallWindow)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	gz := func(b []byte) []byte {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	one, other := file{"init", []byte("init one"), 0o755}, file{"init", []byte("init two"), 0o755}
	for _, c := range []struct {
		name string
		a, b []byte
		want []string
	}{
		{"bytes", []byte("abc"), []byte("abd"), []string{`x: byte 2 is "c", and the build has "d"`}},
		{"a longer one", []byte("abc"), []byte("ab"), []string{`x: byte 2 is "c", and the build has the end`}},
		{"an initramfs", zst(pack(one)), zst(pack(other)), []string{`x > decompressed > init: byte 5 is "one", and the build has "two"`}},
		{"one behind another", append(pack(one), zst(pack(one))...), append(pack(one), zst(pack(other))...),
			[]string{`x > what follows > decompressed > init: byte 5 is "one", and the build has "two"`}},
		{"a member more", gz(pack(one)), gz(pack(one, file{"more", []byte("m"), 0})), []string{`x > gunzipped > more: it is missing, and the build has 1 bytes`}},
		{"a mode", pack(one), pack(file{"init", one.data, 0o700}), []string{`x: byte 20 is "ED00000000000000", and the build has "C000000000000000"`}},
		{"another compression of the same", gz([]byte("abc")), append(gz([]byte("abc")), gz(nil)...), []string{"x: byte 27 is the end, and the build has 1f8b08000000000000ff010000ffff00"}},
		{"a document", []byte(`{"a":[{"b":1}]}`), []byte(`{"a":[{"b":2}]}`), []string{`x > a[0].b: byte 1 is "1", and the build has "2"`}},
		{"damaged", []byte("\x1f\x8bdamaged"), []byte("\x1f\x8bdamage."), []string{`x: byte 8 is "d", and the build has "."`}},
	} {
		var got []string
		for _, d := range differences("x", c.a, c.b) {
			got = append(got, d.String())
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// Whatever the files of a stranger's image are, comparing them ends.
func FuzzDifferences(f *testing.F) {
	b, err := cpioOf(file{"init", []byte("init"), 0o755})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{string(b), "{}", "MZ", "\x7fELF", "\x1f\x8b", "conectix"} {
		f.Add([]byte(s), []byte(s+"x"))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if got := differences("x", a, b); (len(got) == 0) != bytes.Equal(a, b) {
			t.Errorf("%d differences", len(got))
		}
	})
}
