package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/imagepolicy"
	"github.com/ampoule-vm/ampoule/internal/progress"
)

const pullHelp = `
usage: ampoule pull [--keys DIR] [--identity FILE…] [--kbs URL --sample-evidence] [--policy FILE] [flags] REFERENCE DIR

Fetches, verifies, decrypts and unpacks an image as PID 1 does, by the same code, to see what a guest would see.
REFERENCE is docker://HOST/REPO@sha256:…; a tag will do here, and the reference by digest is printed. DIR must not exist:
it appears when the digest, the HMAC and the diff-ID of every layer hold, and not before. Keys are DIR/REPO/TYPE/TAG, 32
raw bytes each, where ampoule encrypt has put them; --identity is a private key for an image that is encrypted to key
pairs (JWE, PKCS #7). Owners of files are kept only with --owners, which needs root.

--kbs asks a broker, as a guest does. This machine is none: with --sample-evidence it sends evidence that anybody can make
up, so that only a broker for tests will answer. --key says which resource opens the image, as a manifest's
kbs_resource_path does; an image for key pairs does not say itself.

With --policy, a containers-policy.json, the image must be signed as that says; a public key at kbs:///REPO/TYPE/TAG is
taken from --keys as well, and simple signatures from --lookaside.

Examples:
  ampoule pull docker://registry.example/algo@sha256:4f…9a ./root
  ampoule pull --encrypted --keys broker/keys docker://registry.example/algo:v1 ./root
  ampoule pull --identity guest.pem docker://registry.example/algo:v1 ./root
  ampoule pull --kbs http://127.0.0.1:8080 --sample-evidence docker://registry.example/algo:v1 ./root
  ampoule pull --policy policy.json docker://registry.example/algo@sha256:4f…9a ./root`

// pullFacts is what pull prints as JSON.
type pullFacts struct {
	Reference string   `json:"reference"` // by digest
	Manifest  string   `json:"manifest"`
	Config    string   `json:"config"`
	Layers    []string `json:"layers"` // digests of the blobs as fetched, lowest first
	Keys      []string `json:"keys"`   // paths at the broker
	Bytes     int64    `json:"bytes"`  // fetched
	Micros    int64    `json:"us"`
}

func pullVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("pull", pullHelp, std)
	var from keySources
	from.flags(fs)
	encrypted := fs.Bool("encrypted", false, `refuse what is not encrypted, as "encrypted": true in a manifest does`)
	http := fs.Bool("http", false, "registries may be spoken to over plain http")
	owners := fs.Bool("owners", false, "keep the owners of files")
	policy := fs.String("policy", "", "containers-policy.json that the image must satisfy")
	lookaside := fs.String("lookaside", "", "`URL` below which simple signatures are kept")
	platform := fs.String("platform", "linux/amd64", "which image of an index")
	asJSON := fs.Bool("json", false, "print what was pulled as JSON")
	authfile := fs.String("authfile", "", "credentials of registries, a containers-auth.json; empty: none")
	if err := parse(fs, args, 2); err != nil {
		return err
	}
	from.http = *http
	if err := from.check(); err != nil {
		return err
	}
	login, err := logins(std, *authfile)
	if err != nil {
		return err
	}
	start := time.Now()
	options := image.Options{PlainHTTP: *http, Platform: *platform, Login: login(fs.Arg(0))}
	admit, err := policyOf(ctx, std, fs.Arg(0), *policy, *lookaside, from.dir, options)
	if err != nil {
		return err
	}
	img, err := image.Resolve(ctx, fs.Arg(0), options)
	if err != nil {
		return err
	}
	if err := admit(img); err != nil {
		return err
	}
	if *encrypted {
		if err := img.RequireEncrypted(); err != nil {
			return err
		}
	}
	keys, err := from.keys(ctx, std, img)
	if err != nil {
		return err
	}
	defer keys.Zero()
	std.say("pull: %d layers, %s", len(img.Layers), progress.Bytes(img.Size()))
	live := progress.New(std.err)
	bar := live.Bar("pull:", img.Size())
	err = img.Unpack(ctx, fs.Arg(1), keys, image.Limits{Chown: *owners}, bar.Add)
	fetched := bar.End(err == nil, 0)
	live.Close()
	if err != nil {
		return err
	}
	took := time.Since(start)
	if *asJSON {
		facts := pullFacts{img.PinnedURI(), img.ManifestDigest, img.ConfigDigest, []string{}, append([]string{}, img.KeyIDs()...), fetched, took.Microseconds()}
		for _, l := range img.Layers {
			facts.Layers = append(facts.Layers, l.Digest)
		}
		return std.json(facts)
	}
	_, err = fmt.Fprintln(std.out, img.PinnedURI())
	return err
}

// policyOf reads a policy and the keys that it names for reference, and judges that. What it returns judges the image.
func policyOf(ctx context.Context, std stdio, reference, file, lookaside, dir string, o image.Options) (func(*image.Image) error, error) {
	if file == "" {
		if lookaside != "" {
			return nil, errors.New("--lookaside says where signatures are, and nothing asks for any: give --policy")
		}
		return func(*image.Image) error { return nil }, nil
	}
	b, err := std.readFile(file, imagepolicy.MaxSize)
	if err != nil {
		return nil, err
	}
	policy, err := imagepolicy.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := policy.Check(reference); err != nil {
		return nil, err
	}
	keys := map[string][]byte{}
	for _, path := range policy.KeyPaths(reference) {
		if dir == "" {
			return nil, fmt.Errorf("%s names key %s: give the folder of keys with --keys", file, path)
		}
		if keys[path], err = std.readFile(filepath.Join(dir, filepath.FromSlash(path)), imagepolicy.MaxKey); err != nil {
			return nil, fmt.Errorf("%s names key %s: %w", file, path, err)
		}
	}
	return func(img *image.Image) error {
		claim, err := policy.VerifyImage(ctx, img, lookaside, o, func(path string) []byte { return keys[path] })
		if n := len(claim.Cosign) + len(claim.Simple); err == nil && n > 0 {
			std.say("pull: signed as %s asks, by %d signatures found", file, n)
		}
		return err
	}, nil
}
