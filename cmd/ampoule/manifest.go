package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/imagepolicy"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/mkimage"
)

const manifestHelp = `
usage: ampoule manifest check|digest|initdata|pin [flags] FILE

check     reports every problem of a manifest at once, each with its path
digest    prints the digests that bind it: initdata (HOST_DATA, for the broker's policy) and manifest-sha384
initdata  prints the initdata document in which it travels
pin       turns tags into digests, asking the registries, and changes nothing else

Examples:
  ampoule manifest pin --allow http job.json > pinned.json
  ampoule manifest digest --json pinned.json`

func manifestVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("manifest", manifestHelp, std)
	allow := fs.String("allow", "", "what the image permits: tag,http")
	asJSON := fs.Bool("json", false, "print facts as JSON")
	out := fs.String("out", "", "file to write instead of standard output (pin, initdata)")
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		if err := parse(fs, args, 0); err != nil {
			return err
		}
		return usagef("manifest needs one of check, digest, initdata, pin; ampoule manifest -h explains them")
	}
	if !slices.Contains([]string{"check", "digest", "initdata", "pin"}, args[0]) {
		return usagef("manifest %q: want check, digest, initdata or pin", args[0])
	}
	if err := parse(fs, args[1:], 1); err != nil {
		return err
	}
	permitted, err := cmdline.ParseAllow(*allow)
	if err != nil {
		return usagef("--allow: %v", err)
	}
	raw, err := std.readFile(fs.Arg(0), manifest.MaxSize)
	if err != nil {
		return err
	}
	switch args[0] {
	case "check":
		m, err := manifest.Parse(raw, permitted.Has)
		if err != nil {
			return err
		}
		if err := errors.Join(checkPolicy(m), checkResults(m, permitted.Has(cmdline.AllowHTTP))); err != nil {
			return err
		}
		if *asJSON {
			return std.json(digestsOf(m))
		}
		fmt.Fprintf(std.out, "%s: ok, %s spelling, %d datasets\n", fs.Arg(0), m.Spelling, len(m.Datasets))
		if len(m.Results.Recipients) == 0 {
			std.say("note: results.recipients is empty: only an image that permits unsealed results runs this")
		}
		for _, e := range m.Egress {
			std.say("note: network.egress: the workload may send whatever it reads to %s", e)
		}
		return nil
	case "digest":
		m, err := manifest.Parse(raw, func(string) bool { return true })
		if err != nil {
			return err
		}
		d := digestsOf(m)
		if *asJSON {
			return std.json(d)
		}
		fmt.Fprintf(std.out, "initdata-sha256 %s\nmanifest-sha384 %s\n", d.Initdata, d.SHA384)
		return nil
	case "initdata":
		if _, err := manifest.Parse(raw, func(string) bool { return true }); err != nil {
			return err
		}
		return std.write(*out, manifest.Wrap(raw))
	default: // pin
		pinned, err := manifest.Pin(raw, func(uri string) (string, error) {
			img, err := image.Resolve(ctx, uri, image.Options{PlainHTTP: permitted.Has(cmdline.AllowHTTP)})
			if err != nil {
				return "", err
			}
			return img.Digest, nil
		})
		if err != nil {
			return err
		}
		return std.write(*out, pinned)
	}
}

type digests struct {
	Spelling string `json:"spelling"`
	Initdata string `json:"initdata_sha256"`
	SHA384   string `json:"manifest_sha384"`
}

func digestsOf(m *manifest.Manifest) digests {
	init, sum := manifest.InitdataDigest(manifest.Wrap(m.Raw())), m.SHA384()
	return digests{m.Spelling, hex.EncodeToString(init[:]), hex.EncodeToString(sum[:])}
}

// write puts b into a file, by way of a temporary one, or on standard output.
func (s stdio) write(path string, b []byte) error {
	if path == "" {
		_, err := s.out.Write(b)
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// checkPolicy judges a policy that stands in the manifest, and by it the images, as far as that goes without them.
func checkPolicy(m *manifest.Manifest) error {
	if m.InlinePolicy == nil {
		return nil
	}
	policy, err := imagepolicy.Parse(m.InlinePolicy.JSON)
	if err != nil {
		return fmt.Errorf("images.policy: %w", err)
	}
	all := append([]manifest.Resource{m.Algorithm}, m.Datasets...)
	if m.Runtime != nil {
		all = append(all, *m.Runtime)
	}
	var errs []error
	for _, r := range all {
		if !r.IsFile() { // a policy is of images
			errs = append(errs, policy.Check(r.URI))
		}
	}
	return errors.Join(errs...)
}

// checkKind refuses a workload that an image has nothing to run with, before it boots.
func checkKind(m *manifest.Manifest, info *mkimage.Info) error {
	if m.Workload.Kind == "wasm" && info.Init.Helpers["wasm"] == nil {
		return errors.New("workload: wasm: the image has no runtime for it; build one with ampoule build --with wasm")
	}
	return nil
}
