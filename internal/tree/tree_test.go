package tree

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

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// unpackTars applies layers to a tree, see [inside].
func unpackTars(t testing.TB, lim Limits, layers ...[]byte) (string, error) {
	t.Helper()
	return inside(t, lim, func(tr *Tree) error {
		for _, l := range layers {
			if err := tr.Tar(tr.Charge(bytes.NewReader(l))); err != nil {
				return err
			}
		}
		return nil
	})
}

// inside lets fill a tree inside a directory that also holds a file that no archive may reach, and returns the tree's path.
func inside(t testing.TB, lim Limits, fill func(*Tree) error) (string, error) {
	t.Helper()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "victim"), []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(outside, "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	tr, err := Open(dir, lim)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if err = fill(tr); err == nil {
		err = tr.Seal()
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

const (
	d755 = "drwxr-xr-x"
	f644 = "-rw-r--r-- "
)

func TestLayersApply(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]treetest.Entry
		want   map[string]string
	}{
		"a file over a file replaces it and does not write through hard links": {
			[][]treetest.Entry{{treetest.File("a", "1"), treetest.Hard("b", "a")}, {treetest.File("a", "2")}},
			map[string]string{"a": f644 + "2", "b": f644 + "1"},
		},
		"a file over a link replaces the link and not what it points to": {
			[][]treetest.Entry{{treetest.File("a", "1"), treetest.Link("b", "a")}, {treetest.File("b", "2")}},
			map[string]string{"a": f644 + "1", "b": f644 + "2"},
		},
		"a directory over a directory merges and takes the new mode": {
			[][]treetest.Entry{{{Name: "d/", Mode: 0o755}, treetest.File("d/a", "1")}, {{Name: "d/", Mode: 0o750}, treetest.File("d/b", "2")}},
			map[string]string{"d": "drwxr-x---", "d/a": f644 + "1", "d/b": f644 + "2"},
		},
		"a file over a directory replaces all of it": {
			[][]treetest.Entry{{treetest.File("d/a", "1")}, {treetest.File("d", "2")}},
			map[string]string{"d": f644 + "2"},
		},
		"a directory over a link replaces the link": {
			[][]treetest.Entry{{treetest.File("real/a", "1"), treetest.Link("d", "real")}, {{Name: "d/"}, treetest.File("d/b", "2")}},
			map[string]string{"real": d755, "real/a": f644 + "1", "d": d755, "d/b": f644 + "2"},
		},
		"parents that no entry names are made": {
			[][]treetest.Entry{{treetest.File("a/b/c", "1")}},
			map[string]string{"a": d755, "a/b": d755, "a/b/c": f644 + "1"},
		},
		"a merged /usr is written through, by relative and absolute links": {
			[][]treetest.Entry{
				{{Name: "usr/"}, {Name: "usr/lib/"}, treetest.Link("lib", "usr/lib"), treetest.Link("lib64", "/usr/lib")},
				{treetest.File("lib/x86_64-linux-gnu/libc.so", "c"), treetest.File("lib64/ld.so", "ld"), treetest.Hard("usr/lib/again.so", "lib/x86_64-linux-gnu/libc.so")},
			},
			map[string]string{
				"usr": d755, "usr/lib": d755, "lib": "-> usr/lib", "lib64": "-> /usr/lib", "usr/lib/x86_64-linux-gnu": d755,
				"usr/lib/x86_64-linux-gnu/libc.so": f644 + "c", "usr/lib/ld.so": f644 + "ld", "usr/lib/again.so": f644 + "c",
			},
		},
		"/var/run -> /run leads to the tree's own /run, made if it is missing": {
			[][]treetest.Entry{{treetest.Link("var/run", "/run"), treetest.File("var/run/pid", "1")}},
			map[string]string{"var": d755, "var/run": "-> /run", "run": d755, "run/pid": f644 + "1"},
		},
		"links that climb stop at the tree's root": {
			[][]treetest.Entry{{treetest.Link("a", "../../../../victim"), treetest.Link("up", "../../.."), treetest.File("up/x", "1")}},
			map[string]string{"a": "-> ../../../../victim", "up": "-> ../../..", "x": f644 + "1"},
		},
		"absolute names and dots are names inside the tree": {
			[][]treetest.Entry{{treetest.File("/etc/passwd", "1"), treetest.File("./etc//./group", "2"), {Name: "./", Mode: 0o755}}},
			map[string]string{"etc": d755, "etc/passwd": f644 + "1", "etc/group": f644 + "2"},
		},
		"set-uid, set-gid and sticky bits go, except sticky on directories": {
			[][]treetest.Entry{{{Name: "su", Mode: 0o6755}, {Name: "s", Mode: 0o1644}, {Name: "tmp/", Mode: 0o1777}, {Name: "g/", Mode: 0o2755}}},
			map[string]string{"su": "-rwxr-xr-x ", "s": f644, "tmp": "dtrwxrwxrwx", "g": d755},
		},
		"a read-only directory gets its files": {
			[][]treetest.Entry{{{Name: "d/", Mode: 0o555}, treetest.File("d/a", "1")}, {treetest.File("d/b", "2")}},
			map[string]string{"d": "dr-xr-xr-x", "d/a": f644 + "1", "d/b": f644 + "2"},
		},
		"a hard link to a link is another link": {
			[][]treetest.Entry{{treetest.Link("a", "/nowhere"), treetest.Hard("b", "a")}},
			map[string]string{"a": "-> /nowhere", "b": "-> /nowhere"},
		},
		"a hard link through an absolute link stays inside": {
			[][]treetest.Entry{{treetest.File("run/a", "1"), treetest.Link("var/run", "/run"), treetest.Hard("b", "/var/run/a")}},
			map[string]string{"run": d755, "run/a": f644 + "1", "var": d755, "var/run": "-> /run", "b": f644 + "1"},
		},
		"a whiteout hides a file and a tree of lower layers": {
			[][]treetest.Entry{{treetest.File("a", "1"), treetest.File("d/e/f", "2"), treetest.File("k", "3")}, {treetest.File(".wh.a", ""), treetest.File(".wh.d", "")}},
			map[string]string{"k": f644 + "3"},
		},
		"a whiteout of a linked directory removes the link only": {
			[][]treetest.Entry{{treetest.File("run/a", "1"), treetest.Link("var/run", "/run")}, {treetest.File("var/.wh.run", "")}},
			map[string]string{"run": d755, "run/a": f644 + "1", "var": d755},
		},
		"a whiteout below a linked directory hides what is there": {
			[][]treetest.Entry{{treetest.File("run/a", "1"), treetest.File("run/b", "2"), treetest.Link("var/run", "/run")}, {treetest.File("var/run/.wh.a", "")}},
			map[string]string{"run": d755, "run/b": f644 + "2", "var": d755, "var/run": "-> /run"},
		},
		"a whiteout of nothing is nothing, and makes no parents": {
			[][]treetest.Entry{{treetest.File("x/y/.wh.z", ""), treetest.File(".wh.q", "")}},
			map[string]string{},
		},
		"a whiteout does not hide its own layer, before or after": {
			[][]treetest.Entry{{treetest.File("a", "1"), treetest.File("d/old", "1")}, {treetest.File("a", "2"), treetest.File(".wh.a", ""), treetest.File(".wh.d", ""), treetest.File("d/new", "2")}, {treetest.File("d/newer", "3"), treetest.File(".wh.d", "")}},
			map[string]string{"a": f644 + "2", "d": d755, "d/newer": f644 + "3"},
		},
		"an opaque directory hides lower layers wherever its entry stands": {
			[][]treetest.Entry{
				{treetest.File("d/a", "1"), treetest.File("d/s/b", "1"), treetest.File("o", "1")},
				{treetest.File("d/s/new", "2"), treetest.File("d/c", "2"), treetest.File("d/.wh..wh..opq", ""), treetest.File("d/e", "2")},
			},
			map[string]string{"o": f644 + "1", "d": d755, "d/s": d755, "d/s/new": f644 + "2", "d/c": f644 + "2", "d/e": f644 + "2"},
		},
		"an opaque root hides all": {
			[][]treetest.Entry{{treetest.File("a", "1"), treetest.File("d/b", "1")}, {treetest.File(".wh..wh..opq", ""), treetest.File("d/c", "2")}},
			map[string]string{"d": d755, "d/c": f644 + "2"},
		},
		"a directory made again after its whiteout has its new mode": {
			[][]treetest.Entry{{{Name: "d/", Mode: 0o700}, treetest.File("d/a", "1")}, {treetest.File(".wh.d", "")}, {treetest.File("d/b", "2")}},
			map[string]string{"d": d755, "d/b": f644 + "2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, treetest.Tar(t, l...))
			}
			dir, err := unpackTars(t, Limits{}, layers...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, treetest.List(t, dir)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	chain := []treetest.Entry{}
	for n := range 60 {
		chain = append(chain, treetest.Link(fmt.Sprint("l", n), fmt.Sprint("l", n+1)))
	}
	for name, c := range map[string]struct {
		layers [][]treetest.Entry
		lim    Limits
		want   error
	}{
		"a name with ..":                      {[][]treetest.Entry{{treetest.File("a/../../victim", "x")}}, Limits{}, ErrUnsafe},
		"only ..":                             {[][]treetest.Entry{{{Name: "../", Type: tar.TypeDir}}}, Limits{}, ErrUnsafe},
		"an absolute name with ..":            {[][]treetest.Entry{{treetest.File("/../victim", "x")}}, Limits{}, ErrUnsafe},
		"a root that is a file":               {[][]treetest.Entry{{treetest.File("./.", "x")}}, Limits{}, ErrUnsafe},
		"a root that is a link":               {[][]treetest.Entry{{treetest.Link("/", "/victim")}}, Limits{}, ErrUnsafe},
		"a hard link to outside":              {[][]treetest.Entry{{treetest.Hard("v", "../victim")}}, Limits{}, ErrUnsafe},
		"a hard link to outside, by a link":   {[][]treetest.Entry{{treetest.Link("up", ".."), treetest.Hard("v", "up/victim")}}, Limits{}, ErrUnsafe},
		"a hard link to outside, absolute":    {[][]treetest.Entry{{treetest.Hard("v", "/etc/hostname")}}, Limits{}, ErrUnsafe},
		"a hard link to a directory":          {[][]treetest.Entry{{{Name: "d/"}, treetest.Hard("v", "d")}}, Limits{}, ErrUnsafe},
		"a hard link to itself":               {[][]treetest.Entry{{treetest.File("a", "1"), treetest.Hard("a", "a")}}, Limits{}, ErrUnsafe},
		"a hard link to the root":             {[][]treetest.Entry{{treetest.Hard("a", "/")}}, Limits{}, ErrUnsafe},
		"a loop of links as parent":           {[][]treetest.Entry{{treetest.Link("a", "b"), treetest.Link("b", "a"), treetest.File("a/x", "1")}}, Limits{}, ErrUnsafe},
		"a link to itself as parent":          {[][]treetest.Entry{{treetest.Link("a", "a/a/a"), treetest.File("a/x", "1")}}, Limits{}, ErrUnsafe},
		"a chain of too many links as parent": {[][]treetest.Entry{append(chain, treetest.File("l0/x", "1"))}, Limits{}, ErrUnsafe},
		"a file as parent":                    {[][]treetest.Entry{{treetest.File("a", "1"), treetest.File("a/b", "2")}}, Limits{}, ErrUnsafe},
		"a character device":                  {[][]treetest.Entry{{{Name: "null", Type: tar.TypeChar}}}, Limits{}, ErrUnsafe},
		"a block device":                      {[][]treetest.Entry{{{Name: "sda", Type: tar.TypeBlock}}}, Limits{}, ErrUnsafe},
		"a FIFO":                              {[][]treetest.Entry{{{Name: "p", Type: tar.TypeFifo}}}, Limits{}, ErrUnsafe},
		"an unknown type":                     {[][]treetest.Entry{{{Name: "p", Type: 'V'}}}, Limits{}, ErrUnsafe},
		"whiteout of no name":                 {[][]treetest.Entry{{treetest.File("d/a", "1")}, {treetest.File("d/.wh.", "")}}, Limits{}, ErrUnsafe},
		"whiteout of the directory itself":    {[][]treetest.Entry{{treetest.File("d/a", "1")}, {treetest.File("d/.wh..", "")}}, Limits{}, ErrUnsafe},
		"whiteout of the parent":              {[][]treetest.Entry{{treetest.File("d/a", "1")}, {treetest.File("d/.wh...", "")}}, Limits{}, ErrUnsafe},
		"whiteout of the root's parent":       {[][]treetest.Entry{{treetest.File(".wh...", "")}}, Limits{}, ErrUnsafe},
		"whiteout metadata of old":            {[][]treetest.Entry{{treetest.File(".wh..wh.plnk", "")}}, Limits{}, ErrUnsafe},
		"a whiteout that is a directory":      {[][]treetest.Entry{{{Name: ".wh.d/"}}}, Limits{}, ErrUnsafe},
		"a file in a whiteout":                {[][]treetest.Entry{{treetest.File(".wh.d/a", "")}}, Limits{}, ErrUnsafe},
		"too many entries":                    {[][]treetest.Entry{{treetest.File("a", ""), treetest.File("b", "")}, {treetest.File("c", "")}}, Limits{Entries: 2}, ErrTooBig},
		"too many bytes":                      {[][]treetest.Entry{{treetest.File("a", "12345")}, {treetest.File("b", "12345")}}, Limits{Bytes: 9}, ErrTooBig},
		"too deep a name":                     {[][]treetest.Entry{{treetest.File(strings.Repeat("a/", 9)+"x", "")}}, Limits{Depth: 9}, ErrTooBig},
		"too deep a path by links":            {[][]treetest.Entry{{treetest.Link("l", strings.Repeat("a/", 12)), treetest.File("l/x", "")}}, Limits{Depth: 9}, ErrTooBig},
		"too long a name":                     {[][]treetest.Entry{{treetest.File(strings.Repeat("abc/", 20), "")}}, Limits{Name: 79}, ErrTooBig},
		"too long a component":                {[][]treetest.Entry{{treetest.File(strings.Repeat("a", 256), "")}}, Limits{}, ErrTooBig},
		"an owner that means leave it":        {[][]treetest.Entry{{{Name: "a", UID: 1<<32 - 1}}}, Limits{Chown: true}, ErrUnsafe},
		"a link to too long a name":           {[][]treetest.Entry{{treetest.Link("a", strings.Repeat("x", 99))}}, Limits{Name: 98}, ErrUnsafe},
	} {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, treetest.Tar(t, l...))
			}
			if _, err := unpackTars(t, c.lim, layers...); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

func TestTruncatedArchiveIsRefused(t *testing.T) {
	b := treetest.Tar(t, treetest.File("a", strings.Repeat("x", 4000)))
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
	f.Add(treetest.Tar(f, treetest.File("a/b", "1"), treetest.Link("l", "/a"), treetest.File("l/c", "2")), treetest.Tar(f, treetest.File("a/.wh.b", ""), treetest.Hard("h", "l/c")))
	f.Add(treetest.Tar(f, treetest.Link("a", ".."), treetest.File("a/victim", "x")), treetest.Tar(f, treetest.File(".wh...", "")))
	f.Add(gnuSparse(512), treetest.Tar(f, treetest.File("d/.wh..wh..opq", "")))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		unpackTars(t, Limits{Bytes: 1 << 20, Entries: 200}, one, two) // it looks outside by itself
	})
}
