package mkimage

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// fakeArchive serves tarballs by version; served lists them, newest first.
type fakeArchive struct {
	served   []string
	tarballs map[string]string
	asked    []string
}

func (a *fakeArchive) versions(context.Context, string) ([]string, error) { return a.served, nil }

func (a *fakeArchive) download(_ context.Context, _, version, _ string, w io.Writer) error {
	a.asked = append(a.asked, version)
	_, err := io.WriteString(w, a.tarballs[version])
	return err
}

const pinnedTarball = "the pinned source"

func testSources(t *testing.T, a *fakeArchive) sources {
	return sources{
		pin: kernelconfig.Source{
			Package: "linux-source-6.12", Version: "6.12.9-1", File: "linux-source-6.12.tar.xz",
			SHA256: hexSum([]byte(pinnedTarball)),
		},
		system:   filepath.Join(t.TempDir(), "linux-source-6.12.tar.xz"),
		dir:      filepath.Join(t.TempDir(), "source"),
		archive:  a,
		progress: io.Discard,
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindSource(t *testing.T) {
	for _, c := range []struct {
		name       string
		archive    fakeArchive
		prepare    func(t *testing.T, s *sources)
		simulation bool
		label      string
		version    string
		fetched    []string
		problem    []string // what the error has to say
	}{
		{
			name:    "the pinned version is served",
			archive: fakeArchive{served: []string{"6.12.10-1", "6.12.9-1"}, tarballs: map[string]string{"6.12.9-1": pinnedTarball}},
			label:   Pinned, version: "6.12.9-1", fetched: []string{"6.12.9-1"},
		},
		{
			name:       "the archive moved on: simulation takes the newest",
			archive:    fakeArchive{served: []string{"6.12.11-1", "6.12.10-1"}, tarballs: map[string]string{"6.12.11-1": "newer"}},
			simulation: true,
			label:      Unpinned, version: "6.12.11-1", fetched: []string{"6.12.11-1"},
		},
		{
			name:       "the newest is in the cache already",
			archive:    fakeArchive{served: []string{"6.12.11-1"}},
			prepare:    func(t *testing.T, s *sources) { write(t, s.cached("6.12.11-1"), "newer") },
			simulation: true,
			label:      Unpinned, version: "6.12.11-1",
		},
		{
			name:    "the archive moved on: production refuses",
			archive: fakeArchive{served: []string{"6.12.11-1"}},
			problem: []string{"6.12.9-1", hexSum([]byte(pinnedTarball)), "KERNEL_SOURCE="},
		},
		{
			name:       "no package lists",
			simulation: true,
			problem:    []string{"apt-get update", "KERNEL_SOURCE="},
		},
		{
			name:       "other bytes under the pinned version are refused even in simulation",
			archive:    fakeArchive{served: []string{"6.12.9-1"}, tarballs: map[string]string{"6.12.9-1": "trojan"}},
			simulation: true,
			fetched:    []string{"6.12.9-1"},
			problem:    []string{hexSum([]byte("trojan")), hexSum([]byte(pinnedTarball))},
		},
		{
			name:    "in the cache",
			prepare: func(t *testing.T, s *sources) { write(t, s.cached("6.12.9-1"), pinnedTarball) },
			label:   Pinned, version: "6.12.9-1",
		},
		{
			name:    "damaged in the cache",
			archive: fakeArchive{served: []string{"6.12.9-1"}, tarballs: map[string]string{"6.12.9-1": pinnedTarball}},
			prepare: func(t *testing.T, s *sources) { write(t, s.cached("6.12.9-1"), pinnedTarball[1:]) },
			label:   Pinned, version: "6.12.9-1", fetched: []string{"6.12.9-1"},
		},
		{
			name:    "the package is installed",
			prepare: func(t *testing.T, s *sources) { write(t, s.system, pinnedTarball) },
			label:   Pinned, version: "6.12.9-1",
		},
		{
			name:    "KERNEL_SOURCE is the pinned one",
			prepare: func(t *testing.T, s *sources) { s.given = write(t, filepath.Join(t.TempDir(), "x"), pinnedTarball) },
			label:   Pinned, version: "6.12.9-1",
		},
		{
			name:    "KERNEL_SOURCE is another: production refuses",
			prepare: func(t *testing.T, s *sources) { s.given = write(t, filepath.Join(t.TempDir(), "x"), "mine") },
			problem: []string{hexSum([]byte("mine")), hexSum([]byte(pinnedTarball)), "6.12.9-1"},
		},
		{
			name:       "KERNEL_SOURCE is another: simulation takes it",
			prepare:    func(t *testing.T, s *sources) { s.given = write(t, filepath.Join(t.TempDir(), "x"), "mine") },
			simulation: true,
			label:      Unpinned,
		},
		{
			name:       "KERNEL_SOURCE is not there",
			prepare:    func(t *testing.T, s *sources) { s.given = "/nonexistent/linux.tar.xz" },
			simulation: true,
			problem:    []string{"KERNEL_SOURCE", "/nonexistent/linux.tar.xz"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testSources(t, &c.archive)
			if c.prepare != nil {
				c.prepare(t, &s)
			}
			got, err := s.find(t.Context(), c.simulation)
			if !slices.Equal(c.archive.asked, c.fetched) {
				t.Errorf("fetched %q, want %q", c.archive.asked, c.fetched)
			}
			if c.problem != nil {
				if err == nil {
					t.Fatalf("got %+v, want an error", got)
				}
				for _, p := range c.problem {
					if !strings.Contains(err.Error(), p) {
						t.Errorf("error does not mention %q: %v", p, err)
					}
				}
				if left, _ := filepath.Glob(filepath.Join(s.dir, "*")); len(left) > 0 && c.fetched != nil {
					t.Errorf("a refused download stays in the cache: %q", left)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sum, _, err := sumFile(got.path)
			if err != nil || sum != got.sha256 || got.label != c.label || got.version != c.version {
				t.Errorf("got %+v (%v, sha256 %s), want %s %q", got, err, sum, c.label, c.version)
			}
		})
	}
}

func TestParseMadison(t *testing.T) {
	const out = `linux-source-6.12 | 6.12.117-1~deb12u1 | http://archive.example/debian-security bookworm-security/main amd64 Packages
linux-source-6.12 | 6.12.115-2~deb12u1 | http://archive.example/debian-security bookworm-security/main amd64 Packages
linux-source-6.12 | 6.13.1-1 | http://archive.example/debian sid/main amd64 Packages
 linux-6.12 | 6.12.117-1~deb12u1 | http://archive.example/debian-security bookworm-security/main Sources
N: Unable to locate package
`
	got := parseMadison(out, "linux-source-6.12")
	if want := []string{"6.12.117-1~deb12u1", "6.12.115-2~deb12u1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUnpackDeb(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is not here: not a Debian machine")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "p/DEBIAN/control"), "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.com>\nDescription: d\n")
	write(t, filepath.Join(dir, "p/usr/src/linux.tar.xz"), "tarball")
	deb := filepath.Join(dir, "p.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", filepath.Join(dir, "p"), deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var b strings.Builder
	if err := unpackDeb(t.Context(), deb, "usr/src/linux.tar.xz", &b); err != nil || b.String() != "tarball" {
		t.Errorf("got %q, %v", b.String(), err)
	}
	if err := unpackDeb(t.Context(), deb, "usr/src/other.tar.xz", io.Discard); err == nil || !strings.Contains(err.Error(), "other.tar.xz") {
		t.Errorf("a file that is not in the package: %v", err)
	}
	if err := unpackDeb(t.Context(), write(t, filepath.Join(dir, "bad.deb"), "x"), "x", io.Discard); err == nil {
		t.Error("a broken package was taken")
	}
}
