package image

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// unpackTars applies layers to a tree inside a directory that also holds a file that no
// layer may reach, and returns the tree's path.
func unpackTars(t testing.TB, lim Limits, layers ...[]byte) (string, error) {
	t.Helper()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "victim"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(outside, "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	tr, err := openTree(dir, lim)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	for _, l := range layers {
		if err = tr.apply(bytes.NewReader(l)); err != nil {
			break
		}
	}
	if err == nil {
		err = tr.seal()
	}
	left, rerr := os.ReadDir(outside)
	if rerr != nil {
		t.Fatal(rerr)
	}
	b, rerr := os.ReadFile(filepath.Join(outside, "victim"))
	if len(left) != 2 || rerr != nil || string(b) != "untouched" {
		t.Fatalf("the archive reached outside the tree: %v, victim %q, %v", left, b, rerr)
	}
	if fi, serr := os.Lstat(filepath.Join(outside, "victim")); serr != nil || fi.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Fatalf("the archive linked to a file outside the tree: %v, %v", fi, serr)
	}
	return dir, err
}

func link(name, to string) entry { return entry{name: name, typ: tar.TypeSymlink, link: to} }
func hard(name, to string) entry { return entry{name: name, typ: tar.TypeLink, link: to} }
func file(name, body string) entry {
	return entry{name: name, body: body}
}

const (
	d755 = "drwxr-xr-x"
	f644 = "-rw-r--r-- "
)

