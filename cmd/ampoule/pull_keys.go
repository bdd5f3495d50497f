package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/tee/sample"
)

// keySources are where ampoule pull gets keys.
type keySources struct {
	dir, url, ca, path string
	identities         repeated
	sample, http       bool
}

func (k *keySources) flags(fs *flag.FlagSet) {
	fs.StringVar(&k.dir, "keys", "", "folder of keys")
	fs.Var(&k.identities, "identity", "private key, PEM, DER or JWK; may be given several times")
	fs.StringVar(&k.url, "kbs", "", "broker to get the keys from")
	fs.StringVar(&k.ca, "ca", "", "PEM file that the broker's certificate must chain to; empty: this machine's roots")
	fs.BoolVar(&k.sample, "sample-evidence", false, "attest to --kbs with evidence that anybody can make up")
	fs.StringVar(&k.path, "key", "", "REPO/TYPE/TAG of the one key, as kbs_resource_path in a manifest")
}

func (k *keySources) check() error {
	if k.path != "" {
		if p, err := image.KeyPath("kbs:///" + k.path); err != nil || p != k.path {
			return usagef("--key %q: want REPO/TYPE/TAG, such as default/key/algo-key", k.path)
		}
	}
	switch {
	case k.url != "" && k.dir != "":
		return usagef("--keys and --kbs exclude each other")
	case k.url != "" && !k.sample:
		return usagef("--kbs: this machine is not a guest that could attest; for a broker that takes sample evidence say --sample-evidence")
	case k.url == "" && (k.sample || k.ca != ""):
		return usagef("--sample-evidence and --ca are for a broker: say which with --kbs")
	}
	return nil
}

// keys gets what opens an image. They are the caller's to overwrite.
func (k *keySources) keys(ctx context.Context, std stdio, img *image.Image) (_ image.Keys, err error) {
	keys := image.Keys{}
	defer func() {
		if err != nil {
			keys.Zero()
		}
	}()
	for _, file := range k.identities {
		b, err := std.readFile(file, 64<<10)
		if err != nil {
			return nil, fmt.Errorf("--identity: %w", err)
		}
		keys[file] = b
		if err := image.CheckIdentity(b); err != nil {
			return nil, fmt.Errorf("--identity %s: %w", file, err)
		}
	}
	if k.url != "" {
		return keys, k.ask(ctx, std, img, keys)
	}
	if k.path != "" && k.dir != "" {
		if err := k.read(std, keys, k.path); err != nil {
			return nil, fmt.Errorf("key %s: %w", k.path, err)
		}
	}
	for n := range img.Layers {
		if err := k.open(std, img.URI, &img.Layers[n], keys); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// open finds a key for a layer.
func (k *keySources) open(std stdio, uri string, l *image.Layer, keys image.Keys) error {
	paths := l.KeyPaths()
	if k.dir != "" {
		for _, path := range paths {
			err := k.read(std, keys, path)
			if err == nil && len(keys[path]) != 32 {
				err = fmt.Errorf("holds %d bytes and a key is 32 raw bytes", len(keys[path]))
			}
			if err == nil {
				return nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("key %s: %w", path, err)
			}
		}
	}
	switch {
	case !l.Encrypted, l.ForKeyPair() && len(keys) > 0:
		return nil
	case len(paths) == 0:
		return fmt.Errorf("%s is encrypted to key pairs: give the private key with --identity, or with --key and where that is", uri)
	case k.dir == "":
		return fmt.Errorf("%s is encrypted, with key %s: give the folder of keys with --keys", uri, paths[0])
	}
	return fmt.Errorf("%s is encrypted with key %s, which is not in %s", uri, paths[0], k.dir)
}

func (k *keySources) read(std stdio, keys image.Keys, path string) error {
	if keys[path] != nil {
		return nil
	}
	b, err := std.readFile(filepath.Join(k.dir, filepath.FromSlash(path)), 64<<10)
	if err == nil {
		keys[path] = b
	}
	return err
}

// ask attests to the broker and takes what a guest would.
func (k *keySources) ask(ctx context.Context, std stdio, img *image.Image, keys image.Keys) error {
	paths, err := img.Wants(k.path)
	if err != nil || len(paths) == 0 {
		return err
	}
	broker := kbs.Broker{URL: k.url, AllowHTTP: k.http}
	if u, err := url.Parse(k.url); err == nil {
		ip := net.ParseIP(u.Hostname())
		broker.AllowHTTP = k.http || u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	}
	if k.ca != "" {
		if broker.CA, err = std.readFile(k.ca, 1<<20); err != nil {
			return fmt.Errorf("--ca: %w", err)
		}
	}
	dev, err := sample.Driver.Open()
	if err != nil {
		return err
	}
	var wants []kbs.Want
	for _, path := range paths {
		wants = append(wants, kbs.Want{Broker: k.url, Path: path})
	}
	grant, err := kbs.Exchange(ctx, []kbs.Broker{broker}, dev, nil, wants)
	if err != nil {
		return err
	}
	defer grant.Zero()
	for _, path := range paths {
		keys[path] = bytes.Clone(grant.Key(k.url, path))
	}
	return nil
}
