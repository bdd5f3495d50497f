package mkimage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func image(t *testing.T) (dir string, info *Info) {
	dir = t.TempDir()
	info = &Info{Profile: "simulation", Allow: []string{"tag"}, Cmdline: "a b"}
	for _, f := range []struct{ name, text string }{{KernelFile, "kernel"}, {InitramfsFile, "initramfs"}, {CmdlineFile, "a b"}} {
		write(t, filepath.Join(dir, f.name), f.text)
		info.Files = append(info.Files, describe(f.name, []byte(f.text)))
	}
	info.Kernel.SHA256, info.Kernel.Size = info.Files[0].SHA256, info.Files[0].Size
	b, err := asJSON(info)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, InfoFile), string(b))
	return dir, info
}

func TestLoadReadsWhatBuildWrites(t *testing.T) {
	dir, want := image(t)
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestLoadRefuses(t *testing.T) {
	edit := func(t *testing.T, dir, from, to string) {
		path := filepath.Join(dir, InfoFile)
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), from) {
			t.Fatalf("%q is not in %s (%v)", from, b, err)
		}
		write(t, path, strings.Replace(string(b), from, to, 1))
	}
	for _, c := range []struct {
		name    string
		spoil   func(t *testing.T, dir string)
		problem string
	}{
		{"one changed byte of the kernel", func(t *testing.T, dir string) { write(t, filepath.Join(dir, KernelFile), "kernem") }, KernelFile},
		{"a longer command line", func(t *testing.T, dir string) { write(t, filepath.Join(dir, CmdlineFile), "a b c") }, CmdlineFile},
		{"a missing initramfs", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, InitramfsFile)) }, InitramfsFile},
		{"no record", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, InfoFile)) }, InfoFile},
		{"an unknown field", func(t *testing.T, dir string) { edit(t, dir, `"profile"`, `"signed": true, "profile"`) }, "signed"},
		{"more after the record", func(t *testing.T, dir string) { edit(t, dir, "\n}\n", "\n}\n{}") }, "goes on"},
		{"a record without end", func(t *testing.T, dir string) { write(t, filepath.Join(dir, InfoFile), strings.Repeat(" ", maxInfo+1)) }, "larger"},
		{"a file elsewhere", func(t *testing.T, dir string) { edit(t, dir, `"name": "vmlinuz"`, `"name": "../vmlinuz"`) }, "../vmlinuz"},
		{"another command line in the record", func(t *testing.T, dir string) { edit(t, dir, `"a b"`, `"a c"`) }, "another command line"},
		{"another kernel in the record", func(t *testing.T, dir string) { edit(t, dir, `"sha256": "`, `"sha256": "0`) }, "another kernel"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, _ := image(t)
			c.spoil(t, dir)
			if info, err := Load(dir); err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("got %+v, %v; want an error with %q", info, err, c.problem)
			}
		})
	}
}
