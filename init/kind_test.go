package main

import (
	"context"
	"crypto/sha3"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// set changes the manifest: members by their name; of the algorithm, those of "algorithm".
func (f *flow) set(members map[string]any) {
	f.Helper()
	var m map[string]any
	if err := json.Unmarshal(f.raw, &m); err != nil {
		f.Fatal(err)
	}
	for name, v := range members {
		if more, ok := v.(map[string]any); ok && name == "algorithm" {
			for k, v := range more {
				m["algorithm"].(map[string]any)[k] = v
			}
			continue
		}
		m[name] = v
	}
	f.raw, _ = json.Marshal(m)
}

// algorithm publishes another one, and names it in the manifest.
func (f *flow) algorithm(files map[string]string, c v1.Config) {
	f.Helper()
	img, err := demo.Image(files, c)
	if err != nil {
		f.Fatal(err)
	}
	uri, err := f.world.Publish(f.Context(), img, "other", demo.AlgorithmKey)
	if err != nil {
		f.Fatal(err)
	}
	f.set(map[string]any{"algorithm": map[string]any{"uri": strings.Replace(uri, "10.0.2.2", "127.0.0.1", 1)}})
}

// spec boots, and returns what would have been run; nil: nothing.
func (f *flow) spec() (spec *workload.Spec) {
	f.Helper()
	tamper := f.tamper
	f.tamper = func(m *machine) {
		if tamper != nil {
			tamper(m)
		}
		run := m.runWorkload
		m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
			spec = &s
			return run(ctx, s)
		}
	}
	f.boot()
	return spec
}

const elfProgram = "\x7fELF\x02\x01\x01 a program"

