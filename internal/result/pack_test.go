package result

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// open reads a packed result to its end.
func open(t testing.TB, b []byte, ids ...age.Identity) ([]byte, Digests, error) {
	t.Helper()
	o, err := Open(bytes.NewReader(b), ids)
	if err != nil {
		return nil, Digests{}, err
	}
	defer o.Close()
	plain, err := io.ReadAll(o)
	return plain, o.Digests(), err
}

func TestPackAndOpen(t *testing.T) {
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		to  []string
		ids []age.Identity
	}{"sealed": {[]string{x.Recipient().String()}, []age.Identity{x}}, "in clear": {nil, nil}} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t)
			want := files(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "zeros"), make([]byte, 4<<20), 0o644); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			d, err := Pack(&b, c.to, Tree{Dir: dir, Limit: 8 << 20}, extras)
			if err != nil {
				t.Fatal(err)
			}
			if b.Len() > 64<<10 {
				t.Errorf("4 MiB of zeros became %d bytes", b.Len())
			}
			plain, seen, err := open(t, b.Bytes(), c.ids...)
			if err != nil {
				t.Fatal(err)
			}
			if seen != d || d.Tar != sha256.Sum256(plain) || d.Sealed != sha256.Sum256(b.Bytes()) {
				t.Errorf("digests %x, read back %x", d, seen)
			}
			out := t.TempDir()
			if err := ExtractTar(bytes.NewReader(plain), out, 8<<20); err != nil {
				t.Fatal(err)
			}
			os.Remove(filepath.Join(out, "results/zeros"))
			if d := cmp.Diff(want, files(t, filepath.Join(out, "results"))); d != "" {
				t.Error(d)
			}
			var again bytes.Buffer
			other, err := Pack(&again, c.to, Tree{Dir: dir, Limit: 8 << 20}, extras)
			if err != nil || other.Tar == d.Tar {
				t.Errorf("the same results have the same digest twice: who guesses them can tell (%v)", err)
			}
		})
	}
}

