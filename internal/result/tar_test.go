package result

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var salt = [32]byte{1, 2, 3}

var extras = []File{{TimelineName, []byte("{}\n")}, {StdoutName, []byte("out")}, {StderrName, nil}, {BootLogName, []byte("boot")}}

// tree lays out a workload's results, links and awkward names among them.
func tree(t *testing.T) string {
	dir := t.TempDir()
	for name, data := range map[string]string{
		"coefficients.json": "[1,2]", "a/b/c.txt": strings.Repeat("x", 5000), "a/run.sh": "#!", "empty/.keep": "",
		strings.Repeat("long", 50) + "/" + strings.Repeat("name", 40): "y", "naïve": "z",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "a/run.sh"), 0o4711); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../a/b", filepath.Join(dir, "empty/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func files(t *testing.T, dir string) map[string]string {
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			m[rel] = "dir"
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			m[rel] = "→ " + target
			return err
		default:
			b, err := os.ReadFile(p)
			m[rel] = fi.Mode().String()[3:4] + " " + string(b) // the owner's x; the rest is the umask's
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTarReadsBackAndIsDeterministic(t *testing.T) {
	var b bytes.Buffer
	if err := WriteTar(&b, salt, Tree{Dir: tree(t), Limit: 1 << 20}, extras); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	other := tree(t)
	os.Chtimes(filepath.Join(other, "naïve"), time.Unix(1, 0), time.Unix(1, 0))
	if err := WriteTar(&again, salt, Tree{Dir: other, Limit: 1 << 20}, extras); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), again.Bytes()) {
		t.Error("two trees of the same content make different tars")
	}
	const golden = "7dc46fe718912439d8e7fad3f403470f0a03130f2b2d06d2453070f1a56bf588"
	if sum := sha256.Sum256(b.Bytes()); hex.EncodeToString(sum[:]) != golden {
		t.Errorf("the tar has SHA-256 %x, want %s", sum, golden)
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := ExtractTar(bytes.NewReader(b.Bytes()), dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	long, name := strings.Repeat("long", 50), strings.Repeat("name", 40)
	want := map[string]string{
		".": "dir", "results": "dir", "results/a": "dir", "results/a/b": "dir", "results/empty": "dir", "log": "dir",
		"results/" + long: "dir", "results/" + long + "/" + name: "- y",
		"results/coefficients.json": "- [1,2]", "results/a/b/c.txt": "- " + strings.Repeat("x", 5000),
		"results/a/run.sh": "x #!", "results/empty/.keep": "- ", "results/naïve": "- z",
		"results/empty/link": "→ ../a/b", "log/stdout": "- out", "log/stderr": "- ",
		"salt": "- " + string(salt[:]), "log/boot.txt": "- boot", "timeline.ndjson": "- {}\n",
	}
	if d := cmp.Diff(want, files(t, dir)); d != "" {
		t.Error(d)
	}
	if err := ExtractTar(bytes.NewReader(b.Bytes()), dir, 1<<20); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a second time into the same directory: %v", err)
	}
}

func TestWriteTarOverItsLimitWritesNothing(t *testing.T) {
	dir := tree(t)
	if err := os.Truncate(filepath.Join(dir, "naïve"), 1<<40); err != nil {
		t.Skipf("the file system has no sparse file of 1 TiB: %v", err)
	}
	var b bytes.Buffer
	err := WriteTar(&b, salt, Tree{Dir: dir, Limit: 1 << 20}, extras)
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "1048576") || b.Len() != 0 {
		t.Errorf("%v after %d bytes, want ErrLimit, the limit, and nothing written", err, b.Len())
	}
	if err := WriteTar(&b, salt, Tree{}, extras); err != nil {
		t.Errorf("extra files alone: %v", err)
	}
}

