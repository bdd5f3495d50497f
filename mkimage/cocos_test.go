package mkimage

import (
	"bytes"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// cocosFixture is a module whose /init says which tags it was built with.
func cocosFixture(t *testing.T, dir string) {
	t.Helper()
	write(t, filepath.Join(dir, "init/cocos.go"), "//go:build cocos\n\npackage main\n\nfunc init() { println(\"TAG-cocos\") }\n")
	write(t, filepath.Join(dir, "init/h1.go"), "//go:build nethttpomithttp2\n\npackage main\n\nfunc init() { println(\"TAG-h1\") }\n")
	write(t, filepath.Join(dir, "internal/wasmrun/main.go"), "package main\n\nfunc main() { println(\"helper\") }\n")
}

// TestWithCocos is a build tag of /init, which then has HTTP/2, and no program: alone and beside one.
func TestWithCocos(t *testing.T) {
	dir := fixture(t, t.TempDir())
	cocosFixture(t, dir)
	for _, with := range [][]string{nil, {"wasm"}, {"cocos"}, {"wasm", "cocos"}} {
		packed, info, err := Initramfs(t.Context(), Options{Profile: "production", SourceDir: dir, With: with})
		if err != nil {
			t.Fatal(err)
		}
		cocos, wasm := slices.Contains(with, "cocos"), slices.Contains(with, "wasm")
		var names []string
		for _, r := range unpack(t, packed) {
			names = append(names, r.Name)
			if r.Name != "init" {
				continue
			}
			b, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte("TAG-cocos")) != cocos || bytes.Contains(b, []byte("TAG-h1")) == cocos {
				t.Errorf("with %q: /init was built with other tags", with)
			}
		}
		if slices.Contains(names, "wasmrun") != wasm || (len(info.Helpers) == 1) != wasm || info.Helpers["cocos"] != nil {
			t.Errorf("with %q: the initramfs holds %q, the record says %v", with, names, info.Helpers)
		}
	}
}

// TestAnImageWithCocos is built again from its record, whose digest of the source is of what it was compiled from; and it alone may be
// built to ask a server.
func TestAnImageWithCocos(t *testing.T) {
	o := small(t)
	cocosFixture(t, o.SourceDir)
	o.Formats, o.ManifestSource = nil, "cvms:cvms.example:7001"
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--with cocos") {
		t.Errorf("without cocos: %v", err)
	}
	o.With = []string{"wasm", "cocos"}
	info := build(t, o)
	if !slices.Equal(info.Request.With, o.With) || !strings.Contains(info.Cmdline, "ampoule.manifest=cvms:cvms.example:7001") {
		t.Errorf("request %+v, command line %q", info.Request, info.Cmdline)
	}
	if c, err := Check(t.Context(), o, o.Out); err != nil || len(c.Differences) > 0 {
		t.Errorf("built again: %+v, %v", c, err)
	}
	sum := info.Source
	write(t, filepath.Join(o.SourceDir, "init/cocos.go"), "//go:build cocos\n\npackage main\n\nfunc init() { println(\"other\") }\n")
	if info = build(t, o); info.Source == sum {
		t.Error("the digest of the source does not cover what cocos adds")
	}
	o.Net = "none"
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "ampoule.net is none") {
		t.Errorf("without a network: %v", err)
	}
}
