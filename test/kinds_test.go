package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/debian"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/object"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// built compiles a program of the tests for the sandbox.
func (r *trial) built(name string, cmd *exec.Cmd, env ...string) string {
	r.Helper()
	path := filepath.Join(r.TempDir(), name)
	cmd.Args = append(cmd.Args, "-o", path, "./testdata/"+name)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return r.read(path)
}

// runs boots the trial with its job, which must end well, and returns the folder of what came back.
func (r *trial) runs() string {
	r.Helper()
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("", result.OK, 0)
	r.verified()
	return r.open()
}

// TestBinInAnImage: a static Go program, alone in an image without a config, is found and run where Cocos has it, with its arguments.
func TestBinInAnImage(t *testing.T) {
	r := newTrial(t, nil)
	program := r.built("copy", exec.Command("go", "build", "-trimpath"), "CGO_ENABLED=0")
	img, err := demo.Image(map[string]string{"opt/tool": program, "opt/README": "a tool"}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r.job.Kind, r.job.Algorithm, r.job.Args = "bin", r.publish("tool", demo.AlgorithmKey, img, true), []string{"numbers.csv", "copied.csv"}
	dir := r.runs()
	if got := r.read(filepath.Join(dir, "results/copied.csv")); got != "1\n2\n3\n" {
		t.Errorf("the result is %q", got)
	}
	if got := r.read(filepath.Join(dir, "log/stdout")); got != "/cocos/algo in /cocos on linux\n" {
		t.Errorf("it said %q", got)
	}
}

// TestBinFromAServer: a static C program is an encrypted file of a web server, and its own exit status is the workload's.
func TestBinFromAServer(t *testing.T) {
	r := newTrial(t, nil)
	program := r.built("count.c", exec.Command("gcc", "-static", "-O2"))
	key := bytes.Repeat([]byte{7}, 32)
	if err := r.world.SetKey(demo.AlgorithmKey, key); err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	if err := object.Seal(&sealed, strings.NewReader(program), key); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(sealed.Bytes()))
	}))
	defer s.Close()
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	r.job.Kind, r.job.Algorithm, r.job.Args = "bin", "http://10.0.2.2:"+port+"/count.enc?a=b", []string{"5"}
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("execute", result.Workload, 4)
	if e := r.report.Outcome.Exit; e == nil || *e != 5 {
		t.Errorf("outcome has exit %v, want 5", e)
	}
	if got := r.read(filepath.Join(r.open(), "results/lines")); got != "3\n" {
		t.Errorf("it counted %q lines", got)
	}
	if images := r.verified().Statement.Predicate.Images; !images[0].Encrypted || images[0].Content == "" {
		t.Errorf("the receipt has the algorithm as %+v", images[0])
	}
}

