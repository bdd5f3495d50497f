package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ampoule-vm/ampoule/internal/object"
)

// The forms of encrypted files, docs/OBJECTS.md.
const (
	formatChunked = "chunked"
	formatCocos   = "cocos-gcm"
)

// fileFacts is what encrypt --file prints as JSON.
type fileFacts struct {
	Format string `json:"format"`
	Path   string `json:"kbs_resource_path"`
	SHA256 string `json:"sha256"`        // of the file, as a manifest may name it
	Sealed string `json:"sealed_sha256"` // of what was written
}

// encryptFile encrypts one file to a new one, under the key at path, which is in file.
func encryptFile(in, out, format, path, file string) (facts fileFacts, err error) {
	if format != formatChunked && format != formatCocos {
		return facts, usagef("--format %q: want %s or %s", format, formatChunked, formatCocos)
	}
	facts.Format, facts.Path = format, path
	if _, err := os.Lstat(out); !errors.Is(err, os.ErrNotExist) {
		return facts, fmt.Errorf("%s: is there already; name a new file", out)
	}
	src, err := os.Open(in)
	if err != nil {
		return facts, err
	}
	defer src.Close()
	if fi, err := src.Stat(); err != nil || !fi.Mode().IsRegular() {
		return facts, errors.Join(err, fmt.Errorf(`%s: is not a file; make a tar or zip of a folder, and say "decompress": true in the manifest`, in))
	}
	key, err := keyFile(file)
	if err != nil {
		return facts, err
	}
	defer clear(key)
	dst, err := os.CreateTemp(filepath.Dir(out), ".ampoule-*")
	if err != nil {
		return facts, err
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	if format == formatCocos {
		err = object.SealWhole(dst, src, key)
	} else {
		err = object.Seal(dst, src, key)
	}
	if err != nil {
		return facts, err
	}
	if facts.SHA256, err = fileSHA256(src); err != nil {
		return facts, err
	}
	if facts.Sealed, err = fileSHA256(dst); err != nil {
		return facts, err
	}
	if err := errors.Join(dst.Chmod(0o644), dst.Close()); err != nil {
		return facts, err
	}
	return facts, os.Rename(dst.Name(), out)
}

func (s stdio) fileFacts(facts fileFacts, asJSON bool, err error) error {
	switch {
	case err != nil:
		return err
	case asJSON:
		return s.json(facts)
	}
	_, err = fmt.Fprintln(s.out, facts.SHA256)
	return err
}

func fileSHA256(f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	_, err := io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}
