// Wasmrun runs one WebAssembly module for WASI preview 1 and takes over its exit status. Its argv is the module's: argv[0] names the file.
//
// It is a program of its own that only images built with it carry, so that PID 1 has no compiler in it. It runs inside the sandbox, as the
// workload: the sandbox bounds it, and what the module is shown here is only a convenience of files. PID 1 holds the one descriptor of it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
)

func main() {
	os.Exit(run(os.Args, os.Environ(), folders{"/cocos/datasets", "/cocos/results"}, os.Stdout, os.Stderr))
}

// The exit statuses that are ours and not the module's, as shells and other runtimes have them.
const (
	cannotRun = 126 // no module, or none that can be run
	trapped   = 134 // the module did what no module may: 128 + SIGABRT
)

// folders are all that a module can open.
type folders struct{ datasets, results string }

// preopened are the folders by all names that toolchains look for. Cocos gives a module its results as ".", so that is kept; datasets/x and
// results/x are found by their longest prefix, and absolute names by Go, which goes by PWD.
func (f folders) preopened() wazero.FSConfig {
	c := wazero.NewFSConfig().WithDirMount(f.results, ".").WithDirMount(f.results, "/cocos")
	for _, base := range []string{"", "/cocos/"} {
		c = c.WithReadOnlyDirMount(f.datasets, base+"datasets").WithDirMount(f.results, base+"results")
	}
	return c
}

// run returns the exit status.
func run(args, env []string, f folders, stdout, stderr io.Writer) int {
	code, err := start(context.Background(), args, env, f, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "wasm:", err)
	}
	return code
}

func start(ctx context.Context, args, env []string, f folders, stdout, stderr io.Writer) (int, error) {
	if len(args) == 0 {
		return cannotRun, errors.New("no module is named")
	}
	code, err := os.ReadFile(args[0])
	if err != nil {
		return cannotRun, err
	}
	ctx = experimental.WithCompilationWorkers(ctx, runtime.NumCPU())
	r := wazero.NewRuntime(ctx)
	defer r.Close(ctx)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, r); err != nil {
		return cannotRun, err
	}
	module, err := r.CompileModule(ctx, code)
	if err != nil {
		return cannotRun, fmt.Errorf("%s: %w", args[0], err)
	}
	if _, ok := module.ExportedFunctions()["_start"]; !ok {
		return cannotRun, fmt.Errorf("%s: exports no _start, so it is a library and no program", args[0])
	}
	c := wazero.NewModuleConfig().WithName("").WithArgs(args...).WithStdout(stdout).WithStderr(stderr).WithFSConfig(f.preopened()).
		WithSysWalltime().WithSysNanotime().WithSysNanosleep().WithRandSource(rand.Reader).WithStartFunctions()
	for _, kv := range env {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" {
			c = c.WithEnv(name, value)
		}
	}
	program, err := r.InstantiateModule(ctx, module, c)
	if err != nil {
		return cannotRun, fmt.Errorf("%s: %w", args[0], err)
	}
	_, err = program.ExportedFunction("_start").Call(ctx)
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit):
		return int(min(exit.ExitCode(), 255)), nil // 256 must not become 0
	case err != nil:
		return trapped, fmt.Errorf("%s: %w", args[0], err)
	}
	return 0, nil
}
