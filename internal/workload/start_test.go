package workload

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgramsThatCannotBeStarted(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*testing.T, *Spec)
		want string
	}{
		{"a missing file", func(_ *testing.T, s *Spec) { s.Args = []string{"/no/such"} }, "/no/such as user 4242: no such file"},
		{"a name that PATH has not", func(_ *testing.T, s *Spec) { s.Args, s.Env = []string{"such"}, []string{"PATH=/bin:/no"} }, `no program "such" in PATH=/bin:/no`},
		{"no PATH", func(_ *testing.T, s *Spec) { s.Args = []string{"such"} }, "the environment has no PATH"},
		{"no arguments", func(_ *testing.T, s *Spec) { s.Args = nil }, "args is empty"},
		{"a script without its interpreter", func(t *testing.T, s *Spec) { script(t, s, "#!/usr/bin/python3\n") }, "interpreter"},
		{"neither program nor script", func(t *testing.T, s *Spec) { script(t, s, "hello\n") }, "with #! at its start"},
		{"a file that is not executable", func(t *testing.T, s *Spec) { script(t, s, "#!/probe\n"); os.Chmod(filepath.Join(s.Root, "x"), 0o644) }, "permission denied"},
		{"too few processes", func(_ *testing.T, s *Spec) { s.PIDs = minPIDs - 1 }, "15 processes and threads; the sandbox itself needs 16"},
		{"too little memory", func(_ *testing.T, s *Spec) { s.MemoryBytes = 1 << 20 }, "1048576 bytes of memory; the sandbox itself needs 8388608"},
		{"a file as working directory", func(_ *testing.T, s *Spec) { s.Cwd = "/probe" }, "working directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, _ := sandbox(t, "exit", "0")
			tc.edit(t, &s)
			out, err := run(t, t.Context(), s)
			if !errors.Is(err, ErrProgram) || !strings.Contains(err.Error(), tc.want) || out != (Outcome{}) {
				t.Errorf("outcome %+v, error %v, want ErrProgram with %q", out, err, tc.want)
			}
		})
	}
}

func script(t *testing.T, s *Spec, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Root, "x"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Args = []string{"/x"}
}

func TestProgramsByNameAndWorkingDirectoriesThatAreMissing(t *testing.T) {
	s, stdout, stderr := sandbox(t)
	s.Args, s.Env, s.Cwd = []string{"probe", "facts"}, []string{"PATH=/usr/bin:/"}, "/srv/deep"
	mustRun(t, s, Outcome{})
	var f facts
	if err := json.Unmarshal(stdout.Bytes(), &f); err != nil || f.Cwd != "/srv/deep" {
		t.Errorf("cwd %q, error %v, %s", f.Cwd, err, stderr)
	}
}

func TestSandboxesThatCannotBeMade(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*Spec)
		want string
	}{
		{"root as user", func(s *Spec) { s.UID = 0 }, "never runs as root"},
		{"root as group", func(s *Spec) { s.GID = 0 }, "never runs as root"},
		{"no image", func(s *Spec) { s.Root += "/none" }, "sandbox: root: overlay"},
		{"no datasets", func(s *Spec) { s.Datasets += "/none" }, "sandbox: root: /cocos/datasets"},
		{"no scratch", func(s *Spec) { s.Scratch += "/none" }, "sandbox: root: scratch"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _, _ := sandbox(t, "exit", "0")
			tc.edit(&s)
			_, err := run(t, t.Context(), s)
			if err == nil || errors.Is(err, ErrProgram) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q that is not ErrProgram", err, tc.want)
			}
		})
	}
}
