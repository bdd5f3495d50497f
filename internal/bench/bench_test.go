package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

// program builds ampoule, as users have it.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ampoule")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../../cmd/ampoule").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func workDir(t *testing.T, need int64) string {
	t.Helper()
	dir, err := Dir(need)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFlatMemory: an image of 2 GiB is pulled in the memory that PID 1 may have for it, 64 MiB with its program. The pages
// of this program, which is three times as large, do not count. The first layer is large and of few bytes on the wire,
// the second is as large there as unpacked.
func TestFlatMemory(t *testing.T) {
	const limit = (64 - 11) * mib
	tool := Ours(program(t))
	layers := []Layer{
		{Content: Pattern, Compression: Zstd, Files: 7, Bytes: 1792 * mib},
		{Content: Random, Compression: Gzip, Files: 1, Bytes: 256 * mib},
	}
	for name, encrypted := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			dir := workDir(t, 3<<30)
			s, err := NewShelf(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			img, err := s.Make(t.Context(), "flat", encrypted, layers...)
			if err != nil {
				t.Fatal(err)
			}
			u, err := tool.Run(t.Context(), s, img, dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d MiB unpacked in %.1f s, peak %.1f MiB, %.1f of them without the program, held %d MiB",
				img.Bytes/mib, u.Wall.Seconds(), float64(u.Peak)/mib, float64(u.Anon)/mib, u.Held/mib)
			if u.Anon > limit || u.Anon < mib {
				t.Errorf("peak of memory without the program: %d MiB, want at most %d", u.Anon/mib, limit/mib)
			}
		})
	}
}

// TestQuick runs a small plan, with such peers as an earlier benchmark has fetched.
func TestQuick(t *testing.T) {
	tools := []*Tool{Ours(program(t))}
	t.Setenv("PATH", "") // no apt-get
	for _, suite := range []string{"bookworm", "trixie"} {
		peer, err := Peer(t.Context(), suite, debian.CacheDir(), false, io.Discard)
		if errors.Is(err, debian.ErrNotServed) {
			t.Logf("without %s: not in the cache; run `ampoule bench pull` to have it fetched", suite)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		tools = append(tools, peer)
	}
	p := Quick()
	p.Runs, p.Cores = 1, 1
	p.Cases = slices.DeleteFunc(p.Cases, func(c Case) bool { return strings.HasPrefix(c.Shape, "1 layer") && c.Content == Text })
	var progress bytes.Buffer
	r, err := Run(t.Context(), p, tools, workDir(t, p.Room()), &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	if len(r.Cases) != len(p.Cases) || len(r.Sizes) != len(p.Sizes) || len(r.Layers) != len(p.Layers) {
		t.Errorf("%d, %d and %d results", len(r.Cases), len(r.Sizes), len(r.Layers))
	}
	for _, c := range r.Cases {
		for n, f := range c.Tools {
			// umoci of both suites is 0.4.7, which knows no zstd.
			if cannot := n > 0 && c.Compression == Zstd; cannot != (f.Cannot != "") {
				t.Errorf("%s: %s cannot: %q", c.name(), r.Tools[n].Name, f.Cannot)
			} else if m := f.Median; !cannot && (m.Wall <= 0 || m.CPU <= 0 || m.Peak < mib || n == 0 && (m.Inner <= 0 || m.Inner > m.Wall)) {
				t.Errorf("%s: %s: %+v", c.name(), r.Tools[n].Name, m)
			} else if n > 0 && !cannot && isTmpfs("/dev/shm") && c.Compression == Raw && m.Held < c.Bytes {
				t.Errorf("%s: %s holds %d bytes, want its decrypted layout of at least %d", c.name(), r.Tools[n].Name, m.Held, c.Bytes)
			}
		}
		if c.Bound <= 0 || c.Parts.Digest <= 0 || (c.Parts.Inflate > 0) != (c.Compression != Raw) && c.Compression != Raw {
			t.Errorf("%s: parts %+v, bound %v", c.name(), c.Parts, c.Bound)
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}

	doc := filepath.Join(t.TempDir(), "doc.md")
	if err := r.Update(doc); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("update of nothing: %v", err)
	}
	write := func(s string) {
		if err := os.WriteFile(doc, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# No marks\n")
	if err := r.Update(doc); err == nil {
		t.Error("a document without marks is written to")
	}
	write("before\n" + beginMark + "old\n" + endMark + "after\n")
	for range 2 { // the second time over the first report
		if err := r.Update(doc); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("before\n"+beginMark+"\n"+r.Text()+"\n"+endMark+"after\n", string(got)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestTheDocumentHasTheMarks(t *testing.T) {
	b, err := os.ReadFile("../../docs/PERFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, rest, ok := strings.Cut(string(b), beginMark); !ok || !strings.Contains(rest, endMark) {
		t.Error("docs/PERFORMANCE.md has not the marks that `ampoule bench pull --update` looks for")
	}
}

func TestBound(t *testing.T) {
	for _, c := range []struct {
		name string
		p    Parts
		want int64
	}{
		{"parts that share two processors evenly", Parts{Digest: 2, HMAC: 2, Cipher: 1, Inflate: 1, DiffID: 2, Longest: 2}, 4},
		{"one part of a layer longer than all others together", Parts{Digest: 1, HMAC: 1, Inflate: 9, DiffID: 1, Longest: 9}, 9},
		{"many layers, whose longest part is short", Parts{Inflate: 100, Longest: 10}, 50},
	} {
		if got := c.p.Bound(2); int64(got) != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestContent: the same bytes for the same seed, others for another, as compressible as the name says.
func TestContent(t *testing.T) {
	const size = 4 * mib
	for content, want := range map[Content][2]float64{Random: {0.99, 1.01}, Text: {2, 4}, Pattern: {40, 1e6}} {
		t.Run(string(content), func(t *testing.T) {
			read := func(seed uint64) []byte {
				b, err := io.ReadAll(content.reader(seed, size))
				if err != nil || len(b) != size {
					t.Fatalf("%d bytes, %v", len(b), err)
				}
				return b
			}
			if !bytes.Equal(read(1), read(1)) || bytes.Equal(read(1), read(2)) {
				t.Error("is not its seed's")
			}
			var z bytes.Buffer
			l := Layer{Content: content, Compression: Zstd, Files: 1, Bytes: size}
			if err := l.write(t.Context(), 1, &z, io.Discard); err != nil {
				t.Fatal(err)
			}
			if ratio := float64(size) / float64(z.Len()); ratio < want[0] || ratio > want[1] {
				t.Errorf("compresses %.2f-fold, want %v", ratio, want)
			}
		})
	}
}

func TestMeasureSeesTheProgramsOwnPeak(t *testing.T) {
	hold := make([]byte, 200*mib) // ru_maxrss of the child would be at least this
	for n := range len(hold) / 4096 {
		hold[n*4096] = 1
	}
	u, err := Measure(exec.CommandContext(t.Context(), "sleep", "0.1"), "")
	if err != nil {
		t.Fatal(err)
	}
	if u.Peak < 100<<10 || u.Peak > 50*mib {
		t.Errorf("sleep had %d KiB at the highest", u.Peak>>10)
	}
	if hold[0] != 1 {
		t.Fatal("not held")
	}
	if _, err := Measure(exec.CommandContext(t.Context(), "sh", "-c", "echo why >&2; exit 3"), ""); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("%v, want what the program said", err)
	}
}