// TestKinds: what each kind makes of images and files, in whole boots. An input is named by its place: 0 is the algorithm, 2 the runtime.
func TestKinds(t *testing.T) {
	const wasmModule = "\x00asm\x01\x00\x00\x00"
	python := map[string]string{"usr/bin/python3": elfProgram}
	helper, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer helper.Close()
	for name, c := range map[string]struct {
		set       func(*flow)
		root      string
		algorithm string // its tree, if that is not the root
		args      []string
		program   bool
		images    []string // of the receipt
	}{
		"a program in an image": {func(f *flow) {
			f.algorithm(map[string]string{"fit": elfProgram, "README": ""}, v1.Config{})
			f.set(map[string]any{"workload": "bin", "args": []string{"x"}, "algorithm": map[string]any{"path": "/fit"}})
		}, "input-0", "", []string{"/cocos/algo", "x"}, false, []string{"algorithm", "datasets[0]"}},
		"a program that is a file": {func(f *flow) {
			s := newFiles(t, map[string][]byte{"/a/fit": []byte(elfProgram)})
			ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
			f.set(map[string]any{"workload": "bin", "registries": []any{map[string]any{"host": s.host(), "ca": ca}},
				"algorithm": map[string]any{"uri": s.URL + "/a/fit", "encrypted": false, "sha256": hexSum([]byte(elfProgram))}})
			f.without("kbs_resource_path")
		}, "input-0", "", []string{"/cocos/algo"}, false, []string{"algorithm", "datasets[0]"}},
		"a script and its runtime": {func(f *flow) {
			f.algorithm(map[string]string{"main.py": "pass", "m.py": "pass"}, v1.Config{})
			f.set(map[string]any{"workload": "python", "runtime": map[string]any{"uri": f.push("python", python)}})
		}, "input-2", "input-0", []string{"/usr/bin/python3", "/cocos/algo"}, false, []string{"algorithm", "datasets[0]", "runtime"}},
		"a script, by its hash": {func(f *flow) {
			f.algorithm(map[string]string{"main.py": "pass", "m.py": "fail", "usr/bin/python": elfProgram}, v1.Config{})
			f.set(map[string]any{"workload": "python", "algorithm": map[string]any{"sha3_256": fmt.Sprintf("%x", sha3.Sum256([]byte("pass")))}})
		}, "input-0", "", []string{"/usr/bin/python", "/cocos/algo"}, false, []string{"algorithm", "datasets[0]"}},
		"a module": {func(f *flow) {
			f.algorithm(map[string]string{"fit.wasm": wasmModule}, v1.Config{})
			f.set(map[string]any{"workload": "wasm"})
		}, "input-0", "", []string{"/cocos/algo"}, true, []string{"algorithm", "datasets[0]"}},
		"a program that is an artifact": {func(f *flow) {
			f.algorithm(map[string]string{"fit": elfProgram}, v1.Config{Entrypoint: []string{"/run"}})
			f.remote()
			tamper := f.tamper
			f.tamper = func(m *machine) {
				tamper(m)
				resolve := m.resolve
				m.resolve = func(ctx context.Context, uri string, o image.Options) (*image.Image, error) {
					i, err := resolve(ctx, uri, o)
					if err == nil && strings.Contains(uri, "/other@") {
						i.Artifact, i.Config = true, image.Config{}
					}
					return i, err
				}
			}
		}, "input-0", "", []string{"/cocos/algo"}, false, []string{"algorithm", "datasets[0]"}},
		"Cocos' default, with an entrypoint": {func(f *flow) { f.remote() },
			"input-0", "", []string{"/run"}, false, []string{"algorithm", "datasets[0]"}},
		"Cocos' default, without": {func(f *flow) {
			f.algorithm(map[string]string{"run": elfProgram}, v1.Config{})
			f.remote()
		}, "input-0", "", []string{"/cocos/algo"}, false, []string{"algorithm", "datasets[0]"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			f.T = t
			f.tamper = func(m *machine) { m.helper = helper }
			c.set(f)
			spec := f.spec()
			f.ends("", result.OK, true)
			algorithm := c.algorithm
			if algorithm != "" {
				algorithm = filepath.Join(f.m.dir, algorithm)
			}
			if spec.Root != filepath.Join(f.m.dir, c.root) || spec.Algorithm != algorithm || (spec.Program == helper) != c.program {
				t.Errorf("root %s, algorithm %q, program %v", spec.Root, spec.Algorithm, spec.Program)
			}
			if d := cmp.Diff(c.args, spec.Args); d != "" {
				t.Error(d)
			}
			var images []string
			for _, i := range f.statement().Predicate.Images {
				images = append(images, i.Name)
			}
			if d := cmp.Diff(c.images, images); d != "" {
				t.Error(d)
			}
		})
	}
}

// without takes a member out of the algorithm.
func (f *flow) without(name string) {
	var m map[string]any
	if err := json.Unmarshal(f.raw, &m); err != nil {
		f.Fatal(err)
	}
	delete(m["algorithm"].(map[string]any), name)
	f.raw, _ = json.Marshal(m)
}

// remote turns the manifest into Cocos' remote resources, which have no recipients.
func (f *flow) remote() {
	var m map[string]any
	if err := json.Unmarshal(f.raw, &m); err != nil {
		f.Fatal(err)
	}
	m["kbs_url"] = f.world.Broker
	for _, name := range []string{"version", "results", "kbs"} {
		delete(m, name)
	}
	f.raw, _ = json.Marshal(m)
	f.line += ",unsealed"
}

