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

// checkFile holds the hashes of a Cocos manifest, which are of one file in an image, against that file; "" is the only one that there is.
func checkFile(in *input, file string) error {
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
		got, err := hashFile(in.dir, file, c.hash())
		if err != nil {
			return fmt.Errorf("%s.%s: %w", in.name, c.name, err)
		}
		if !bytes.Equal(got, c.want) {
			return fmt.Errorf("%s.%s: the file has %x and the manifest says %x", in.name, c.name, got, c.want)
		}
	}
	return nil
}

func hashFile(dir, file string, h hash.Hash) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if file == "" {
		if file, err = onlyFile(root); err != nil {
			return nil, err
		}
	}
	f, err := root.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// onlyFile is the one regular file below root. More than one, or none, is an error: there is no canonical form.
func onlyFile(root *os.Root) (only string, err error) {
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
	if err == nil && only == "" {
		err = fmt.Errorf("a hash is of one file, and the image has none")
	}
	return only, err
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
