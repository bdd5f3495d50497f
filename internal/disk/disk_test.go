package disk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

var (
	date = time.Date(2026, 11, 14, 12, 56, 1, 0, time.UTC)
	id   = sha256.Sum256([]byte("a disk"))
)

// noise is data that no compression helps with.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func sample(t *testing.T, size int64) (*Image, []File) {
	t.Helper()
	files := []File{
		{"EFI/BOOT/BOOTX64.EFI", noise(3<<20 + 77)},
		{"STARTUP.NSH", []byte("BOOTX64.EFI\r\n")},
		{"EFI/EMPTY.TXT", []byte{}},
	}
	esp, err := FAT32(files, id, date)
	if err != nil {
		t.Fatal(err)
	}
	i, err := GPT(esp, size, id)
	if err != nil {
		t.Fatal(err)
	}
	return i, files
}

func raw(t *testing.T, i *Image) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tools are the ordinary programs for these formats, of Debian 13.
func tools(t *testing.T) func(name string, args ...string) string {
	t.Helper()
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), "trixie", []string{"mtools", "gdisk", "fdisk", "dosfstools", "qemu-utils"}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func(name string, args ...string) string {
		t.Helper()
		cmd := root.Command(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
}

func write(t *testing.T, i *Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := i.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheFileSystemIsGoodForMtoolsAndFsck(t *testing.T) {
	run := tools(t)
	i, files := sample(t, 0)
	path := write(t, i)
	at := path + "@@1M"
	for _, f := range files {
		out := filepath.Join(t.TempDir(), "out")
		run("mtools", "-c", "mcopy", "-i", at, "::"+f.Name, out)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, f.Data) {
			t.Errorf("%s: mcopy got %d bytes of %d (%v)", f.Name, len(got), len(f.Data), err)
		}
	}
	listing := run("mtools", "-c", "mdir", "-i", at, "-/", "::")
	for _, want := range []string{"Volume in drive : is AMPOULE", "BOOTX64  EFI   3145805 2026-11-14  12:56", "Directory for ::/EFI/BOOT"} {
		if !strings.Contains(listing, want) {
			t.Errorf("mdir does not say %q:\n%s", want, listing)
		}
	}
	esp := filepath.Join(t.TempDir(), "esp")
	b := raw(t, i)
	if err := os.WriteFile(esp, b[MiB:len(b)-MiB], 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run("fsck.fat", "-n", "-v", esp); !strings.Contains(out, "32 bit entries") || !strings.Contains(out, ": 6 files, ") {
		t.Errorf("fsck.fat says\n%s", out)
	}
}

func TestTheTableIsGoodForSfdiskAndSgdisk(t *testing.T) {
	run := tools(t)
	for name, size := range map[string]int64{"the smallest disk": 0, "a disk of 1 GiB": GiB} {
		t.Run(name, func(t *testing.T) {
			i, _ := sample(t, size)
			path := write(t, i)
			if out := run("sgdisk", "--verify", path); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk --verify says\n%s", out)
			}
			if out := run("sgdisk", "--info=1", path); !strings.Contains(out, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B (EFI system partition)") {
				t.Errorf("sgdisk --info says\n%s", out)
			}
			out := run("sfdisk", "--dump", path)
			for _, want := range []string{"label: gpt", "start=        2048", "type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B", `name="EFI system partition"`} {
				if !strings.Contains(out, want) {
					t.Errorf("sfdisk --dump does not say %q:\n%s", want, out)
				}
			}
			run("sfdisk", "--verify", path)
			if guids := regexp.MustCompile(`[0-9A-F]{8}-[0-9A-F]{4}-8[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}`).FindAllString(out, -1); len(guids) != 2 || guids[0] == guids[1] {
				t.Errorf("want two GUIDs of version 8 in\n%s", out)
			}
		})
	}
}

func TestEveryFormatHoldsTheSameDiskForQemuImg(t *testing.T) {
	run := tools(t)
	i, _ := sample(t, 0)
	want := raw(t, i)
	for _, c := range []struct {
		name, format string
		write        func(string) error
	}{
		{"raw", "raw", i.WriteFile},
		{"VHD", "vpc", func(p string) error { return i.WriteVHD(p, id, date) }},
		{"QCOW2", "qcow2", i.WriteQCOW2},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := c.write(path); err != nil {
				t.Fatal(err)
			}
			back := filepath.Join(t.TempDir(), "raw")
			run("qemu-img", "convert", "-f", c.format, "-O", "raw", path, back)
			if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, want) {
				t.Errorf("qemu-img reads another disk, of %d bytes, want %d (%v)", len(got), len(want), err)
			}
			if c.format == "qcow2" {
				if out := run("qemu-img", "check", path); !strings.Contains(out, "No errors were found") {
					t.Errorf("qemu-img check says\n%s", out)
				}
			}
		})
	}
}

func TestTheVHDFooterIsThatOfQemuImg(t *testing.T) {
	run := tools(t)
	i, _ := sample(t, 0)
	dir := t.TempDir()
	mine, theirs := filepath.Join(dir, "mine"), filepath.Join(dir, "theirs")
	if err := i.WriteVHD(mine, id, date); err != nil {
		t.Fatal(err)
	}
	run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", write(t, i), theirs)
	footer := func(path string) []byte {
		b, err := os.ReadFile(path)
		if err != nil || len(b) < Sector {
			t.Fatalf("%s: %d bytes, %v", path, len(b), err)
		}
		if len(b) != int(i.Size)+Sector {
			t.Errorf("%s has %d bytes, want %d and the footer", path, len(b), i.Size)
		}
		f := b[len(b)-Sector:]
		clear(f[24:28]) // time
		clear(f[64:84]) // checksum and UUID
		return f
	}
	if diff := cmp.Diff(footer(theirs), footer(mine)); diff != "" {
		t.Errorf("footer (-qemu-img +ours):\n%s", diff)
	}
}

