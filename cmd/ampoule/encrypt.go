package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/image"
)

const encryptHelp = `
usage: ampoule encrypt --keys DIR --key REPO/TYPE/TAG [--http] [--json] SRC DST
       ampoule encrypt --keys DIR --key REPO/TYPE/TAG --file [--format cocos-gcm] [--json] IN OUT

Encrypts every layer of an OCI image under a key at the broker, as skopeo with CoCo's key provider does.
SRC is an OCI layout folder, a file from docker save, or docker://HOST/REPO…; DST is a new OCI layout folder or
docker://HOST/REPO[:TAG]. The key is DIR/REPO/TYPE/TAG, 32 raw bytes, made if it is not there: the folder that
ampoule kbs serves has it under keys/. Prints the reference by digest that a manifest should name; for a layout,
the digest.

With --file, IN is one file, a dataset to be kept in an object store or on a web server, and OUT is a new one: in chunks,
of any size, as Tink's AES256_GCM_HKDF_1MB; or with --format cocos-gcm as Cocos reads it, up to 64 GiB. Prints the SHA-256
of IN, which a manifest may name besides.

Examples:
  ampoule encrypt --keys broker/keys --key default/key/algo-key ./layout docker://registry.example/algo
  ampoule encrypt --keys broker/keys --key default/key/data-key dataset.tar ./encrypted
  ampoule encrypt --file --keys broker/keys --key default/key/data-key iris.csv iris.csv.enc`

func encryptVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("encrypt", encryptHelp, std)
	dir := fs.String("keys", "", "folder of keys")
	path := fs.String("key", "", "key's path at the broker: REPO/TYPE/TAG")
	http := fs.Bool("http", false, "registries may be spoken to over plain http")
	asJSON := fs.Bool("json", false, "print the reference and the key's path as JSON")
	file := fs.Bool("file", false, "encrypt one file and not an image")
	format := fs.String("format", formatChunked, "with --file: chunked or cocos-gcm")
	if err := parse(fs, args, 2); err != nil {
		return err
	}
	if err := required(fs, "keys", "key"); err != nil {
		return err
	}
	if p, err := image.KeyPath("kbs:///" + *path); err != nil || p != *path {
		return usagef("--key %q: want REPO/TYPE/TAG, such as default/key/algo-key", *path)
	}
	if *file {
		facts, err := encryptFile(fs.Arg(0), fs.Arg(1), *format, *path, filepath.Join(*dir, filepath.FromSlash(*path)))
		return std.fileFacts(facts, *asJSON, err)
	}
	o := image.Options{PlainHTTP: *http}
	src, err := image.Load(ctx, fs.Arg(0), o)
	if err != nil {
		return err
	}
	key, err := keyFile(filepath.Join(*dir, filepath.FromSlash(*path)))
	if err != nil {
		return err
	}
	defer clear(key)
	sealed, err := image.Encrypt(ctx, src, key, "kbs:///"+*path, image.EncryptOptions{})
	if err != nil {
		return err
	}
	var ref string
	if dst := fs.Arg(1); strings.HasPrefix(dst, "docker://") {
		ref, err = image.Push(ctx, sealed, dst, o)
	} else if err = image.Save(sealed, dst); err == nil {
		var digest v1.Hash
		digest, err = sealed.Digest()
		ref = digest.String()
	}
	if err != nil {
		return err
	}
	if *asJSON {
		return std.json(map[string]string{"reference": ref, "kbs_resource_path": *path})
	}
	_, err = fmt.Fprintln(std.out, ref)
	return err
}

// keyFile reads a key, or makes one.
func keyFile(file string) ([]byte, error) {
	key, err := os.ReadFile(file)
	switch {
	case err == nil && len(key) != 32:
		return nil, fmt.Errorf("%s: holds %d bytes and a key is 32 raw bytes; name another key, or move the file away to have one made", file, len(key))
	case !errors.Is(err, os.ErrNotExist):
		return key, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	key = image.NewKey()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(key)
	return key, errors.Join(err, f.Close())
}
