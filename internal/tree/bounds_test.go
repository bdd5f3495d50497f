package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

func TestRatioIsBounded(t *testing.T) {
	const size = freeOfRatio + 10<<20
	bomb := treetest.Tar(t, treetest.File("zeros", strings.Repeat("\x00", size)))
	for name, c := range map[string]struct {
		packed int64
		want   error
	}{
		"a tenth in a thousandth is too much":         {9 << 10, ErrTooBig},
		"what is compressed less is none":             {11 << 10, nil},
		"what is not compressed has no ratio to keep": {0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := inside(t, Limits{}, func(tr *Tree) error {
				tr.Compressed(c.packed)
				return tr.Tar(tr.Charge(bytes.NewReader(bomb)))
			})
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
}

// TestWorkIsLinear takes allocations for the work, which every name listed or joined makes, and no other load changes.
func TestWorkIsLinear(t *testing.T) {
	files := func(n int, form string) (e []treetest.Entry) {
		for k := range n {
			e = append(e, treetest.File(fmt.Sprintf(form, k), ""))
		}
		return e
	}
	same := func(n int, name string) (e []treetest.Entry) {
		for range n {
			e = append(e, treetest.File(name, ""))
		}
		return e
	}
	for name, layers := range map[string]func(int) [][]treetest.Entry{
		"many files in one directory":          func(n int) [][]treetest.Entry { return [][]treetest.Entry{files(n, "d/%d")} },
		"many directories that no entry names": func(n int) [][]treetest.Entry { return [][]treetest.Entry{files(n, "%d/f")} },
		"many files over those of a layer":     func(n int) [][]treetest.Entry { return [][]treetest.Entry{files(n, "d/%d"), files(n, "d/%d")} },
		"many whiteouts":                       func(n int) [][]treetest.Entry { return [][]treetest.Entry{files(n, "d/%d"), files(n, "d/.wh.%d")} },
		"one file again and again":             func(n int) [][]treetest.Entry { return [][]treetest.Entry{same(n, "d/a"), same(n, "d/a")} },
		"whiteouts again and again of a layer's": func(n int) [][]treetest.Entry {
			return [][]treetest.Entry{files(n, "d/e/l%d"), append(files(n, "d/e/u%d"), same(n, ".wh.d")...)}
		},
		"opaque again and again": func(n int) [][]treetest.Entry {
			return [][]treetest.Entry{files(n, "d/l%d"), append(files(n, "d/u%d"), same(n, "d/.wh..wh..opq")...)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			work := func(n int) uint64 {
				var archives [][]byte
				for _, l := range layers(n) {
					archives = append(archives, treetest.Tar(t, l...))
				}
				var before, after runtime.MemStats
				_, err := inside(t, Limits{}, func(tr *Tree) error {
					runtime.ReadMemStats(&before)
					defer runtime.ReadMemStats(&after)
					for _, a := range archives {
						if err := tr.Tar(bytes.NewReader(a)); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				return after.Mallocs - before.Mallocs
			}
			if one, two := work(200), work(400); float64(two) > 2.3*float64(one) {
				t.Errorf("200 names take %d allocations, 400 take %d", one, two)
			}
		})
	}
}

// TestFirstLayerIsNotKeptInMemory: an image of one layer may have a million entries.
func TestFirstLayerIsNotKeptInMemory(t *testing.T) {
	_, err := inside(t, Limits{}, func(tr *Tree) error {
		err := tr.Tar(bytes.NewReader(treetest.Tar(t, treetest.File("a/b", ""), treetest.Entry{Name: "d/", Mode: 0o500}, treetest.File("d/e", ""))))
		if n := tr.made.n + tr.wholly.n; n != 0 {
			t.Errorf("%d paths are kept", n)
		}
		if n := len(tr.later); tr.privileged && n != 0 {
			t.Errorf("%d modes are kept", n)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// raw is a tar header that archive/tar would not write.
func raw(name string, typ byte, size int, set func(h []byte)) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x0000000000000\x00        ", size))
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	if set != nil {
		set(h)
	}
	var sum int
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func padded(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }

// pax is a header of PAX records.
func pax(records ...string) []byte {
	var b []byte
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n++
		}
		b = fmt.Appendf(b, "%d %s\n", n, r)
	}
	return append(raw("x", 'x', len(b), nil), padded(b)...)
}

func TestSparseFilesOfAllForms(t *testing.T) {
	// 4 KiB of x, a hole to 1 MiB, 100 bytes of y, a hole to 2 MiB.
	const size, second = 2 << 20, 1 << 20
	data := []byte(strings.Repeat("x", 4096) + strings.Repeat("y", 100))
	want := make([]byte, size)
	copy(want, data[:4096])
	copy(want[second:], data[4096:])
	spans := fmt.Sprintf("2\n0\n4096\n%d\n100\n", second)
	end := make([]byte, 1024)
	commas := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(spans, "2\n"), "\n"), "\n", ",")
	for name, archive := range map[string][]byte{
		"old GNU": append(raw("s", 'S', len(data), func(h []byte) {
			copy(h[257:], "ustar  \x00")
			copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00%011o\x00%011o\x00", 0, 4096, second, 100))
			copy(h[483:], fmt.Sprintf("%011o\x00", size))
		}), padded(data)...),
		"PAX 0.1": append(append(pax(fmt.Sprint("GNU.sparse.size=", size), "GNU.sparse.numblocks=2", "GNU.sparse.map="+commas, "GNU.sparse.name=s"),
			raw("GNUSparseFile.0/s", '0', len(data), nil)...), padded(data)...),
		"PAX 0.0": append(append(pax(fmt.Sprint("GNU.sparse.size=", size), "GNU.sparse.numblocks=2", "GNU.sparse.offset=0", "GNU.sparse.numbytes=4096",
			fmt.Sprint("GNU.sparse.offset=", second), "GNU.sparse.numbytes=100"), raw("s", '0', len(data), nil)...), padded(bytes.Clone(data))...),
		"PAX 1.0": append(append(pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", fmt.Sprint("GNU.sparse.realsize=", size)),
			raw("GNUSparseFile.0/s", '0', 512+len(data), nil)...), padded(append(padded([]byte(spans)), data...))...),
	} {
		t.Run(name, func(t *testing.T) {
			archive = append(archive, end...)
			dir, err := unpackTars(t, Limits{}, archive)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "s"))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, %v; they differ from what was packed", len(got), err)
			}
			fi, err := os.Stat(filepath.Join(dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			if blocks := fi.Sys().(*syscall.Stat_t).Blocks; blocks > 256 {
				t.Errorf("it takes %d blocks of 512 bytes: the holes are filled", blocks)
			}
			if _, err := unpackTars(t, Limits{Bytes: size - 1}, archive); !errors.Is(err, ErrTooBig) {
				t.Errorf("one byte less is allowed than it has with its holes: error %v, want ErrTooBig", err)
			}
		})
	}
}

func TestPAXRecords(t *testing.T) {
	long := strings.Repeat("d/", 60) + strings.Repeat("n", 200)
	file := func(records ...string) []byte {
		return append(append(pax(records...), raw("short", '0', 0, nil)...), make([]byte, 1024)...)
	}
	dir, err := unpackTars(t, Limits{}, file("path="+long))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, long)); err != nil {
		t.Errorf("a name of %d bytes: %v", len(long), err)
	}
	for name, c := range map[string]struct {
		archive []byte
		lim     Limits
		want    error
	}{
		"a path with ..":             {file("path=../victim"), Limits{}, ErrUnsafe},
		"too long a path":            {file("path=" + strings.Repeat("long/", 1000)), Limits{}, ErrTooBig},
		"more records than a MiB":    {file("comment=" + strings.Repeat("x", 1<<20)), Limits{}, ErrFormat},
		"a negative size":            {file("size=-1"), Limits{}, ErrFormat},
		"an owner below zero":        {file("uid=-1"), Limits{Chown: true}, ErrUnsafe},
		"global headers are entries": {bytes.Repeat(raw("g", 'g', 0, nil), 3), Limits{Entries: 2}, ErrTooBig},
	} {
		if _, err := unpackTars(t, c.lim, c.archive); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
}

func TestExtendedAttributes(t *testing.T) {
	layer := func(name string, typ byte, records ...string) []byte {
		return append(append(pax(records...), raw(name, typ, 0, nil)...), make([]byte, 1024)...)
	}
	capability := "SCHILY.xattr.security.capability=\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	archives := [][]byte{
		layer("f", '0', "SCHILY.xattr.user.a=1", capability, "SCHILY.xattr.trusted.b=1"),
		layer("d/", '5', "SCHILY.xattr.user.old=1", "SCHILY.xattr.user.a=1"),
		layer("d/", '5', "SCHILY.xattr.user.a=2"),
	}
	for policy, want := range map[XAttrs]map[string]string{
		DropXAttrs: {"f": "", "d": ""},
		UserXAttrs: {"f": "user.a=1", "d": "user.a=2"},
	} {
		dir, err := unpackTars(t, Limits{XAttrs: policy}, archives...)
		if errors.Is(err, unix.ENOTSUP) {
			t.Skipf("the temporary directory has no extended attributes: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, name := range []string{"f", "d"} {
			got[name] = xattrs(t, filepath.Join(dir, name))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("policy %d (-want +got):\n%s", policy, diff)
		}
		if fi, err := os.Stat(filepath.Join(dir, "f")); err != nil || fi.Mode() != 0o644 {
			t.Errorf("policy %d: f: %v, %v", policy, fi.Mode(), err)
		}
	}
}

func xattrs(t *testing.T, file string) string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := unix.Listxattr(file, b)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	var all []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(b[:max(n, 0)]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 100)
		k, err := unix.Getxattr(file, name, v)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, name+"="+string(v[:k]))
	}
	return strings.Join(all, " ")
}