// The archive is one of GNU's old format whose holes GNU tar and Go know, with the one name that Google takes.
func TestTheArchiveIsGoodForTar(t *testing.T) {
	tar, err := exec.LookPath("tar")
	if err != nil {
		t.Skip(err)
	}
	whole, _ := sample(t, GiB)
	full, _ := sample(t, GiB) // its map goes on behind the first header
	full.extents = full.extents[:1]
	for n := range int64(60) {
		full.put(GiB/2+n*MiB, noise(Sector))
	}
	for name, i := range map[string]*Image{"the disk": whole, "many pieces, and a hole at the end": full} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk.tar.gz")
			if err := i.WriteGCE(path, date); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(tar, "--utc", "-tvzf", path).Output()
			if err != nil || string(out) != "-rw-r--r-- 0/0      1073741824 2026-11-14 12:56 disk.raw\n" {
				t.Errorf("tar -tv says %q (%v)", out, err)
			}
			if out, err := exec.Command(tar, "-C", dir, "-xzSf", path).CombinedOutput(); err != nil {
				t.Fatalf("tar -x: %v\n%s", err, out)
			}
			f, err := os.Open(filepath.Join(dir, "disk.raw"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, want := sha256.New(), sha256.New()
			if _, err := io.Copy(got, f); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(want, io.NewSectionReader(i, 0, i.Size)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
				t.Error("tar unpacks another disk")
			}
		})
	}
}

func TestSizesAreNoLargerThanTheyHaveToBe(t *testing.T) {
	i, _ := sample(t, 0)
	if i.Size != 35*MiB {
		t.Errorf("a small disk has %d bytes, want 35 MiB: 33 of FAT32, one before it and one behind", i.Size)
	}
	esp, err := FAT32([]File{{"A", noise(40 * MiB)}}, id, date)
	if err != nil || esp.Size != 41*MiB {
		t.Errorf("40 MiB take %d bytes (%v), want 41 MiB", esp.Size, err)
	}
}

func TestWhatHasNoPlaceIsRefused(t *testing.T) {
	for name, files := range map[string][]File{
		"a long name":           {{"EFI/BOOT/BOOTX6400.EFI", nil}},
		"lower case":            {{"efi", nil}},
		"no name":               {{"EFI//A", nil}},
		"two dots":              {{"../A", nil}},
		"a name twice":          {{"A", nil}, {"A", nil}},
		"a file as folder":      {{"A", nil}, {"A/B", nil}},
		"a folder as file":      {{"A/B", nil}, {"A", nil}},
		"a long extension":      {{"A.HTML", nil}},
		"more than 2 GiB of it": {{"A", make([]byte, 1<<31+1)}},
	} {
		if _, err := FAT32(files, id, date); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	i, _ := sample(t, 0)
	odd := &Image{Size: i.Size + Sector, extents: i.extents}
	if err := odd.WriteVHD(filepath.Join(t.TempDir(), "x"), id, date); err == nil {
		t.Error("a VHD that is not of whole MiB was made")
	}
	if err := i.WriteGCE(filepath.Join(t.TempDir(), "x"), date); err == nil {
		t.Error("an archive that is not of whole GiB was made")
	}
	if _, err := GPT(i, i.Size, id); err == nil {
		t.Error("a disk was made that has no room for its table")
	}
}

func TestPartsFindEveryFile(t *testing.T) {
	i, files := sample(t, 0)
	b := raw(t, i)
	found := map[string][]byte{}
	for _, p := range Parts(b) {
		found[p.Name] = p.Data
	}
	for _, f := range files[:2] {
		if !bytes.Equal(found["/"+f.Name], f.Data) {
			t.Errorf("%s: %d bytes, want %d", f.Name, len(found["/"+f.Name]), len(f.Data))
		}
	}
	for _, n := range []string{"protective MBR", "partition table", "file system: first FAT", "file system: folder /EFI/BOOT/", "second partition table"} {
		if len(found[n]) == 0 {
			t.Errorf("no part %q", n)
		}
	}
	if p := Parts(make([]byte, 4*MiB)); p != nil {
		t.Errorf("an empty disk has parts: %v", p)
	}
}

// No disk crashes the reader.
func FuzzParts(f *testing.F) {
	esp, err := FAT32([]File{{"A/B/C", []byte("x")}}, id, date)
	if err != nil {
		f.Fatal(err)
	}
	i, err := GPT(esp, 0, id)
	if err != nil {
		f.Fatal(err)
	}
	disk, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size))
	if err != nil {
		f.Fatal(err)
	}
	boot, root := bytes.Clone(disk[MiB:MiB+90]), bytes.Clone(disk[MiB+1072*Sector:][:3*Sector])
	f.Add(boot, root)
	f.Fuzz(func(t *testing.T, boot, root []byte) {
		if len(boot) > 500 || len(root) > 64<<10 {
			return
		}
		b := bytes.Clone(disk)
		copy(b[MiB:], boot)
		copy(b[MiB+1072*Sector:], root)
		Parts(b)
	})
}
