package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// wasmHelper is where an initramfs has the program that runs WebAssembly modules, if it was built with it (mkimage has the same name).
const wasmHelper = "/wasmrun"

// openHelper opens a program of the initramfs before that is emptied: from then on nothing but the descriptor leads to it.
func openHelper(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

// kindOf is how the algorithm is run. Where the manifest leaves it open, as Cocos' may, an image without an entrypoint is an executable.
func (r *run) kindOf(algorithm *image.Image) string {
	switch {
	case r.doc.Workload.Kind != "":
		return r.doc.Workload.Kind
	case algorithm == nil || algorithm.Artifact || len(algorithm.Config.Entrypoint)+len(algorithm.Config.Cmd) == 0:
		return "bin"
	}
	return "oci"
}

// checkHelper refuses a kind that this image has nothing to run with, before anybody is asked for anything.
func (r *run) checkHelper() error {
	if r.doc.Workload.Kind == "wasm" && r.helper == nil {
		err := errors.New("workload: wasm: this machine's image has no runtime for it; build one with `ampoule build --with wasm`")
		return because(result.BadManifest, err)
	}
	return nil
}

// checkResolved says whether an image can be what the manifest takes it for.
func (in *input) checkResolved(kind string) error {
	runs := in.name == "algorithm" && kind == "oci" || in.name == "runtime"
	if runs && in.image.Artifact {
		return fmt.Errorf("%s: %s is an artifact, files without a config that could be run: push an image", in.name, in.want.URI)
	}
	return in.check()
}

// checkPolicy holds the manifest against what the algorithm's image allows of it, before a key is asked for.
func (r *run) checkPolicy() error {
	want, j := &r.inputs[0].want, r.job()
	if j.Kind == "oci" && (want.SHA256 != nil || want.SHA3_256 != nil) {
		return errors.New("algorithm: its hash is of one file, and the image's entrypoint is run: pin the image by digest, or say which kind it is")
	}
	var files []string
	for _, f := range r.doc.Workload.Files {
		files = append(files, f.Path)
	}
	if err := workload.CheckPolicy(j, files, r.doc.Logs == "host", r.opts.Simulation()); err != nil {
		return fmt.Errorf("algorithm %s: %w", want.URI, err)
	}
	return nil
}

// job is what the manifest wants to be run, as it is known so far. Sealed values of its environment are still sealed.
func (r *run) job() *workload.Job {
	w, algorithm := &r.doc.Workload, r.inputs[0]
	j := &workload.Job{Kind: r.kindOf(algorithm.image), Path: w.Path,
		Override: workload.Override{Args: w.Args, Env: w.Env, Cwd: w.Cwd, User: w.User}}
	algorithm.tree(&j.Algorithm)
	if r.doc.Runtime != nil {
		j.Runtime = &workload.Tree{}
		r.inputs[len(r.inputs)-1].tree(j.Runtime)
	}
	return j
}

// datasets are the inputs that are data.
func (r *run) datasets() []*input { return r.inputs[1 : 1+len(r.doc.Datasets)] }

func (in *input) tree(t *workload.Tree) {
	t.Dir = in.dir
	if in.image != nil {
		t.Config = workload.ImageConfig(in.image.Config)
	}
}

// plan is how the workload is run: which program, of which root, as whom.
func (r *run) plan() (s *workload.Spec, err error) {
	j := r.job()
	if j.Env, err = r.workloadEnv(); err != nil {
		return nil, err
	}
	s, file, err := workload.Plan(j)
	if err == nil && file != "" && r.inputs[0].file == nil {
		err = checkFile(r.inputs[0], file)
	}
	if err != nil {
		return nil, because(result.BadImage, err)
	}
	if j.Kind == "wasm" {
		s.Program = r.helper
	}
	return s, nil
}
