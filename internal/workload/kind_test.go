package workload

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	elfHead  = "\x7fELF\x02\x01\x01"
	wasmHead = "\x00asm\x01\x00\x00\x00"
)

// treeOf makes a tree of files by path. One that ends in ! may be executed by its owner, one that holds "-> x" is a link to x.
func treeOf(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		name, x := strings.CutSuffix(name, "!")
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, link := strings.CutPrefix(text, "-> "); link {
			err = errors.Join(err, os.Symlink(target, path))
		} else {
			mode := os.FileMode(0o600)
			if x {
				mode = 0o700
			}
			err = errors.Join(err, os.WriteFile(path, []byte(text), mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		format *format
		tree   []string
		config ImageConfig
		path   string
		want   string // the file
		err    string // instead
	}{
		"the only file there is":                         {&scriptFormat, []string{"opt/thing="}, ImageConfig{}, "", "opt/thing", ""},
		"the only script":                                {&scriptFormat, []string{"fit.py=", "data.csv="}, ImageConfig{}, "", "fit.py", ""},
		"a script in capitals":                           {&scriptFormat, []string{"FIT.PY=", "data.csv="}, ImageConfig{}, "", "FIT.PY", ""},
		"the only script outside of the system":          {&scriptFormat, []string{"a/fit.py=", "usr/lib/python3/os.py=", "etc/x.py=", "a/site-packages/m.py=", "a/vendor/n.py="}, ImageConfig{}, "", "a/fit.py", ""},
		"the script of the usual name":                   {&scriptFormat, []string{"a/main.py=", "a/model.py=", "a/util/io.py="}, ImageConfig{}, "", "a/main.py", ""},
		"the script as Cocos saves it":                   {&scriptFormat, []string{"cocos/algo.py=", "cocos/model.py="}, ImageConfig{}, "", "cocos/algo.py", ""},
		"two scripts of usual names":                     {&scriptFormat, []string{"main.py=", "run.py="}, ImageConfig{}, "", "", `"main.py" "run.py"`},
		"two scripts":                                    {&scriptFormat, []string{"a.py=", "b.py="}, ImageConfig{}, "", "", "say which with algorithm.path"},
		"two scripts, and which":                         {&scriptFormat, []string{"a.py=", "b.py="}, ImageConfig{}, "b.py", "b.py", ""},
		"two scripts, and the command says which":        {&scriptFormat, []string{"a.py=", "b.py="}, ImageConfig{Entrypoint: []string{"python3"}, Cmd: []string{"/a.py"}}, "", "a.py", ""},
		"two scripts, and which in its folder":           {&scriptFormat, []string{"x/main.py=", "x/b.py="}, ImageConfig{Entrypoint: []string{"python3", "b.py"}, WorkingDir: "/x"}, "", "x/b.py", ""},
		"a script in the system, as the entrypoint says": {&scriptFormat, []string{"usr/src/a.py=", "b="}, ImageConfig{Entrypoint: []string{"python3", "/usr/src/a.py"}}, "", "usr/src/a.py", ""},
		"an entrypoint that is not there":                {&scriptFormat, []string{"a.py=", "b="}, ImageConfig{Entrypoint: []string{"/c.py"}}, "", "a.py", ""},
		"no script":                                      {&scriptFormat, []string{"a=", "b="}, ImageConfig{}, "", "", "no Python script (*.py)"},
		"nothing":                                        {&scriptFormat, nil, ImageConfig{}, "", "", "no Python script"},
		"a path to nothing":                              {&scriptFormat, []string{"a.py="}, ImageConfig{}, "b.py", "", "/b.py openat b.py: no such file"},
		"a path to a folder":                             {&scriptFormat, []string{"a/a.py="}, ImageConfig{}, "a", "", "is a directory"},
		"a path by a link":                               {&scriptFormat, []string{"a/a.py=", "b=-> a"}, ImageConfig{}, "b/a.py", "b/a.py", ""},
		"a path by a link that leads out":                {&scriptFormat, []string{"a.py=", "b=-> ../../x"}, ImageConfig{}, "b", "", "escapes"},

		"a program by its mode":           {&programFormat, []string{"fit!=" + elfHead, "README="}, ImageConfig{}, "", "fit", ""},
		"a program by its name":           {&programFormat, []string{"my-algorithm=" + elfHead, "README="}, ImageConfig{}, "", "my-algorithm", ""},
		"a program among its libraries":   {&programFormat, []string{"fit!=" + elfHead, "libx.so!=" + elfHead, "liby.so.6!=" + elfHead, "lib/ld.so!=" + elfHead, "run.txt=hello"}, ImageConfig{}, "", "fit", ""},
		"a script that is executable":     {&programFormat, []string{"fit!=#!/bin/sh\n", "README="}, ImageConfig{}, "", "fit", ""},
		"a program that is the system's":  {&programFormat, []string{"usr/bin/fit!=" + elfHead, "bin/sh!=" + elfHead, "README="}, ImageConfig{}, "", "", "no executable"},
		"the system's, by the entrypoint": {&programFormat, []string{"usr/bin/fit!=" + elfHead, "bin/sh!=" + elfHead}, ImageConfig{Entrypoint: []string{"/usr/bin/fit", "/bin/sh"}}, "", "usr/bin/fit", ""},
		"the only file, which is none":    {&programFormat, []string{"fit!=hello"}, ImageConfig{}, "", "", "/fit is neither an ELF program"},
		"a path to none":                  {&programFormat, []string{"a!=" + elfHead, "b!=hello"}, ImageConfig{}, "b", "", "/b is neither an ELF program"},

		"a module":                {&moduleFormat, []string{"fit.wasm=" + wasmHead, "README="}, ImageConfig{}, "", "fit.wasm", ""},
		"a module by entrypoint":  {&moduleFormat, []string{"a.wasm=" + wasmHead, "b.wasm=" + wasmHead}, ImageConfig{Entrypoint: []string{"/b.wasm"}}, "", "b.wasm", ""},
		"a module in text":        {&moduleFormat, []string{"fit.wat=(module)", "README="}, ImageConfig{}, "", "", "wat2wasm"},
		"a component":             {&moduleFormat, []string{"fit.wasm=\x00asm\x0d\x00\x01\x00"}, ImageConfig{}, "", "", "component"},
		"a module of three bytes": {&moduleFormat, []string{"fit.wasm=\x00as"}, ImageConfig{}, "", "", "no WebAssembly module"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := os.OpenRoot(treeOf(t, c.tree...))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := find(r, &c.config, c.path, c.format)
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q, %v; want %q, %q", got, err, c.want, c.err)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	const path = "PATH=/usr/bin:/bin"
	image := ImageConfig{Entrypoint: []string{"/main"}, Cmd: []string{"x"}, Env: []string{"A=image", path}, WorkingDir: "/w", User: "7"}
	over := Override{Args: []string{"y"}, Env: map[string]string{"A": "manifest"}, User: "8", Cwd: "/v"}
	type job struct {
		kind      string
		algorithm []string
		config    ImageConfig
		runtime   []string
		rconfig   ImageConfig
		over      Override
	}
	for name, c := range map[string]struct {
		job
		want Spec   // without Root; Algorithm is not empty where the algorithm's tree is not the root
		file string // of the algorithm
	}{
		"oci": {job{kind: "oci", algorithm: []string{"main!="}, config: image},
			Spec{Args: []string{"/main", "x"}, Env: []string{"A=image", path, "HOME=/tmp"}, Cwd: "/w", UID: 7, GID: nobody}, ""},
		"oci, as the manifest says": {job{kind: "oci", algorithm: []string{"main!="}, config: image, over: over},
			Spec{Args: []string{"/main", "y"}, Env: []string{"A=manifest", path, "HOME=/tmp"}, Cwd: "/v", UID: 8, GID: nobody}, ""},
		"bin": {job{kind: "bin", algorithm: []string{"main!=" + elfHead}, config: image},
			Spec{Args: []string{"/cocos/algo"}, Env: []string{"A=image", path, "HOME=/tmp"}, Cwd: "/cocos", UID: 7, GID: nobody,
				Links: map[string]string{"/cocos/algo": "/main"}}, "main"},
		"bin, as the manifest says": {job{kind: "bin", algorithm: []string{"main!=" + elfHead}, config: image, over: over},
			Spec{Args: []string{"/cocos/algo", "y"}, Env: []string{"A=manifest", path, "HOME=/tmp"}, Cwd: "/v", UID: 8, GID: nobody,
				Links: map[string]string{"/cocos/algo": "/main"}}, "main"},
		"wasm": {job{kind: "wasm", algorithm: []string{"a/b.wasm=" + wasmHead}, config: image, over: Override{Args: []string{"y"}}},
			Spec{Args: []string{"/cocos/algo", "y"}, Env: []string{"PWD=/cocos", "A=image", path, "HOME=/tmp"}, Cwd: "/cocos", UID: 7, GID: nobody,
				Links: map[string]string{"/cocos/algo": "/a/b.wasm"}}, "a/b.wasm"},
		"python, of its own image": {job{kind: "python", algorithm: []string{"app/main.py=", "app/m.py=", "usr/bin/python3=-> python3.11", "usr/bin/python3.11!=", "app/requirements.txt="},
			config: ImageConfig{Env: []string{path}}, over: Override{Args: []string{"y"}}},
			Spec{Args: []string{"/usr/bin/python3", "/cocos/algo", "y"}, Env: []string{path, "HOME=/tmp"}, Cwd: "/cocos", UID: nobody, GID: nobody,
				Links: map[string]string{"/cocos/algo": "/app/main.py", "/cocos/requirements.txt": "/app/requirements.txt"}}, "app/main.py"},
		"python, of its own image, as the entrypoint says": {job{kind: "python", algorithm: []string{"app/main.py=", "app/m.py="},
			config: ImageConfig{Env: []string{path, "PYTHONPATH=/lib"}, Entrypoint: []string{"/opt/python3.13", "/app/m.py", "--fast"}}},
			Spec{Args: []string{"/opt/python3.13", "/cocos/algo"}, Env: []string{path, "PYTHONPATH=/lib", "HOME=/tmp"}, Cwd: "/cocos", UID: nobody, GID: nobody,
				Links: map[string]string{"/cocos/algo": "/app/m.py"}}, "app/m.py"},
		"python, of a runtime": {job{kind: "python", algorithm: []string{"main.py=", "site-packages/x/__init__.py=", "vendor/y.py=", "requirements.txt="},
			config:  ImageConfig{Env: []string{"PATH=/mine", "PYTHONPATH=/mine", "A=algorithm", "B=algorithm"}, User: "7"},
			runtime: []string{"usr/bin/python3.9!=", "usr/bin/python3.11!=", "usr/bin/python3-config="}, rconfig: ImageConfig{Env: []string{path, "A=runtime", "PYTHONPATH=/rt"}, User: "9"}},
			Spec{Args: []string{"/usr/bin/python3.11", "/cocos/algo"}, Cwd: "/cocos", UID: 9, GID: nobody, Algorithm: "it",
				Env:   []string{path, "A=algorithm", "PYTHONPATH=/cocos/algorithm/site-packages:/cocos/algorithm/vendor:/rt", "B=algorithm", "HOME=/tmp"},
				Links: map[string]string{"/cocos/algo": "/cocos/algorithm/main.py", "/cocos/requirements.txt": "/cocos/algorithm/requirements.txt"}}, "main.py"},
	} {
		t.Run(name, func(t *testing.T) {
			j := &Job{Kind: c.kind, Algorithm: Tree{treeOf(t, c.algorithm...), c.config}, Override: c.over}
			c.want.Root = j.Algorithm.Dir
			if c.runtime != nil {
				j.Runtime = &Tree{treeOf(t, c.runtime...), c.rconfig}
				c.want.Root, c.want.Algorithm = j.Runtime.Dir, j.Algorithm.Dir
			}
			got, file, err := Plan(j)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&c.want, got); d != "" || file != c.file {
				t.Errorf("file %q, want %q\n%s", file, c.file, d)
			}
			if file == "" {
				return
			}
			mode := os.FileMode(0o644)
			if c.kind == "bin" {
				mode = 0o755
			}
			if fi, err := os.Stat(filepath.Join(j.Algorithm.Dir, file)); err != nil || fi.Mode()&mode&^0o200 != mode&^0o200 {
				t.Errorf("the algorithm has mode %v, %v", fi.Mode(), err)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		job  Job
		tree []string
		want string
	}{
		"a kind that is none":         {Job{Kind: "java"}, nil, `"java" is no kind`},
		"an image with no entrypoint": {Job{Kind: "oci"}, nil, "nothing to run"},
		"no Python":                   {Job{Kind: "python"}, []string{"a.py="}, "no Python is in the PATH"},
		"a user that is not there":    {Job{Kind: "bin", Override: Override{User: "ann"}}, []string{"a!=" + elfHead}, `user "ann"`},
	} {
		t.Run(name, func(t *testing.T) {
			c.job.Algorithm.Dir = treeOf(t, c.tree...)
			if _, _, err := Plan(&c.job); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A program that no path leads to, as the helper for WebAssembly is: opened, removed, and run by its descriptor, with the argv that Args says.
func TestProgramByDescriptor(t *testing.T) {
	s, stdout, _ := sandbox(t)
	path := filepath.Join(t.TempDir(), "helper")
	if err := os.Link(program(t), path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(os.Remove(path), os.Remove(filepath.Join(s.Root, "probe"))); err != nil {
		t.Fatal(err)
	}
	s.Program, s.Args = f, []string{"probe", "files", "/proc/self/fd/3", "/proc/self/fd/4", "/proc/self/fd/5", "/proc/self/fd/6"}
	out, err := run(t, t.Context(), s)
	if err != nil || out.Exit != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	if n := strings.Count(stdout.String(), unix.ENOENT.Error()); n != 4 {
		t.Errorf("the program inherits descriptors: %s", stdout)
	}
}

// TestAlgorithmInTheSandbox: the tree and the links are there, over what the image has of these names, and cannot be written to.
func TestAlgorithmInTheSandbox(t *testing.T) {
	s, stdout, _ := sandbox(t, "files", "/cocos/algorithm/a/fit.py", "/cocos/algo", "/cocos/requirements.txt")
	s.Algorithm = treeOf(t, "a/fit.py=print()", "requirements.txt=numpy")
	for _, path := range []string{"a/fit.py", "requirements.txt"} {
		if err := os.Chmod(filepath.Join(s.Algorithm, path), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(s.Algorithm, 0o755), os.MkdirAll(filepath.Join(s.Root, "cocos/algo/x"), 0o755),
		os.Symlink("/etc", filepath.Join(s.Root, "cocos/requirements.txt"))); err != nil {
		t.Fatal(err)
	}
	s.Links = map[string]string{"/cocos/algo": "/cocos/algorithm/a/fit.py", "/cocos/requirements.txt": "/cocos/algorithm/requirements.txt"}
	if out, err := run(t, t.Context(), s); err != nil || out.Exit != 0 {
		t.Fatalf("%+v, %v", out, err)
	}
	var said map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &said); err != nil {
		t.Fatal(err)
	}
	if got := said["/cocos/algorithm/a/fit.py"]; got != `"print()" <nil> -rw-r--r--` {
		t.Errorf("the tree has %s", got)
	}
	for name, want := range map[string]string{"/cocos/algo": `"print()" <nil>`, "/cocos/requirements.txt": `"numpy" <nil>`} {
		if !strings.HasPrefix(said[name], want) {
			t.Errorf("%s is %s, want %s", name, said[name], want)
		}
	}
}
