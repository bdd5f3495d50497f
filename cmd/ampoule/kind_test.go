package main

import (
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// TestCheckKind: what an image has nothing to run with is refused before it boots.
func TestCheckKind(t *testing.T) {
	without, with := &mkimage.Info{}, &mkimage.Info{Init: mkimage.InitInfo{Helpers: map[string]*mkimage.InitInfo{"wasm": {}}}}
	for _, kind := range append([]string{""}, manifest.Kinds...) {
		m := &manifest.Manifest{Workload: manifest.Workload{Kind: kind}}
		if err := checkKind(m, with); err != nil {
			t.Errorf("%s with the helper: %v", kind, err)
		}
		if err := checkKind(m, without); (err != nil) != (kind == "wasm") || err != nil && !strings.Contains(err.Error(), "ampoule build --with wasm") {
			t.Errorf("%s without: %v", kind, err)
		}
	}
}

// TestPolicyOfFilesAndRuntimes: an image policy is of every image, the runtime too, and of no file.
func TestPolicyOfFilesAndRuntimes(t *testing.T) {
	const file, image = `{"uri":"https://h.example/a.py","sha256":"1111111111111111111111111111111111111111111111111111111111111111"}`, `{"uri":"docker://r.example/python@sha256:1111111111111111111111111111111111111111111111111111111111111111"}`
	for policy, want := range map[string]bool{`{"default":[{"type":"insecureAcceptAnything"}]}`: true, `{"default":[{"type":"reject"}]}`: false} {
		m, err := manifest.Parse([]byte(`{"version":1,"workload":"python","algorithm":`+file+`,"runtime":`+image+`,"images":{"policy":`+policy+`}}`), nil)
		if err != nil {
			t.Fatal(err)
		}
		err = checkPolicy(m)
		if (err == nil) != want || err != nil && (!strings.Contains(err.Error(), "r.example/python") || strings.Contains(err.Error(), "h.example")) {
			t.Errorf("policy %s: %v", policy, err)
		}
	}
}
