package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// module is built for WASI preview 1, by the compiler that is there anyway.
func module(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "algo")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./testdata/module")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func TestRun(t *testing.T) {
	algo := module(t)
	for name, c := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
		result string // name below results; "": none
	}{
		"its own status, arguments, environment and output": {[]string{"exit", "7", "a b"}, 7, "out 7,a b hello\n", "err\n", ""},
		"success":                                 {[]string{"exit", "0"}, 0, "out 0 hello\n", "err\n", ""},
		"a status that 8 bits do not hold":        {[]string{"exit", "256"}, 255, "out 256 hello\n", "err\n", ""},
		"from a dataset to a result, relative":    {[]string{"copy", "datasets/table.csv", "results/copy.csv"}, 0, "", "", "copy.csv"},
		"from a dataset to a result, with a dot":  {[]string{"copy", "./datasets/table.csv", "./results/copy.csv"}, 0, "", "", "copy.csv"},
		"from a dataset to a result, absolute":    {[]string{"copy", "/cocos/datasets/table.csv", "/cocos/results/copy.csv"}, 0, "", "", "copy.csv"},
		"a result where Cocos' WasmEdge has them": {[]string{"copy", "datasets/table.csv", "copy.csv"}, 0, "", "", "copy.csv"},
		"a dataset is not written to":             {[]string{"copy", "datasets/table.csv", "datasets/other.csv"}, 1, "", "open datasets/other.csv: ", ""},
		"nothing else is there":                   {[]string{"copy", "/etc/passwd", "results/copy.csv"}, 1, "", "open /etc/passwd: ", ""},
		"nothing is above a dataset":              {[]string{"copy", "datasets/../secret", "results/copy.csv"}, 1, "", "open datasets/../secret: ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, stdout, stderr := inputs(t), &bytes.Buffer{}, &bytes.Buffer{}
			code := run(append([]string{algo}, c.args...), []string{"PWD=/cocos", "GREETING=hello"}, f, stdout, stderr)
			if code != c.code || stdout.String() != c.stdout || !strings.HasPrefix(stderr.String(), c.stderr) || c.stderr == "" && stderr.Len() > 0 {
				t.Errorf("status %d, %q, %q; want %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
			files, err := filepath.Glob(filepath.Join(f.results, "*"))
			if err != nil || len(files) > 1 || (c.result != "") != (len(files) == 1) {
				t.Fatalf("results %q, %v", files, err)
			}
			if c.result == "" {
				return
			}
			if b, err := os.ReadFile(filepath.Join(f.results, c.result)); err != nil || string(b) != "1\n" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

func inputs(t *testing.T) folders {
	dir := t.TempDir()
	f := folders{filepath.Join(dir, "datasets"), filepath.Join(dir, "results")}
	for _, d := range []string{f.datasets, f.results} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{filepath.Join(f.datasets, "table.csv"): "1\n", filepath.Join(dir, "secret"): "secret"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestCannotRun: what is no program has a status of its own, and says why.
func TestCannotRun(t *testing.T) {
	const (
		header = "\x00asm\x01\x00\x00\x00"
		types  = "\x01\x04\x01\x60\x00\x00" // () → ()
		one    = "\x03\x02\x01\x00"         // a function of it
		start  = "\x07\x0a\x01\x06_start\x00\x00"
	)
	for name, c := range map[string]struct {
		module string
		code   int
		want   string
	}{
		"not there":        {"", cannotRun, "no such file"},
		"no module":        {"hello, world", cannotRun, "invalid magic number"},
		"a library":        {header, cannotRun, "exports no _start"},
		"a trap":           {header + types + one + start + "\x0a\x05\x01\x03\x00\x00\x0b", trapped, "unreachable"},
		"an unknown world": {header + types + "\x02\x09\x01\x03env\x01f\x00\x00" + one + "\x07\x0a\x01\x06_start\x00\x01\x0a\x04\x01\x02\x00\x0b", cannotRun, "env"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "algo")
			if c.module != "" {
				if err := os.WriteFile(path, []byte(c.module), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var stdout, stderr bytes.Buffer
			if code := run([]string{path}, nil, inputs(t), &stdout, &stderr); code != c.code || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("status %d, %q; want %d and %q", code, &stderr, c.code, c.want)
			}
		})
	}
}
