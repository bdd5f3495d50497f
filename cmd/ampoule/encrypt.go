package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/registryauth"
)

const encryptHelp = `
usage: ampoule encrypt [--keys DIR --key REPO/TYPE/TAG…] [--jwe FILE…] [--pkcs7 FILE…] [flags] SRC DST
       ampoule encrypt --keys DIR --key REPO/TYPE/TAG --file [--format cocos-gcm] [--json] IN OUT

Encrypts every layer of an OCI image, for whoever gets one of these keys:
  --key REPO/TYPE/TAG  a key at a broker, as skopeo with CoCo's key provider does. It is DIR/REPO/TYPE/TAG, 32 raw bytes,
                       made if it is not there: the folder that ampoule kbs serves has it under keys/. With --kbs it is
                       posted to the broker as well, before DST is written.
  --jwe FILE           a public key, RSA or EC, as PEM, DER or JWK: as skopeo --encryption-key jwe:FILE does
  --pkcs7 FILE         an X.509 certificate with an RSA key, PEM or DER: as skopeo --encryption-key pkcs7:FILE does
Each may be given several times. The private half of the last two goes to a broker as a resource; the manifest's
kbs_resource_path says where it is.

SRC is an OCI layout folder, an OCI archive (the same in a tar), a file from docker save, or docker://HOST/REPO…; DST is
a new OCI layout folder, a new OCI archive (FILE.tar, or oci-archive:FILE) or docker://HOST/REPO[:TAG]. Prints the
reference by digest that a manifest should name; for a layout or archive, the digest.

With --file, IN is one file, a dataset to be kept in an object store or on a web server, and OUT is a new one: in chunks,
of any size, as Tink's AES256_GCM_HKDF_1MB; or with --format cocos-gcm as Cocos reads it, up to 64 GiB. Prints the SHA-256
of IN, which a manifest may name besides.

Examples:
  ampoule encrypt --keys broker/keys --key default/key/algo-key ./layout docker://registry.example/algo
  ampoule encrypt --keys broker/keys --key default/key/data-key dataset.tar ./encrypted
  ampoule encrypt --keys keys --key default/key/algo-key --kbs https://kbs.example --admin-token-file token \
    --authfile ~/.config/containers/auth.json ./layout docker://registry.example/algo:v1
  ampoule encrypt --jwe guest.pub.pem algo.tar docker://registry.example/algo
  ampoule encrypt --file --keys broker/keys --key default/key/data-key iris.csv iris.csv.enc`

// repeated is a flag that may be given several times.
type repeated []string

func (w *repeated) String() string     { return strings.Join(*w, " ") }
func (w *repeated) Set(s string) error { *w = append(*w, s); return nil }

func encryptVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("encrypt", encryptHelp, std)
	var paths, jwe, pkcs7 repeated
	var broker administrator
	dir := fs.String("keys", "", "folder of keys")
	fs.Var(&paths, "key", "key's path at the broker: REPO/TYPE/TAG")
	fs.Var(&jwe, "jwe", "public key")
	fs.Var(&pkcs7, "pkcs7", "certificate")
	broker.postFlags(fs)
	authfile := fs.String("authfile", "", "credentials of registries, a containers-auth.json; empty: none")
	http := fs.Bool("http", false, "registries may be spoken to over plain http")
	platform := fs.String("platform", "linux/amd64", "which image of several")
	asJSON := fs.Bool("json", false, "print the reference and the keys' paths as JSON")
	file := fs.Bool("file", false, "encrypt one file and not an image")
	format := fs.String("format", formatChunked, "with --file: chunked or cocos-gcm")
	if err := parse(fs, args, 2); err != nil {
		return err
	}
	switch {
	case len(paths)+len(jwe)+len(pkcs7) == 0:
		return usagef("--key is missing, or --jwe or --pkcs7; ampoule encrypt -h explains it")
	case len(paths) > 0 && *dir == "":
		return usagef("--keys is missing; ampoule encrypt -h explains it")
	case broker.url != "" && len(paths) == 0:
		return usagef("--kbs: there is no --key that could be posted")
	case broker.token == "-" && len(paths) > 1:
		return usagef("--admin-token-file -: standard input is read once, and a token for each key; name a file")
	}
	for _, path := range paths {
		if p, err := image.KeyPath("kbs:///" + path); err != nil || p != path {
			return usagef("--key %q: want REPO/TYPE/TAG, such as default/key/algo-key", path)
		}
	}
	if *file {
		if len(paths) != 1 || len(jwe)+len(pkcs7) > 0 || broker.url != "" {
			return usagef("--file takes one --key, and no --jwe, --pkcs7 or --kbs")
		}
		facts, err := encryptFile(fs.Arg(0), fs.Arg(1), *format, paths[0], filepath.Join(*dir, filepath.FromSlash(paths[0])))
		return std.fileFacts(facts, *asJSON, err)
	}
	if broker.url != "" {
		if _, err := broker.base(); err != nil {
			return err
		}
	}
	login, err := logins(std, *authfile)
	if err != nil {
		return err
	}
	at := func(place string) image.Options {
		return image.Options{PlainHTTP: *http, Platform: *platform, Login: login(place)}
	}
	src, err := image.Load(ctx, fs.Arg(0), at(fs.Arg(0)))
	if err != nil {
		return err
	}
	var to []image.Recipient
	for _, path := range paths {
		key, err := keyFile(filepath.Join(*dir, filepath.FromSlash(path)))
		if err != nil {
			return err
		}
		defer clear(key)
		r, err := image.ForKey(key, "kbs:///"+path, image.EncryptOptions{})
		if err != nil {
			return err
		}
		to = append(to, r)
		if broker.url == "" {
			continue
		}
		if err := broker.post(ctx, std, path, key); err != nil {
			return fmt.Errorf("key %s: %w", path, err)
		}
		std.say("encrypt: key %s is at %s", path, broker.url)
	}
	for _, kind := range []struct {
		flag  string
		files []string
		make  func([]byte) (image.Recipient, error)
	}{{"jwe", jwe, image.ForPublicKey}, {"pkcs7", pkcs7, image.ForCertificate}} {
		for _, file := range kind.files {
			b, err := std.readFile(file, 64<<10)
			if err != nil {
				return fmt.Errorf("--%s: %w", kind.flag, err)
			}
			r, err := kind.make(b)
			if err != nil {
				return fmt.Errorf("--%s %s: %w", kind.flag, file, err)
			}
			to = append(to, r)
		}
	}
	sealed, err := image.EncryptFor(ctx, src, to, nil)
	if err != nil {
		return err
	}
	ref, err := image.Write(ctx, sealed, fs.Arg(1), at(fs.Arg(1)))
	if err != nil {
		return err
	}
	if *asJSON {
		facts := map[string]any{"reference": ref, "keys": append([]string{}, paths...)}
		if len(paths) > 0 {
			facts["kbs_resource_path"] = paths[0]
		}
		return std.json(facts)
	}
	_, err = fmt.Fprintln(std.out, ref)
	return err
}

// logins gives the credentials of a registry, by an image's reference. Without a file there are none: what skopeo or docker
// may have stored elsewhere is not looked for.
func logins(std stdio, authfile string) (func(place string) *image.Login, error) {
	if authfile == "" {
		return func(string) *image.Login { return nil }, nil
	}
	b, err := std.readFile(authfile, registryauth.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("--authfile: %w", err)
	}
	defer clear(b)
	c, err := registryauth.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("--authfile %s: %w", authfile, err)
	}
	return func(place string) *image.Login {
		if !strings.HasPrefix(place, "docker://") {
			return nil
		}
		user, password, ok := c.For(place)
		if !ok {
			return nil
		}
		return &image.Login{User: user, Password: password}
	}, nil
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