// TestKindsRefused: each at its step, and where it can be known before a key is given, before a broker is asked.
func TestKindsRefused(t *testing.T) {
	const labels = "tee.launch_policy."
	scripts := map[string]string{"a.py": "", "b.py": "", "usr/bin/python3": elfProgram}
	for name, c := range map[string]struct {
		set    func(*flow)
		step   string
		reason result.Reason
		log    string
		asked  bool
	}{
		"a module where there is no runtime for it": {func(f *flow) {
			f.set(map[string]any{"workload": "wasm", "images": map[string]any{"policy": "default/security-policy/main"}})
		}, "resolve", result.BadManifest, "ampoule build --with wasm", false},
		"arguments that the author does not allow": {func(f *flow) {
			f.algorithm(map[string]string{"run": ""}, v1.Config{Entrypoint: []string{"/run"}, Labels: map[string]string{labels + "allow_cmd_override": "false"}})
			f.set(map[string]any{"args": []string{"x"}})
		}, "resolve", result.BadImage, "the image's author does not allow, by its labels: args or algorithm.path", false},
		"a file that the author does not allow": {func(f *flow) {
			f.algorithm(map[string]string{"run": ""}, v1.Config{Entrypoint: []string{"/run"}, Labels: map[string]string{labels + "allow_env_override": "A"}})
			f.set(map[string]any{"env": map[string]any{"A": "x"}, "files": []any{map[string]any{"path": "/run", "value": "x"}}})
		}, "resolve", result.BadImage, "files /run", false},
		"output that the author does not let out": {func(f *flow) {
			f.algorithm(map[string]string{"run": ""}, v1.Config{Entrypoint: []string{"/run"}, Labels: map[string]string{labels + "log_redirect": "never"}})
			f.set(map[string]any{"logs": "host"})
		}, "resolve", result.BadImage, "by its labels: logs", false},
		"a runtime that is not there": {func(f *flow) {
			f.set(map[string]any{"workload": "python", "runtime": map[string]any{"uri": strings.Replace(f.push("python", scripts), "/python@", "/pythons@", 1)}})
		}, "resolve", result.BadImage, "runtime", false},
		"several scripts": {func(f *flow) {
			f.algorithm(scripts, v1.Config{})
			f.set(map[string]any{"workload": "python"})
		}, "execute", result.BadImage, "say which with algorithm.path", true},
		"a script with another hash": {func(f *flow) {
			f.algorithm(scripts, v1.Config{})
			f.set(map[string]any{"workload": "python", "algorithm": map[string]any{"path": "a.py", "sha256": hexSum([]byte("x"))}})
		}, "execute", result.BadImage, "algorithm.sha256: the file has", true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			f.T = t
			c.set(f)
			f.boot()
			f.ends(c.step, c.reason, false)
			if f.asked != c.asked {
				t.Errorf("a broker was asked: %v, want %v", f.asked, c.asked)
			}
			if f.peer.result == nil {
				return // nobody to seal to
			}
			if log := f.log(); !strings.Contains(log, c.log) || strings.Contains(f.console.String(), c.log) {
				t.Errorf("the sealed log, and it alone, is to say %q:\n%s", c.log, log)
			}
		})
	}
}

// TestAuthorsLabels: what the labels allow is done.
func TestAuthorsLabels(t *testing.T) {
	f := newFlow(t)
	const labels = "tee.launch_policy."
	f.algorithm(map[string]string{"run": ""}, v1.Config{Entrypoint: []string{"/run"}, Cmd: []string{"image"},
		Labels: map[string]string{labels + "allow_cmd_override": "true", labels + "allow_env_override": "A,B"}})
	f.set(map[string]any{"args": []string{"manifest"}, "env": map[string]any{"B": "x"}})
	spec := f.spec()
	f.ends("", result.OK, true)
	if d := cmp.Diff([]string{"/run", "manifest"}, spec.Args); d != "" {
		t.Error(d)
	}
}

// TestHashOfAnEntrypoint: Cocos leaves open what the hash of an algorithm is of; where an image has an entrypoint, it would be of nothing.
func TestHashOfAnEntrypoint(t *testing.T) {
	f := newFlow(t)
	hash := "[" + strings.Repeat("17,", 31) + "17]"
	f.raw = fmt.Appendf(nil, `{"id": "1", "algorithm": {"hash": %s, "source": {"type": "oci-image", "url": %q}}}`, hash, f.push("algorithm", map[string]string{"run": ""}))
	f.line += ",unsealed"
	f.boot()
	f.ends("resolve", result.BadImage, false)
}
