package mkimage

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// fixture is a module with a main package that does what a test of the build needs: nothing.
func fixture(t *testing.T, dir string) string {
	write(t, filepath.Join(dir, "go.mod"), "module example.com/fixture\n\ngo 1.26\n")
	write(t, filepath.Join(dir, "init/main.go"), `package main

import (
	"os"
	"runtime"
)

var buildTime = "0"

func main() {
	_, file, _, _ := runtime.Caller(0)
	os.Stdout.WriteString(buildTime + " " + file + "\n")
}
`)
	return dir
}

func unpack(t *testing.T, packed []byte) []cpio.Record {
	t.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	archive, err := d.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.EOFReader{RecordReader: cpio.Newc.Reader(bytes.NewReader(archive))})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// The initramfs is measured: a file more is a change of every launch measurement.
func TestInitramfsListingGolden(t *testing.T) {
	packed, info, err := Initramfs(t.Context(), Options{Profile: "simulation", SourceDir: fixture(t, t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	var init []byte
	for _, r := range unpack(t, packed) {
		list = append(list, fmt.Sprintf("%06o %d:%d %d:%d t%d %s", r.Mode, r.UID, r.GID, r.Rmajor, r.Rminor, r.MTime, r.Name))
		if r.Name == "init" {
			if init, err = io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize))); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := []string{
		"040755 0:0 0:0 t0 dev",
		"020600 0:0 5:1 t0 dev/console",
		"100755 0:0 0:0 t0 init",
	}
	if !slices.Equal(list, want) {
		t.Errorf("the initramfs holds\n%s\nwant\n%s", strings.Join(list, "\n"), strings.Join(want, "\n"))
	}
	if hexSum(init) != info.SHA256 || int64(len(init)) != info.Size {
		t.Errorf("/init has %d bytes, sha256 %s; the record says %d, %s", len(init), hexSum(init), info.Size, info.SHA256)
	}
	if !bytes.Contains(init, []byte(fmt.Sprint(kernelconfig.Pin.Date.Unix()))) {
		t.Error("/init does not hold the build time")
	}
	if !strings.HasPrefix(info.Go, "go1.") || info.Modules != 0 {
		t.Errorf("record of the fixture: %+v", info)
	}
}

// copyModule copies what a build of the module at root may read.
func copyModule(t *testing.T, root, to string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); rel != "." && (strings.HasPrefix(n, ".") || n == "out" || n == "testdata") {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if !d.Type().IsRegular() || strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Two checkouts, in directories of different length, with different umasks, time zones and settings for Go, give one
// initramfs.
func TestInitramfsIsReproducible(t *testing.T) {
	root := ".."
	parent := t.TempDir()
	var sums []string
	for _, c := range []struct {
		dir   string
		umask int
		env   map[string]string
	}{
		{"a", 0o022, map[string]string{"TZ": "UTC", "GOFLAGS": "", "GOAMD64": ""}},
		{"b/a-longer-name/for-the-same", 0o077, map[string]string{"TZ": "Asia/Tokyo", "GOFLAGS": "-tags=other", "GOAMD64": "v3", "CGO_ENABLED": "1", "LC_ALL": "de_DE.UTF-8"}},
	} {
		dir := filepath.Join(parent, c.dir)
		copyModule(t, root, dir)
		for k, v := range c.env {
			t.Setenv(k, v)
		}
		old := syscall.Umask(c.umask)
		packed, _, err := Initramfs(t.Context(), Options{Profile: "production", SourceDir: dir})
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, hexSum(packed))
	}
	if sums[0] != sums[1] {
		t.Errorf("two initramfs of the same source: sha256 %s and %s", sums[0], sums[1])
	}
}

func TestAnInitThatDoesNotCompileSaysWhere(t *testing.T) {
	dir := fixture(t, t.TempDir())
	write(t, filepath.Join(dir, "init/broken.go"), "package main\n\nfunc broken() { return 1 }\n")
	_, _, err := Initramfs(t.Context(), Options{Profile: "simulation", SourceDir: dir})
	if err == nil || !strings.Contains(err.Error(), "broken.go:3") {
		t.Errorf("got %v", err)
	}
}
