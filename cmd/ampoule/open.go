package main

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/internal/result"
)

const openHelp = `
usage: ampoule open [--identity FILE] [--receipt FILE] (--out DIR | --zip FILE) RESULT

Decrypts a sealed result and unpacks it to DIR, which must not exist: results/ is the workload's, log/ its output and
the private log, timeline.ndjson the boot. The identity is a file of age-keygen, or a private key in PEM: of ssh, or the
RSA, EC or Ed25519 key of a PKIX recipient. A result that came in clear (result.tar.zst) needs no identity.

With --receipt the result must be the one that the receipt is about; whether the receipt itself is true, ampoule verify
says. With --zip the workload's files alone are written as a zip, as Cocos hands results to its consumers.

Examples:
  ampoule open --identity key.txt --out opened result.tar.zst.age
  ampoule open --identity key.pem --receipt receipt.json --zip results.zip result.tar.zst.age
  ampoule open --out opened result.tar.zst`

// maxResult bounds what open unpacks, bytes.
const maxResult = 64 << 30

func openVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("open", openHelp, std)
	identity := fs.String("identity", "", "file with age identities, or a private key in PEM")
	receipt := fs.String("receipt", "", "receipt.json that must be about this result")
	out := fs.String("out", "", "folder to make")
	zipFile := fs.String("zip", "", "zip to make of the workload's files")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	if (*out == "") == (*zipFile == "") {
		return usagef("--out or --zip is missing, or both are there; ampoule open -h explains it")
	}
	var about *result.Statement
	if *receipt != "" {
		b, err := std.readFile(*receipt, result.MaxReceipt)
		if err != nil {
			return err
		}
		if _, about, err = result.ParseReceipt(b); err != nil {
			return fmt.Errorf("--receipt %s: %w", *receipt, err)
		}
	}
	ids, err := identities(std, *identity)
	if err != nil {
		return err
	}
	path := fs.Arg(0)
	dir := *out
	if *zipFile != "" {
		if _, err := os.Lstat(*zipFile); err == nil {
			return fmt.Errorf("--zip %s: is there already; name a new file", *zipFile)
		}
		tmp, err := os.MkdirTemp(filepath.Dir(*zipFile), ".ampoule-open-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = filepath.Join(tmp, "all")
	}
	digests, err := unsealTo(path, ids, dir)
	if err != nil {
		return err
	}
	if about != nil {
		if err := digests.Matches(about); err != nil {
			return &exitError{3, errors.Join(fmt.Errorf("%s: %w", path, err), os.RemoveAll(dir))}
		}
		std.say("%s is the one that %s is about", path, *receipt)
	}
	if *zipFile == "" {
		return nil
	}
	return writeZip(std, *zipFile, filepath.Join(dir, result.ResultsDir))
}

// identities reads the file of them; "" is none, which expects a result in clear.
func identities(std stdio, file string) ([]age.Identity, error) {
	if file == "" {
		return nil, nil
	}
	b, err := std.readFile(file, 1<<20)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	ids, err := result.ParseIdentities(b)
	if err != nil {
		return nil, fmt.Errorf("--identity %s: %w", file, err)
	}
	return ids, nil
}

// openResult unpacks the result at path to out with the identities of a file.
func openResult(std stdio, path, identity, out string) error {
	ids, err := identities(std, identity)
	if err == nil {
		_, err = unsealTo(path, ids, out)
	}
	return err
}

// unsealTo decrypts the result at path with the given identities and unpacks it to out. Whether it is sealed must be as
// the caller expects; without identities that is in clear.
func unsealTo(path string, ids []age.Identity, out string) (d result.Digests, err error) {
	f, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer f.Close()
	o, err := result.Open(f, ids)
	switch {
	case errors.Is(err, result.ErrSealed):
		return d, fmt.Errorf("%s is sealed: give the recipient's key with --identity FILE", path)
	case errors.Is(err, result.ErrNotSealed):
		return d, fmt.Errorf("%s is not sealed, so whoever ran the VM can read it: open it without --identity if that is expected", path)
	case err != nil:
		return d, fmt.Errorf("%s: %w", path, err)
	}
	defer o.Close()
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return d, err
	}
	if err := os.Mkdir(out, 0o700); errors.Is(err, os.ErrExist) {
		return d, fmt.Errorf("--out %s: is there already; name a new folder", out)
	} else if err != nil {
		return d, fmt.Errorf("--out: %w", err)
	}
	if err := result.ExtractTar(o, out, maxResult); err != nil {
		os.Remove(out) // stays when something could be unpacked
		return d, fmt.Errorf("%s: %w", path, err)
	}
	return o.Digests(), nil
}

// writeZip makes a zip of the files below dir as Cocos' agent does: by name, dated 1970, Go's own compression. Links are no
// part of it.
func writeZip(std stdio, path, dir string) (err error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("--zip: the run failed before it had results; open it with --out and see log/boot.txt")
	}
	if err != nil {
		return err
	}
	defer root.Close()
	var names []string
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.Type().IsRegular():
			names = append(names, name)
		case !d.IsDir():
			std.say("%q is a link, and not in the zip", name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(path)
		}
	}()
	z := zip.NewWriter(f)
	slices.Sort(names)
	for _, name := range names {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Unix(0, 0).UTC()})
		if err != nil {
			return err
		}
		in, err := root.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, in)
		if err := errors.Join(err, in.Close()); err != nil {
			return err
		}
	}
	return z.Close()
}