func TestOpenTakesWhatOlderVersionsMade(t *testing.T) {
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	old := pack(t) // a tar of nothing
	var sealed bytes.Buffer
	w, err := Seal(&sealed, []string{x.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(old)
	w.Close()
	for name, c := range map[string]struct {
		b   []byte
		ids []age.Identity
	}{"sealed": {sealed.Bytes(), []age.Identity{x}}, "in clear": {old, nil}} {
		if got, _, err := open(t, c.b, c.ids...); err != nil || !bytes.Equal(got, old) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var sealed, clear, wide bytes.Buffer
	if _, err := Pack(&sealed, []string{x.Recipient().String()}, Tree{}, extras); err != nil {
		t.Fatal(err)
	}
	if _, err := Pack(&clear, nil, Tree{}, extras); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(&wide, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	z.Write(make([]byte, 1<<20))
	z.Flush() // so that its size is not known
	z.Write(make([]byte, 16<<20))
	z.Close()
	flipped := bytes.Clone(sealed.Bytes())
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		b    []byte
		ids  []age.Identity
		want error // nil: any
	}{
		"a sealed one without a key":       {sealed.Bytes(), nil, ErrSealed},
		"one in clear where it is sealed":  {clear.Bytes(), []age.Identity{x}, ErrNotSealed},
		"its last byte altered":            {flipped, []age.Identity{x}, nil},
		"its end missing":                  {sealed.Bytes()[:sealed.Len()-20], []age.Identity{x}, nil},
		"the end of one in clear missing":  {clear.Bytes()[:clear.Len()-9], nil, nil},
		"a larger window than is written":  {wide.Bytes(), nil, zstd.ErrWindowSizeExceeded},
		"no zstd after what looks like it": {[]byte(zstdMagic + "nonsense"), nil, nil},
	} {
		_, _, err := open(t, c.b, c.ids...)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestDigestsMatchTheirReceipt(t *testing.T) {
	d := Digests{Sealed: [32]byte{1}, Tar: [32]byte{2}}
	of := func(name, hex string) Subject { return Subject{name, Digest{hex + strings.Repeat("0", 62)}} }
	for name, c := range map[string]struct {
		subjects []Subject
		want     string
	}{
		"the file":             {[]Subject{of(SealedName, "01")}, ""},
		"the file in clear":    {[]Subject{of(ClearName, "01")}, ""},
		"the tar":              {[]Subject{of(TarName, "02")}, ""},
		"both":                 {[]Subject{of(TarName, "02"), of(SealedName, "01")}, ""},
		"another file":         {[]Subject{of(SealedName, "02")}, "about a result.tar.zst.age with SHA-256 02"},
		"another tar":          {[]Subject{of(SealedName, "01"), of(TarName, "01")}, "about a result.tar with"},
		"something else alone": {[]Subject{of("image", "01")}, "about no result"},
	} {
		err := d.Matches(&Statement{Subject: c.subjects})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestConsume: what is packed is gone, whatever names it had, and in the tar whole.
func TestConsume(t *testing.T) {
	dir := t.TempDir()
	want := make([]byte, 3*punchEvery+5)
	rand.Read(want)
	if err := os.WriteFile(filepath.Join(dir, "a"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteTar(&b, salt, Tree{Dir: dir, Limit: 8 << 20, Consume: true}, nil); err != nil {
		t.Fatal(err)
	}
	if left := files(t, dir); len(left) != 1 {
		t.Errorf("%d entries are left", len(left)-1)
	}
	out := t.TempDir()
	if err := ExtractTar(&b, out, 8<<20); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if got, err := os.ReadFile(filepath.Join(out, ResultsDir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes that differ, %v", name, len(got), err)
		}
	}
}

// TestPackingHoldsNothingTwice packs results into the file system that they are in, which is too small for both.
func TestPackingHoldsNothingTwice(t *testing.T) {
	const size, slack = 40 << 20, 6 << 20
	for name, consume := range map[string]bool{"consumed": true, "kept": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
				t.Skipf("mount: %v", err)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			results := filepath.Join(dir, "results")
			if err := os.Mkdir(results, 0o755); err != nil {
				t.Fatal(err)
			}
			random := make([]byte, size/2)
			rand.Read(random) // as small as it gets
			if err := os.WriteFile(filepath.Join(results, "one"), random, 0o644); err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				if err := os.WriteFile(filepath.Join(results, "part-"+string(rune('a'+i))), random[i<<20:(i+1)<<20], 0o644); err != nil {
					t.Fatal(err)
				}
			}
			f, err := os.Create(filepath.Join(dir, "result"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m := &watched{File: f, dir: dir}
			_, err = Pack(m, nil, Tree{Dir: results, Limit: 2 * size, Consume: consume}, nil)
			t.Logf("%d MiB of results: at most %d MiB in use", size>>20, m.peak>>20)
			switch {
			case consume && err != nil:
				t.Error(err)
			case consume && m.peak > size+slack:
				t.Errorf("%d bytes were in use, want %d", m.peak, size+slack)
			case !consume && !errors.Is(err, syscall.ENOSPC):
				t.Errorf("%v, want no space for both: the test shows nothing", err)
			}
		})
	}
}

// TestPackingTakesLittleMemory beside the results.
func TestPackingTakesLittleMemory(t *testing.T) {
	dir := t.TempDir()
	random := make([]byte, 64<<20)
	rand.Read(random)
	if err := os.WriteFile(filepath.Join(dir, "a"), random, 0o644); err != nil {
		t.Fatal(err)
	}
	random = nil
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Pack(io.Discard, []string{x.Recipient().String()}, Tree{Dir: dir, Limit: 128 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 6<<20 {
		t.Errorf("%d bytes were allocated", took)
	} else {
		t.Logf("%d bytes were allocated", took)
	}
}

// watched sees how full its file system gets.
type watched struct {
	*os.File
	dir  string
	peak int64
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.File.Write(b)
	var s syscall.Statfs_t
	if e := syscall.Statfs(w.dir, &s); e != nil {
		return n, e
	}
	w.peak = max(w.peak, int64(s.Blocks-s.Bfree)*s.Bsize)
	return n, err
}

// FuzzOpen reads results that somebody else made.
func FuzzOpen(f *testing.F) {
	var clear, sealed bytes.Buffer
	if _, err := Pack(&clear, nil, Tree{}, extras); err != nil {
		f.Fatal(err)
	}
	id, err := age.ParseX25519Identity("AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX")
	if err != nil {
		f.Fatal(err)
	}
	if _, err := Pack(&sealed, []string{id.Recipient().String()}, Tree{}, extras); err != nil {
		f.Fatal(err)
	}
	f.Add(clear.Bytes(), false)
	f.Add(sealed.Bytes(), true)
	f.Add(pack(f), false)
	f.Fuzz(func(t *testing.T, b []byte, key bool) {
		var ids []age.Identity
		if key {
			ids = append(ids, id)
		}
		o, err := Open(bytes.NewReader(b), ids)
		if err != nil {
			return
		}
		defer o.Close()
		n, err := io.Copy(io.Discard, io.LimitReader(o, 8<<20))
		if err == nil && n < 8<<20 && o.Digests().Sealed != sha256.Sum256(b) {
			t.Error("not all of the file is in its digest")
		}
	})
}
