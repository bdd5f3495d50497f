package mkimage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A helper is a program beside /init that an image carries only if asked to: PID 1 does not link it and opens it by this name.
type helper struct {
	pkg, file string
	inlined   []string // as buildInit takes it: what is worth its bytes
}

var helpers = map[string]helper{
	"wasm": {"./internal/wasmrun", "wasmrun", []string{"runtime", "runtime/...", "internal/runtime/...", "github.com/tetratelabs/wazero/..."}},
}

// Helpers are what Options.With may name.
func Helpers() []string { return slices.Sorted(maps.Keys(helpers)) }

func checkHelpers(with []string) error {
	for i, name := range with {
		if _, ok := helpers[name]; !ok {
			return fmt.Errorf("%.40q is nothing that an image can be built with; want %s", name, strings.Join(Helpers(), ", "))
		}
		if slices.Contains(with[:i], name) {
			return fmt.Errorf("%q is there twice", name)
		}
	}
	return nil
}

// buildHelpers compiles them and adds to the record of /init what they are.
func buildHelpers(ctx context.Context, o Options, info *InitInfo) ([]file, error) {
	var files []file
	for _, name := range slices.Sorted(slices.Values(o.With)) {
		h := helpers[name]
		program, built, err := buildInit(ctx, o.SourceDir, h.pkg, nil, h.inlined)
		if err != nil {
			return nil, err
		}
		if info.Helpers == nil {
			info.Helpers = map[string]*InitInfo{}
		}
		files, info.Helpers[name] = append(files, file{h.file, program, 0o755}), built
	}
	return files, nil
}
