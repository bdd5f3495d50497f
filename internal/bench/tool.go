package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

// A Tool pulls, decrypts and unpacks images.
type Tool struct {
	Name string `json:"name"` // as tables head a column
	What string `json:"what"` // programs and versions
	// pull takes an encrypted image from a shelf and leaves its files in the folder root below dir, which exists.
	pull func(ctx context.Context, s *Shelf, img *Image, dir string) (u Usage, root string, err error)
}

// Ours is `ampoule pull`, run as a process of its own from a program file.
func Ours(path string) *Tool {
	return &Tool{"Ampoule", "ampoule pull", func(ctx context.Context, s *Shelf, img *Image, dir string) (Usage, string, error) {
		root := filepath.Join(dir, "root")
		var out strings.Builder
		cmd := exec.CommandContext(ctx, path, "pull", "--http", "--json", "--keys", s.Keys, s.uri(img), root)
		cmd.Stdout = &out
		u, err := Measure(cmd, dir)
		if err != nil {
			return u, root, err
		}
		var facts struct {
			Micros int64 `json:"us"`
		}
		if err := json.Unmarshal([]byte(out.String()), &facts); err != nil {
			return u, root, fmt.Errorf("ampoule pull --json: %w", err)
		}
		u.Inner = time.Duration(facts.Micros) * time.Microsecond
		return u, root, nil
	}}
}

// Peer is skopeo and umoci of a Debian suite, fetched into a cache folder if they are not there. An error that is
// [debian.ErrNotServed] says that they cannot be had. Unless rawUnpack, umoci also makes the runtime bundle that it is
// meant for, with the hashes of all files.
func Peer(ctx context.Context, suite, cache string, rawUnpack bool, progress io.Writer) (*Tool, error) {
	pkgs, err := debian.Fetch(ctx, cache, suite, []string{"skopeo", "umoci"}, progress)
	if err != nil {
		return nil, err
	}
	name := suite
	if release, known := map[string]string{"bookworm": "Debian 12", "trixie": "Debian 13"}[suite]; known {
		name = release
	}
	verb, below := []string{"unpack"}, "rootfs"
	if rawUnpack {
		verb, below = []string{"raw", "unpack"}, ""
	}
	what := fmt.Sprintf("skopeo %s, umoci %s (%s)", pkgs.Version("skopeo"), pkgs.Version("umoci"), strings.Join(verb, " "))
	return &Tool{name, what, func(ctx context.Context, s *Shelf, img *Image, dir string) (Usage, string, error) {
		layout, bundle := filepath.Join(dir, "layout"), filepath.Join(dir, "bundle")
		u, err := Measure(pkgs.Command(ctx, "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false",
			"--dest-oci-accept-uncompressed-layers", "--decryption-key", s.PrivPEM, s.uri(img), "oci:"+layout+":"+img.Tag), dir)
		if err != nil {
			return u, bundle, fmt.Errorf("skopeo: %w", err)
		}
		made := u.Held
		v, err := Measure(pkgs.Command(ctx, "umoci", append(verb, "--rootless", "--image", layout+":"+img.Tag, bundle)...), dir)
		v.Held += made // its own zero is what skopeo has left
		if err != nil {
			return v, bundle, fmt.Errorf("umoci: %w", err)
		}
		return u.then(v), filepath.Join(bundle, below), nil
	}}, nil
}

func (s *Shelf) uri(img *Image) string { return "docker://" + s.Host + "/bench:" + img.Tag }

// Run has a tool pull an image once, below dir. Removing what it made is not part of its time.
func (t *Tool) Run(ctx context.Context, s *Shelf, img *Image, dir string) (u Usage, err error) {
	out, err := os.MkdirTemp(dir, "out-*")
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(out)) }()
	u, root, err := t.pull(ctx, s, img, out)
	if err != nil {
		return u, err
	}
	unpacked, err := sizeOf(root)
	u.Held = max(0, u.Held-unpacked)
	return u, err
}
