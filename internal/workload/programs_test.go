package workload

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

// The list of system calls is right if it is short, and if programs of each kind do not notice it. The Go program is the
// probe of the other tests.

func TestACProgramRuns(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler on this machine")
	}
	for _, link := range []string{"-static", "-static-pie"} {
		s, stdout, _ := sandbox(t)
		s.Args = []string{"/ordinary"}
		out, err := exec.Command(cc, "-Wall", "-O1", link, "-pthread", "-o", filepath.Join(s.Root, "ordinary"), "testdata/ordinary.c").CombinedOutput()
		if err != nil {
			t.Skipf("this machine's C compiler makes no program with %s: %v\n%s", link, err, out)
		}
		mustRun(t, s, Outcome{})
		if stdout.String() != "failed: 0\n" {
			t.Errorf("%s: %s", link, stdout)
		}
	}
}

func TestPythonAndNumPyRun(t *testing.T) {
	needs(t)
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), "trixie", []string{"base-files", "python3", "python3-numpy", "libopenblas0-pthread"}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	interpreter, err := root.Path("python3.13")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(filepath.Dir(filepath.Dir(interpreter)))
	openblas, err := filepath.Glob(filepath.Join(dir, "usr/lib/*/openblas-pthread"))
	if err != nil || len(openblas) != 1 {
		t.Fatalf("OpenBLAS in %q, %v", openblas, err)
	}
	for script, want := range map[string]string{"ordinary.py": `"user": 4242}`, "regression.py": "7.0\n"} {
		t.Run(script, func(t *testing.T) {
			s, stdout, stderr := sandbox(t)
			b, err := os.ReadFile(filepath.Join("testdata", script))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.Datasets, script), b, 0o644); err != nil {
				t.Fatal(err)
			}
			s.Root, s.ScratchBytes = dir, 256<<20
			s.Args = []string{"/usr/bin/python3.13", "datasets/" + script}
			s.Env = []string{"PATH=/usr/bin", "HOME=/tmp", "LD_LIBRARY_PATH=" + strings.TrimPrefix(openblas[0], dir)}
			mustRun(t, s, Outcome{})
			if !strings.HasSuffix(strings.TrimSpace(stdout.String()), strings.TrimSpace(want)) {
				t.Errorf("stdout %s, stderr %s, want %s", stdout, stderr, want)
			}
		})
	}
}