func TestWriteTarNeverLeavesTheTree(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	results := filepath.Join(dir, "results")
	if err := os.Mkdir(results, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"file": "../secret", "dir": "..", "abs": dir} {
		if err := os.Symlink(target, filepath.Join(results, name)); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := WriteTar(&b, salt, Tree{Dir: results, Limit: 1 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b.Bytes(), []byte("key")) {
		t.Fatal("a file outside the tree was packed")
	}
	out := t.TempDir()
	err := ExtractTar(&b, out, 1<<20)
	if err == nil || !strings.Contains(err.Error(), `"results/abs"`) {
		t.Errorf("%v: says nothing of results/abs", err)
	}
	if err := syscall.Mkfifo(filepath.Join(results, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteTar(&b, salt, Tree{Dir: results, Limit: 1 << 20}, nil); err == nil || !strings.Contains(err.Error(), `"pipe"`) {
		t.Errorf("a pipe: %v", err)
	}
}

func pack(t testing.TB, hs ...*tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(bytes.Repeat([]byte("d"), int(h.Size)))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExtractTarRefuses(t *testing.T) {
	ok := &tar.Header{Name: "ok/file", Size: 3}
	for name, b := range map[string][]byte{
		"an absolute name":                pack(t, ok, &tar.Header{Name: "/etc/x"}),
		"a name that goes up":             pack(t, ok, &tar.Header{Name: "../x"}),
		"a name that goes up inside":      pack(t, ok, &tar.Header{Name: "ok/../../x"}),
		"a name with an empty part":       pack(t, ok, &tar.Header{Name: "ok//x"}),
		"a file twice":                    pack(t, ok, &tar.Header{Name: "ok/file"}),
		"a file in place of a directory":  pack(t, ok, &tar.Header{Name: "ok"}),
		"a hard link":                     pack(t, ok, &tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}),
		"a device":                        pack(t, ok, &tar.Header{Name: "d", Typeflag: tar.TypeChar}),
		"a pipe":                          pack(t, ok, &tar.Header{Name: "p", Typeflag: tar.TypeFifo}),
		"more than the limit":             pack(t, ok, &tar.Header{Name: "big", Size: 2000}),
		"bytes after its end":             append(pack(t, ok), 'x'),
		"its second half missing":         pack(t, &tar.Header{Name: "ok/file", Size: 900})[:800],
		"more zeros than a tar ends with": append(pack(t, ok), make([]byte, 2<<20)...),
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			dir := filepath.Join(outer, "in")
			if err := ExtractTar(bytes.NewReader(b), dir, 1000); err == nil {
				t.Fatal("taken")
			}
			if d := cmp.Diff(map[string]string{".": "dir", "in": "dir"}, files(t, outer)); d != "" {
				t.Errorf("something was left behind:\n%s", d)
			}
		})
	}
}

func TestExtractTarLeavesOutLinksThatMayLeadOut(t *testing.T) {
	link := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	b := pack(t, &tar.Header{Name: "a/b/file", Size: 3},
		link("fine", "a/b/file"), link("a/b/top", "../../fine"), link("a/up", ".."),
		link("abs", "/etc/passwd"), link("out", ".."), link("a/b/through", "up/../../x"), link("a/b/far", "../../../x"),
		// By way of real/deep/up, which is the top, "..": one level above it.
		link("real/deep/up", "../.."), link("real/deep/up/x", "../../.."))
	dir := t.TempDir()
	err := ExtractTar(bytes.NewReader(b), dir, 1000)
	for _, want := range []string{`"abs"`, `"out"`, `"a/b/through"`, `"a/b/far"`, "real/deep/up"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: says nothing of %s", err, want)
		}
	}
	for name := range files(t, dir) {
		p, err := filepath.EvalSymlinks(filepath.Join(dir, name))
		if err != nil {
			continue // leads to nothing, inside
		}
		if rel, err := filepath.Rel(dir, p); err != nil || strings.HasPrefix(rel, "..") {
			t.Errorf("%s leads out, to %s", name, p)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a/b/top")); err != nil || string(got) != "ddd" {
		t.Errorf("a link inside: %q, %v", got, err)
	}
}

func FuzzExtractTar(f *testing.F) {
	f.Add(pack(f, &tar.Header{Name: "a/b", Size: 3}, &tar.Header{Name: "a/l", Linkname: "b", Typeflag: tar.TypeSymlink}))
	f.Add(pack(f, &tar.Header{Name: "../b", Size: 3}, &tar.Header{Name: "a/", Typeflag: tar.TypeDir}))
	f.Fuzz(func(t *testing.T, b []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "x", "in")
		ExtractTar(bytes.NewReader(b), dir, 1<<16)
		for _, d := range []string{outer, filepath.Join(outer, "x")} {
			if there, err := os.ReadDir(d); err != nil || len(there) > 1 {
				t.Fatalf("%q left %v outside its directory (%v)", b, there, err)
			}
		}
	})
}
