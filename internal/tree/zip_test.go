package tree

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

type zipEntry struct {
	name, body string
	mode       fs.FileMode // 0: a plain file of 0644, or a directory if the name ends in a slash
	method     uint16
	flags      uint16
}

func makeZip(t testing.TB, entries ...zipEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: e.method, Flags: e.flags}
		switch {
		case e.mode != 0:
			h.SetMode(e.mode)
		case strings.HasSuffix(e.name, "/"):
			h.SetMode(fs.ModeDir | 0o755)
		default:
			h.SetMode(0o644)
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(f, e.body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unzip is [unpackTars] for a zip.
func unzip(t testing.TB, lim Limits, z []byte) (string, error) {
	t.Helper()
	return inside(t, lim, func(tr *Tree) error { return tr.Zip(bytes.NewReader(z), int64(len(z))) })
}

func TestZipUnpacks(t *testing.T) {
	z := makeZip(t,
		zipEntry{name: "d/", mode: fs.ModeDir | fs.ModeSetgid | 0o750},
		zipEntry{name: "d/stored", body: "1"},
		zipEntry{name: "d/deflated", body: strings.Repeat("2", 3000), method: zip.Deflate},
		zipEntry{name: "parents/made/su", body: "3", mode: fs.ModeSetuid | 0o755},
		zipEntry{name: "l", body: "d/stored", mode: fs.ModeSymlink | 0o777},
		zipEntry{name: "parents/made/up", body: "../.././d", mode: fs.ModeSymlink | 0o777},
		zipEntry{name: "d/.wh.stored", body: "a plain name"},
	)
	dir, err := unzip(t, Limits{}, z)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"d": "drwxr-x---", "d/stored": f644 + "1", "d/deflated": f644 + strings.Repeat("2", 3000), "d/.wh.stored": f644 + "a plain name",
		"parents": d755, "parents/made": d755, "parents/made/su": "-rwxr-xr-x 3", "l": "-> d/stored", "parents/made/up": "-> ../.././d",
	}
	if diff := cmp.Diff(want, treetest.List(t, dir)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
}

func TestHostileZipsAreRefused(t *testing.T) {
	link := func(name, to string) zipEntry {
		return zipEntry{name: name, body: to, mode: fs.ModeSymlink | 0o777}
	}
	damaged := makeZip(t, zipEntry{name: "a", body: "0123456789"})
	damaged[bytes.Index(damaged, []byte("0123456789"))] ^= 1
	bomb := makeZip(t, zipEntry{name: "a", body: strings.Repeat("x", 5000), method: zip.Deflate})
	binary.LittleEndian.PutUint32(bomb[bytes.LastIndex(bomb, []byte("PK\x01\x02"))+24:], 100)
	shared := makeZip(t, zipEntry{name: "a", body: strings.Repeat("x", 5000)}, zipEntry{name: "b", body: strings.Repeat("y", 5000)})
	dir := shared[bytes.LastIndex(shared, []byte("PK\x01\x02")):]
	binary.LittleEndian.PutUint32(dir[42:], 0)      // b's data is a's
	binary.LittleEndian.PutUint32(dir[20:], 10_000) // and more than there is
	for name, c := range map[string]struct {
		zip  []byte
		lim  Limits
		want error
	}{
		"a name with ..":                       {makeZip(t, zipEntry{name: "a/../../victim"}), Limits{}, ErrUnsafe},
		"a name with backslashes":              {makeZip(t, zipEntry{name: `..\victim`}), Limits{}, ErrUnsafe},
		"an empty name":                        {makeZip(t, zipEntry{name: "", body: "x"}), Limits{}, ErrUnsafe},
		"a name twice":                         {makeZip(t, zipEntry{name: "a"}, zipEntry{name: "./a"}), Limits{}, ErrUnsafe},
		"a directory twice":                    {makeZip(t, zipEntry{name: "a/"}, zipEntry{name: "a//"}), Limits{}, ErrUnsafe},
		"a file and a directory of one name":   {makeZip(t, zipEntry{name: "a"}, zipEntry{name: "a/b"}), Limits{}, ErrUnsafe},
		"a name twice, by a link":              {makeZip(t, zipEntry{name: "d/"}, link("l", "d"), zipEntry{name: "d/a"}, zipEntry{name: "l/a"}), Limits{}, ErrUnsafe},
		"an absolute link":                     {makeZip(t, link("l", "/etc/passwd")), Limits{}, ErrUnsafe},
		"a link that climbs out":               {makeZip(t, link("d/l", "../../victim")), Limits{}, ErrUnsafe},
		"a link that climbs behind a name":     {makeZip(t, link("d/l", "x/../../victim")), Limits{}, ErrUnsafe},
		"a link that climbs out by a link":     {makeZip(t, zipEntry{name: "d/"}, link("a/b/c", "../../d"), link("a/b/c/l", "../../victim")), Limits{}, ErrUnsafe},
		"a link to nothing":                    {makeZip(t, link("l", "")), Limits{}, ErrUnsafe},
		"a link to too long a name":            {makeZip(t, link("l", strings.Repeat("x", 99))), Limits{Name: 98}, ErrTooBig},
		"a character device":                   {makeZip(t, zipEntry{name: "null", mode: fs.ModeDevice | fs.ModeCharDevice | 0o666}), Limits{}, ErrUnsafe},
		"a FIFO":                               {makeZip(t, zipEntry{name: "p", mode: fs.ModeNamedPipe | 0o666}), Limits{}, ErrUnsafe},
		"an encrypted entry":                   {makeZip(t, zipEntry{name: "a", flags: 1}), Limits{}, ErrUnsafe},
		"a changed byte":                       {damaged, Limits{}, ErrFormat},
		"more bytes than the directory says":   {bomb, Limits{}, ErrFormat},
		"entries with more data than there is": {shared, Limits{}, ErrUnsafe},
		"too many entries":                     {makeZip(t, zipEntry{name: "a"}, zipEntry{name: "b"}, zipEntry{name: "c"}), Limits{Entries: 2}, ErrTooBig},
		"too many bytes":                       {makeZip(t, zipEntry{name: "a", body: "12345"}, zipEntry{name: "b", body: "12345"}), Limits{Bytes: 9}, ErrTooBig},
		"no zip":                               {[]byte("no zip"), Limits{}, ErrFormat},
		"an end cut off":                       {makeZip(t, zipEntry{name: "a"})[:60], Limits{}, ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := unzip(t, c.lim, c.zip); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

func TestFilePutsOneFile(t *testing.T) {
	at := time.Unix(1_700_000_000, 5)
	put := func(tr *Tree) error {
		if err := tr.File("a/b", fs.ModeSetuid|0o640, at, strings.NewReader("12345")); err != nil {
			return err
		}
		return tr.File("/c", 0o600, time.Time{}, strings.NewReader(""))
	}
	dir, err := inside(t, Limits{Bytes: 5, Entries: 2}, put)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"a": d755, "a/b": "-rw-r----- 12345", "c": "-rw------- "}, treetest.List(t, dir)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if fi, err := os.Stat(filepath.Join(dir, "a/b")); err != nil || !fi.ModTime().Equal(at) {
		t.Errorf("a/b: %v, %v; want it to be of %v", fi, err, at)
	}
	for name, c := range map[string]struct {
		put  func(*Tree) error
		lim  Limits
		want error
	}{
		"a name with ..":       {func(tr *Tree) error { return tr.File("../victim", 0o644, at, strings.NewReader("x")) }, Limits{}, ErrUnsafe},
		"the root":             {func(tr *Tree) error { return tr.File("/", 0o644, at, strings.NewReader("x")) }, Limits{}, ErrUnsafe},
		"a name that is there": {func(tr *Tree) error { return errors.Join(put(tr), put(tr)) }, Limits{}, fs.ErrExist},
		"too many bytes":       {put, Limits{Bytes: 4}, ErrTooBig},
		"too many files":       {put, Limits{Entries: 1}, ErrTooBig},
		"a reader that fails": {func(tr *Tree) error {
			return tr.File("x", 0o644, at, io.MultiReader(strings.NewReader("1"), &failing{}))
		}, Limits{}, io.ErrNoProgress},
	} {
		if _, err := inside(t, c.lim, c.put); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, io.ErrNoProgress }
