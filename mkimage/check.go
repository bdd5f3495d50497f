package mkimage

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/uki"
)

// A Comparison is what building an image again has shown.
type Comparison struct {
	Files       int          `json:"files"` // compared
	Inputs      []Difference `json:"inputs,omitempty"`
	Differences []Difference `json:"differences,omitempty"` // none: the image is what its record says
}

// causes are the parts of the record that say what an image is made from. Where they differ, so will the image.
var causes = []string{"source_sha256", "kernel.source_sha256", "kernel.package_version", "kernel.config_sha256", "kernel.gcc", "kernel.ld", "kernel.zstd", "kernel.sha256",
	"init.go", "init.modules_sha256", "efi_stub.sha256", "efi_stub.package_version"}

// Check builds the image of dir again, in another place, from o's sources, and compares every file with what dir has. Of
// o, it takes where sources and cache are. A signature of dir's UKI is put on the new one: it is its owner's, and of
// the same image or of another.
func Check(ctx context.Context, o Options, dir string) (*Comparison, error) {
	info := new(Info)
	if err := readJSON(filepath.Join(dir, InfoFile), info); err != nil {
		return nil, err
	}
	again, err := info.options(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, InfoFile), err)
	}
	again.SourceDir, again.Cache, again.KernelSource, again.Stub, again.ShapesDir = o.SourceDir, o.Cache, o.KernelSource, o.Stub, o.ShapesDir
	again.Fresh, again.Progress = o.Fresh, o.Progress
	if info.Signature != nil {
		if again.signature, err = signatureIn(dir, info.Signature); err != nil {
			return nil, err
		}
		again.signedBy = info.Signature
	}
	if again.Out, err = os.MkdirTemp("", "ampoule-check-*"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(again.Out)
	built, err := Build(ctx, again)
	if err != nil {
		return nil, err
	}
	c := &Comparison{}
	for _, name := range union(info, built) {
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("%s lists %q, which is not below its own folder", InfoFile, name)
		}
		have, missing, err := readIfThere(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		want, extra, err := readIfThere(filepath.Join(again.Out, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		c.Files++
		switch {
		case missing:
			c.Differences = append(c.Differences, Difference{name, "", -1, "it is missing", fmt.Sprintf("%d bytes", len(want))})
		case extra:
			c.Differences = append(c.Differences, Difference{name, "", -1, fmt.Sprintf("%d bytes", len(have)), "no such file"})
		default:
			c.Differences = append(c.Differences, differences(name, have, want)...)
		}
	}
	for _, d := range c.Differences {
		if d.File == InfoFile && slices.Contains(causes, d.Within) {
			c.Inputs = append(c.Inputs, d)
		}
	}
	return c, nil
}

// union lists the files of both, in the order of the build, and the two that no record lists.
func union(a, b *Info) []string {
	var all []string
	for _, f := range slices.Concat(b.Files, a.Files, []File{{Name: SumsFile}, {Name: InfoFile}}) {
		if !slices.Contains(all, f.Name) {
			all = append(all, f.Name)
		}
	}
	return all
}

func readIfThere(path string) (b []byte, missing bool, err error) {
	b, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, true, nil
	}
	return b, false, err
}

// signatureIn returns the signature of the UKI in dir, which is of the digest that the record names. Whose it is, is for
// firmware to judge.
func signatureIn(dir string, s *SignInfo) ([]byte, error) {
	path := filepath.Join(dir, UKIFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	signature, err := uki.Signature(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	digest, err := uki.Digest(b, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if signature == nil || fmt.Sprintf("%x", digest) != s.Digest || !bytes.Contains(signature, digest) {
		return nil, fmt.Errorf("%s has sha256 %x without its signature, and %s says that %s is signed", path, digest, InfoFile, s.Digest)
	}
	return signature, nil
}
