package mkimage

import (
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestHelpers: what an image is built with lies beside /init, and its record says what it is; without, there is nothing.
func TestHelpers(t *testing.T) {
	dir := fixture(t, t.TempDir())
	write(t, filepath.Join(dir, "internal/wasmrun/main.go"), "package main\n\nfunc main() { println(\"helper\") }\n")
	for _, with := range [][]string{nil, {"wasm"}} {
		packed, info, err := Initramfs(t.Context(), Options{Profile: "production", SourceDir: dir, With: with})
		if err != nil {
			t.Fatal(err)
		}
		names, sum := []string{}, ""
		for _, r := range unpack(t, packed) {
			names = append(names, r.Name)
			if r.Name == "wasmrun" {
				b, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
				if err != nil || r.Mode&0o777 != 0o755 {
					t.Errorf("mode %o, %v", r.Mode, err)
				}
				sum = hexSum(b)
			}
		}
		if slices.Contains(names, "wasmrun") != (with != nil) || len(info.Helpers) != len(with) {
			t.Errorf("with %q: the initramfs holds %q, the record says %v", with, names, info.Helpers)
		}
		if h := info.Helpers["wasm"]; with != nil && (h == nil || h.SHA256 != sum || h.Size == 0) {
			t.Errorf("the record says %+v, want sha256 %s", h, sum)
		}
	}
	for _, with := range [][]string{{"java"}, {"wasm", "wasm"}, {""}} {
		if _, _, err := Initramfs(t.Context(), Options{Profile: "production", SourceDir: dir, With: with}); err == nil || !strings.Contains(err.Error(), with[0]) {
			t.Errorf("with %q: %v", with, err)
		}
	}
}