func TestLayersApply(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]entry
		want   map[string]string
	}{
		"a file over a file replaces it and does not write through hard links": {
			[][]entry{{file("a", "1"), hard("b", "a")}, {file("a", "2")}},
			map[string]string{"a": f644 + "2", "b": f644 + "1"},
		},
		"a file over a link replaces the link and not what it points to": {
			[][]entry{{file("a", "1"), link("b", "a")}, {file("b", "2")}},
			map[string]string{"a": f644 + "1", "b": f644 + "2"},
		},
		"a directory over a directory merges and takes the new mode": {
			[][]entry{{{name: "d/", mode: 0o755}, file("d/a", "1")}, {{name: "d/", mode: 0o750}, file("d/b", "2")}},
			map[string]string{"d": "drwxr-x---", "d/a": f644 + "1", "d/b": f644 + "2"},
		},
		"a file over a directory replaces all of it": {
			[][]entry{{file("d/a", "1")}, {file("d", "2")}},
			map[string]string{"d": f644 + "2"},
		},
		"a directory over a link replaces the link": {
			[][]entry{{file("real/a", "1"), link("d", "real")}, {{name: "d/"}, file("d/b", "2")}},
			map[string]string{"real": d755, "real/a": f644 + "1", "d": d755, "d/b": f644 + "2"},
		},
		"parents that no entry names are made": {
			[][]entry{{file("a/b/c", "1")}},
			map[string]string{"a": d755, "a/b": d755, "a/b/c": f644 + "1"},
		},
		"a merged /usr is written through, by relative and absolute links": {
			[][]entry{
				{{name: "usr/"}, {name: "usr/lib/"}, link("lib", "usr/lib"), link("lib64", "/usr/lib")},
				{file("lib/x86_64-linux-gnu/libc.so", "c"), file("lib64/ld.so", "ld"), hard("usr/lib/again.so", "lib/x86_64-linux-gnu/libc.so")},
			},
			map[string]string{
				"usr": d755, "usr/lib": d755, "lib": "-> usr/lib", "lib64": "-> /usr/lib", "usr/lib/x86_64-linux-gnu": d755,
				"usr/lib/x86_64-linux-gnu/libc.so": f644 + "c", "usr/lib/ld.so": f644 + "ld", "usr/lib/again.so": f644 + "c",
			},
		},
		"/var/run -> /run leads to the tree's own /run, made if it is missing": {
			[][]entry{{link("var/run", "/run"), file("var/run/pid", "1")}},
			map[string]string{"var": d755, "var/run": "-> /run", "run": d755, "run/pid": f644 + "1"},
		},
		"links that climb stop at the tree's root": {
			[][]entry{{link("a", "../../../../victim"), link("up", "../../.."), file("up/x", "1")}},
			map[string]string{"a": "-> ../../../../victim", "up": "-> ../../..", "x": f644 + "1"},
		},
		"absolute names and dots are names inside the tree": {
			[][]entry{{file("/etc/passwd", "1"), file("./etc//./group", "2"), {name: "./", mode: 0o755}}},
			map[string]string{"etc": d755, "etc/passwd": f644 + "1", "etc/group": f644 + "2"},
		},
		"set-uid, set-gid and sticky bits go, except sticky on directories": {
			[][]entry{{{name: "su", mode: 0o6755}, {name: "s", mode: 0o1644}, {name: "tmp/", mode: 0o1777}, {name: "g/", mode: 0o2755}}},
			map[string]string{"su": "-rwxr-xr-x ", "s": f644, "tmp": "dtrwxrwxrwx", "g": d755},
		},
		"a read-only directory gets its files": {
			[][]entry{{{name: "d/", mode: 0o555}, file("d/a", "1")}, {file("d/b", "2")}},
			map[string]string{"d": "dr-xr-xr-x", "d/a": f644 + "1", "d/b": f644 + "2"},
		},
		"a hard link to a link is another link": {
			[][]entry{{link("a", "/nowhere"), hard("b", "a")}},
			map[string]string{"a": "-> /nowhere", "b": "-> /nowhere"},
		},
		"a hard link through an absolute link stays inside": {
			[][]entry{{file("run/a", "1"), link("var/run", "/run"), hard("b", "/var/run/a")}},
			map[string]string{"run": d755, "run/a": f644 + "1", "var": d755, "var/run": "-> /run", "b": f644 + "1"},
		},
		"a whiteout hides a file and a tree of lower layers": {
			[][]entry{{file("a", "1"), file("d/e/f", "2"), file("k", "3")}, {file(".wh.a", ""), file(".wh.d", "")}},
			map[string]string{"k": f644 + "3"},
		},
		"a whiteout of a linked directory removes the link only": {
			[][]entry{{file("run/a", "1"), link("var/run", "/run")}, {file("var/.wh.run", "")}},
			map[string]string{"run": d755, "run/a": f644 + "1", "var": d755},
		},
		"a whiteout below a linked directory hides what is there": {
			[][]entry{{file("run/a", "1"), file("run/b", "2"), link("var/run", "/run")}, {file("var/run/.wh.a", "")}},
			map[string]string{"run": d755, "run/b": f644 + "2", "var": d755, "var/run": "-> /run"},
		},
		"a whiteout of nothing is nothing, and makes no parents": {
			[][]entry{{file("x/y/.wh.z", ""), file(".wh.q", "")}},
			map[string]string{},
		},
		"a whiteout does not hide its own layer, before or after": {
			[][]entry{{file("a", "1"), file("d/old", "1")}, {file("a", "2"), file(".wh.a", ""), file(".wh.d", ""), file("d/new", "2")}, {file("d/newer", "3"), file(".wh.d", "")}},
			map[string]string{"a": f644 + "2", "d": d755, "d/newer": f644 + "3"},
		},
		"an opaque directory hides lower layers wherever its entry stands": {
			[][]entry{
				{file("d/a", "1"), file("d/s/b", "1"), file("o", "1")},
				{file("d/s/new", "2"), file("d/c", "2"), file("d/.wh..wh..opq", ""), file("d/e", "2")},
			},
			map[string]string{"o": f644 + "1", "d": d755, "d/s": d755, "d/s/new": f644 + "2", "d/c": f644 + "2", "d/e": f644 + "2"},
		},
		"an opaque root hides all": {
			[][]entry{{file("a", "1"), file("d/b", "1")}, {file(".wh..wh..opq", ""), file("d/c", "2")}},
			map[string]string{"d": d755, "d/c": f644 + "2"},
		},
		"a directory made again after its whiteout has its new mode": {
			[][]entry{{{name: "d/", mode: 0o700}, file("d/a", "1")}, {file(".wh.d", "")}, {file("d/b", "2")}},
			map[string]string{"d": d755, "d/b": f644 + "2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, tarOf(t, l...))
			}
			dir, err := unpackTars(t, Limits{}, layers...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, list(t, dir)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	chain := []entry{}
	for n := range 60 {
		chain = append(chain, link(fmt.Sprint("l", n), fmt.Sprint("l", n+1)))
	}
	for name, c := range map[string]struct {
		layers [][]entry
		lim    Limits
		want   error
	}{
		"a name with ..":                      {[][]entry{{file("a/../../victim", "x")}}, Limits{}, ErrUnsafe},
		"only ..":                             {[][]entry{{{name: "../", typ: tar.TypeDir}}}, Limits{}, ErrUnsafe},
		"an absolute name with ..":            {[][]entry{{file("/../victim", "x")}}, Limits{}, ErrUnsafe},
		"a root that is a file":               {[][]entry{{file("./.", "x")}}, Limits{}, ErrUnsafe},
		"a root that is a link":               {[][]entry{{link("/", "/victim")}}, Limits{}, ErrUnsafe},
		"a hard link to outside":              {[][]entry{{hard("v", "../victim")}}, Limits{}, ErrUnsafe},
		"a hard link to outside, by a link":   {[][]entry{{link("up", ".."), hard("v", "up/victim")}}, Limits{}, ErrUnsafe},
		"a hard link to outside, absolute":    {[][]entry{{hard("v", "/etc/hostname")}}, Limits{}, ErrUnsafe},
		"a hard link to a directory":          {[][]entry{{{name: "d/"}, hard("v", "d")}}, Limits{}, ErrUnsafe},
		"a hard link to itself":               {[][]entry{{file("a", "1"), hard("a", "a")}}, Limits{}, ErrUnsafe},
		"a hard link to the root":             {[][]entry{{hard("a", "/")}}, Limits{}, ErrUnsafe},
		"a loop of links as parent":           {[][]entry{{link("a", "b"), link("b", "a"), file("a/x", "1")}}, Limits{}, ErrUnsafe},
		"a link to itself as parent":          {[][]entry{{link("a", "a/a/a"), file("a/x", "1")}}, Limits{}, ErrUnsafe},
		"a chain of too many links as parent": {[][]entry{append(chain, file("l0/x", "1"))}, Limits{}, ErrUnsafe},
		"a file as parent":                    {[][]entry{{file("a", "1"), file("a/b", "2")}}, Limits{}, ErrUnsafe},
		"a character device":                  {[][]entry{{{name: "null", typ: tar.TypeChar}}}, Limits{}, ErrUnsafe},
		"a block device":                      {[][]entry{{{name: "sda", typ: tar.TypeBlock}}}, Limits{}, ErrUnsafe},
		"a FIFO":                              {[][]entry{{{name: "p", typ: tar.TypeFifo}}}, Limits{}, ErrUnsafe},
		"an unknown type":                     {[][]entry{{{name: "p", typ: 'V'}}}, Limits{}, ErrUnsafe},
		"whiteout of no name":                 {[][]entry{{file("d/a", "1")}, {file("d/.wh.", "")}}, Limits{}, ErrUnsafe},
		"whiteout of the directory itself":    {[][]entry{{file("d/a", "1")}, {file("d/.wh..", "")}}, Limits{}, ErrUnsafe},
		"whiteout of the parent":              {[][]entry{{file("d/a", "1")}, {file("d/.wh...", "")}}, Limits{}, ErrUnsafe},
		"whiteout of the root's parent":       {[][]entry{{file(".wh...", "")}}, Limits{}, ErrUnsafe},
		"whiteout metadata of old":            {[][]entry{{file(".wh..wh.plnk", "")}}, Limits{}, ErrUnsafe},
		"a whiteout that is a directory":      {[][]entry{{{name: ".wh.d/"}}}, Limits{}, ErrUnsafe},
		"a file in a whiteout":                {[][]entry{{file(".wh.d/a", "")}}, Limits{}, ErrUnsafe},
		"too many entries":                    {[][]entry{{file("a", ""), file("b", "")}, {file("c", "")}}, Limits{Entries: 2}, ErrTooBig},
		"too many bytes":                      {[][]entry{{file("a", "12345")}, {file("b", "12345")}}, Limits{Bytes: 9}, ErrTooBig},
		"too deep a name":                     {[][]entry{{file(strings.Repeat("a/", 9)+"x", "")}}, Limits{Depth: 9}, ErrTooBig},
		"too deep a path by links":            {[][]entry{{link("l", strings.Repeat("a/", 12)), file("l/x", "")}}, Limits{Depth: 9}, ErrTooBig},
		"too long a name":                     {[][]entry{{file(strings.Repeat("abc/", 20), "")}}, Limits{Name: 79}, ErrTooBig},
		"too long a component":                {[][]entry{{file(strings.Repeat("a", 256), "")}}, Limits{}, ErrTooBig},
		"an owner that means leave it":        {[][]entry{{{name: "a", uid: 1<<32 - 1}}}, Limits{Chown: true}, ErrUnsafe},
		"a link to too long a name":           {[][]entry{{link("a", strings.Repeat("x", 99))}}, Limits{Name: 98}, ErrUnsafe},
	} {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, tarOf(t, l...))
			}
			if _, err := unpackTars(t, c.lim, layers...); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

func TestTruncatedArchiveIsRefused(t *testing.T) {
	b := tarOf(t, file("a", strings.Repeat("x", 4000)))
	for _, cut := range []int{100, 600, 3000} {
		if _, err := unpackTars(t, Limits{}, b[:cut]); err == nil {
			t.Errorf("cut at %d bytes: no error", cut)
		}
	}
}

func TestSparseFileIsChargedForItsHoles(t *testing.T) {
	hole := gnuSparse(1 << 40)
	if _, err := unpackTars(t, Limits{Bytes: 1 << 20}, hole); !errors.Is(err, ErrTooBig) {
		t.Errorf("error %v, want ErrTooBig", err)
	}
}

// gnuSparse is an archive of one old-GNU sparse file of the given size, all hole.
func gnuSparse(size int64) []byte {
	h := make([]byte, 512)
	copy(h, "s")
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], "00000000000\x00")
	copy(h[136:], "00000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	// One zero-length data entry at the end of the file.
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", 0, 0))
	h[483] = 0x80 // a binary number follows
	binary.BigEndian.PutUint64(h[487:], uint64(size))
	copy(h[148:], "        ")
	var sum int
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(h, make([]byte, 1024)...)
}

func TestOwnersAndTimes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing owners needs root")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	at := time.Unix(1_700_000_000, 0)
	for _, h := range []*tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1, Gid: 2, ModTime: time.Unix(-5, 0)},
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 3, Gid: 4, ModTime: at},
		{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 5, Gid: 6, ModTime: at},
		{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "/victim", Uid: 7, Gid: 8},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	for _, chown := range []bool{false, true} {
		dir, err := unpackTars(t, Limits{Chown: chown}, b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string][2]uint32{".": {1, 2}, "d": {3, 4}, "d/f": {5, 6}, "d/l": {7, 8}} {
			if !chown {
				want = [2]uint32{0, 0}
			}
			fi, err := os.Lstat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			st := fi.Sys().(*syscall.Stat_t)
			if got := [2]uint32{st.Uid, st.Gid}; got != want {
				t.Errorf("chown %v: %s belongs to %v, want %v", chown, name, got, want)
			}
			if strings.HasPrefix(name, "d") && name != "d/l" && !fi.ModTime().Equal(at) {
				t.Errorf("%s has time %v, want %v", name, fi.ModTime(), at)
			}
		}
	}
}

func FuzzUntar(f *testing.F) {
	f.Add(tarOf(f, file("a/b", "1"), link("l", "/a"), file("l/c", "2")), tarOf(f, file("a/.wh.b", ""), hard("h", "l/c")))
	f.Add(tarOf(f, link("a", ".."), file("a/victim", "x")), tarOf(f, file(".wh...", "")))
	f.Add(gnuSparse(512), tarOf(f, file("d/.wh..wh..opq", "")))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		unpackTars(t, Limits{Bytes: 1 << 20, Entries: 200}, one, two) // it looks outside by itself
	})
}