// TestDirectoriesThatLockOutTheirOwner unpacks as one who is not root, to whom modes apply.
func TestDirectoriesThatLockOutTheirOwner(t *testing.T) {
	layers := [][]byte{
		treetest.Tar(t, treetest.Entry{Name: "d/", Mode: 0o111}, treetest.Entry{Name: "d/e/", Mode: 0o444}, treetest.File("d/e/f", "1"), treetest.Entry{Name: "gone/", Mode: 0o111}),
		treetest.Tar(t, treetest.File("d/e/g", "2"), treetest.File(".wh.gone", ""), treetest.File("gone/now", "3")),
	}
	const nobody = 65534
	dir, err := inside(t, Limits{}, func(tr *Tree) error {
		if tr.privileged {
			if err := unix.Fchown(tr.top.fd, nobody, nobody); err != nil {
				return err
			}
			tr.privileged = false
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			unix.SetfsuidRetUid(nobody)
			defer unix.SetfsuidRetUid(0)
		}
		for _, l := range layers {
			if err := tr.Tar(bytes.NewReader(l)); err != nil {
				return err
			}
		}
		return tr.Seal()
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]fs.FileMode{}
	for _, name := range []string{"d", "d/e", "gone"} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			if os.Geteuid() != 0 && name == "d/e" {
				continue // as it should be
			}
			t.Fatal(err)
		}
		got[name] = fi.Mode().Perm()
	}
	if got["d"] != 0o111 || got["gone"] != 0o755 || os.Geteuid() == 0 && got["d/e"] != 0o444 {
		t.Errorf("modes %v", got)
	}
}

// TestCutStreams: a file whose reader is cut short is no file that ends.
func TestCutStreams(t *testing.T) {
	_, err := inside(t, Limits{}, func(tr *Tree) error {
		return tr.File("a", 0o644, time.Now(), io.MultiReader(strings.NewReader("1"), cut{}))
	})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want that of the reader", err)
	}
	short := append(raw("a", '0', 5000, nil), make([]byte, 2000)...)
	if _, err := unpackTars(t, Limits{}, short); err == nil {
		t.Error("a tar that ends within a file: no error")
	}
}

type cut struct{}

func (cut) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