// TestPython: a script with its modules and vendored packages, run by the Python of a runtime image, fits with numpy what an independent
// method fits here.
func TestPython(t *testing.T) {
	r := newTrial(t, nil)
	r.cfg.Shape.MemoryMiB = 1024
	runtime := r.numpy()
	img, err := demo.Image(map[string]string{
		"app/main.py":                            r.read("testdata/numpyfit.py"),
		"app/table.py":                           "import numpy\n\ndef read(path):\n    return numpy.loadtxt(path, delimiter=',', skiprows=1)\n",
		"app/requirements.txt":                   "numpy\nrounding==1\n",
		"app/site-packages/rounding/__init__.py": "def tidy(x):\n    return float(x)\n",
	}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	data := r.fileImage(map[string]string{"houses.csv": string(demo.Dataset())})
	r.job = demo.Job{Kind: "python", Algorithm: r.publish("fit", demo.AlgorithmKey, img, true), Runtime: r.publish("numpy", "", runtime, false),
		Dataset: r.publish("houses", demo.DatasetKey, data, true), Args: []string{"houses.csv"}}
	dir := r.runs()
	var got []float64
	if err := json.Unmarshal([]byte(r.read(filepath.Join(dir, "results/coefficients.json"))), &got); err != nil {
		t.Fatal(err)
	}
	for i, want := range fit(t, demo.Dataset()) {
		if math.Abs(got[i]-want) > 1e-6*math.Abs(want) {
			t.Errorf("coefficient %d is %v, an independent fit gives %v", i, got[i], want)
		}
	}
	images := r.verified().Statement.Predicate.Images
	if len(images) != 3 || images[2].Name != "runtime" || images[2].URI != r.job.Runtime || !images[2].Pinned {
		t.Errorf("the receipt has the images %+v", images)
	}
}

// What of Debian's packages numpy needs at run time, and what of it that it does not. The alternatives that package scripts would make of
// BLAS and LAPACK are named by LD_LIBRARY_PATH.
var (
	numpyFiles = regexp.MustCompile(`^usr/bin/python3\.[0-9]+$|^usr/lib/python3(\.[0-9]+|/dist-packages/numpy)/` +
		`|^lib64/ld-linux-x86-64\.so\.2$|^(usr/)?lib/x86_64-linux-gnu/(blas/|lapack/)?lib(c|m|dl|pthread|rt|util|z|expat|ffi|gfortran|quadmath|gcc_s|blas|lapack)\.so\.[0-9]+$`)
	numpyRest = regexp.MustCompile(`/(tests?|idlelib|ensurepip|config-3[^/]*|lib2to3|pydoc_data|f2py|include|__pycache__)/|\.(a|pyi|h|c|pxd)$`)
)

// numpy is an image of Debian's Python with numpy, 60 MB.
func (r *trial) numpy() v1.Image {
	r.Helper()
	root, err := debian.Fetch(r.Context(), debian.CacheDir(), "bookworm", []string{"python3-numpy"}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		r.Skip(err)
	}
	if err != nil {
		r.Fatal(err)
	}
	python, err := root.Path("python3.11")
	if err != nil {
		r.Fatal(err)
	}
	dir, files := filepath.Dir(filepath.Dir(filepath.Dir(python))), map[string]string{}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || !numpyFiles.MatchString(name) || numpyRest.MatchString(name) {
			return err
		}
		if target, err := filepath.EvalSymlinks(path); err == nil { // some point to what packages' scripts make
			files[name] = r.read(target)
		}
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	lib := "/usr/lib/x86_64-linux-gnu/"
	img, err := demo.Image(files, v1.Config{Env: []string{"PATH=/usr/bin", "LC_ALL=C.UTF-8", "LD_LIBRARY_PATH=" + lib + "blas:" + lib + "lapack"}})
	if err != nil {
		r.Fatal(err)
	}
	return img
}

// TestWasm: an image that was built with the helper runs a WASI module, which has its datasets and results and nothing else.
func TestWasm(t *testing.T) {
	r := newTrial(t, nil)
	dir, info := withWasm.get(t, mkimage.Options{Profile: cmdline.Simulation, Net: "dhcp", With: []string{"wasm"}})
	r.cfg.Initrd, r.cfg.Cmdline, r.accepted = filepath.Join(dir, mkimage.InitramfsFile), info.Cmdline, info.Cmdline
	module := r.built("copy", exec.Command("go", "build", "-trimpath", "-ldflags=-s -w"), "GOOS=wasip1", "GOARCH=wasm")
	r.job.Kind, r.job.Algorithm, r.job.Args = "wasm", r.publish("module", demo.AlgorithmKey, r.fileImage(map[string]string{"copy.wasm": module}), true),
		[]string{"numbers.csv", "copied.csv"}
	opened := r.runs()
	if got := r.read(filepath.Join(opened, "results/copied.csv")); got != "1\n2\n3\n" {
		t.Errorf("the result is %q", got)
	}
	if got := r.read(filepath.Join(opened, "log/stdout")); got != "/cocos/algo in /cocos on wasip1\n" {
		t.Errorf("it said %q", got)
	}
}
