package mkimage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A helper is what an image has only if asked to: a program beside /init, which PID 1 does not link and opens by its file's name, or a
// build tag of /init itself.
type helper struct {
	pkg, file string
	inlined   []string // as buildInit takes it: what is worth its bytes
	tag       string
}

// Cocos is the helper that speaks with Cocos' computation servers.
const Cocos = "cocos"

var helpers = map[string]helper{
	"wasm": {pkg: "./internal/wasmrun", file: "wasmrun", inlined: []string{"runtime", "runtime/...", "internal/runtime/...", "github.com/tetratelabs/wazero/..."}},
	Cocos:  {tag: Cocos},
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

// initTags are the build tags of /init.
func (o Options) initTags() []string {
	tags := slices.Clone(o.Tags)
	for _, name := range slices.Sorted(slices.Values(o.With)) {
		if tag := helpers[name].tag; tag != "" {
			tags = append(tags, tag)
		}
	}
	return tags
}

// guestTags are those tags and the ones that all programs of the guest have. "guest" leaves out what makes images. Registries and brokers
// speak HTTP/1.1, so that HTTP/2 is one parser less that faces the host; only Cocos' protocol needs it.
func guestTags(tags []string) string {
	all := []string{"nethttpomithttp2", "guest"}
	if slices.Contains(tags, Cocos) {
		all = all[1:]
	}
	return strings.Join(append(all, tags...), ",")
}

// buildHelpers compiles them and adds to the record of /init what they are.
func buildHelpers(ctx context.Context, o Options, info *InitInfo) ([]file, error) {
	var files []file
	for _, name := range slices.Sorted(slices.Values(o.With)) {
		h := helpers[name]
		if h.pkg == "" {
			continue
		}
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
