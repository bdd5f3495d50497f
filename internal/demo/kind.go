package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// OfKind is the demo's algorithm for a kind of workload, and for python an image with the interpreter. source is the checkout, of which bin
// and wasm build a program.
func OfKind(ctx context.Context, kind, source, cache string, say func(string, ...any)) (algo, runtime v1.Image, err error) {
	var file string
	var env []string
	switch kind {
	case "oci":
		algo, err = PythonImage(ctx, cache, algorithm, say)
		return algo, nil, err
	case "python":
		if runtime, _, err = (python{cache, say}).image(ctx); err != nil {
			return nil, nil, err
		}
		algo, err = Image(map[string]string{"linreg.py": string(algorithm)}, v1.Config{})
		return algo, runtime, err
	case "bin":
		file, env = "linreg", []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"}
	case "wasm":
		file, env = "linreg.wasm", []string{"GOOS=wasip1", "GOARCH=wasm"}
	default:
		return nil, nil, fmt.Errorf("%.40q is no kind of workload", kind)
	}
	dir, err := os.MkdirTemp("", "ampoule-demo-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, file)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./internal/demo/linreg")
	cmd.Dir, cmd.Env = source, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("go build of %s: %w\n%s", file, err, bytes.TrimSpace(out))
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	algo, err = Image(map[string]string{file: string(program)}, v1.Config{})
	return algo, nil, err
}
