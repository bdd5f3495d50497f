package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha3"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/url"
	"os"
	"runtime/debug"

	"github.com/ampoule-vm/ampoule/internal/manifest"
)

// checkFile holds the hashes of a Cocos manifest, which are of the one file in an image, against that file.
func checkFile(in *input) error {
	for _, c := range []struct {
		name string
		want []byte
		hash func() hash.Hash
	}{
		{"sha256", in.want.SHA256, sha256.New},
		{"sha3_256", in.want.SHA3_256, func() hash.Hash { return sha3.New256() }},
	} {
		if c.want == nil {
			continue
		}
		got, err := hashOnlyFile(in.dir, c.hash())
		if err != nil {
			return fmt.Errorf("%s.%s: %w", in.name, c.name, err)
		}
		if !bytes.Equal(got, c.want) {
			return fmt.Errorf("%s.%s: the file has %x and the manifest says %x", in.name, c.name, got, c.want)
		}
	}
	return nil
}

// hashOnlyFile hashes the one regular file below dir. More than one, or none, is an error: there is no canonical form.
func hashOnlyFile(dir string, h hash.Hash) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	only := ""
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.Type().IsRegular():
			return nil
		case only != "":
			return fmt.Errorf("a hash is of one file, and the image has %s and %s", only, path)
		}
		only = path
		return nil
	})
	if err != nil {
		return nil, err
	}
	if only == "" {
		return nil, fmt.Errorf("a hash is of one file, and the image has none")
	}
	f, err := root.Open(only)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

func newHash() hash.Hash { return sha256.New() }

func isPlainHTTP(raw string) bool {
	u, err := url.Parse(raw)
	return err != nil || u.Scheme != "https"
}

func (r *run) initdataDigest() [32]byte { return manifest.InitdataDigest(r.initdata) }

// version is the module's version, as far as the build knows it.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}
