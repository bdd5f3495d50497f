package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/source"
)

// initramfs is a folder with the files of an image.
func initramfs(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAUKIRunsWithNoCommandLineButItsOwn(t *testing.T) {
	const own = "quiet ampoule.profile=simulation ampoule.deadline=10m"
	for _, c := range []struct {
		name, started string
		files         map[string]string
		refused       bool
	}{
		{"its own", own + "\n", map[string]string{"cmdline": own}, false},
		{"nothing", "\n", map[string]string{"cmdline": own}, true},
		{"a word more", own + " ampoule.allow=errors\n", map[string]string{"cmdline": own}, true},
		{"a word more in front", "initrd=initrd " + own + "\n", map[string]string{"cmdline": own}, true},
		{"a space more", own + " \n", map[string]string{"cmdline": own}, true},
		{"the same words in another order", "ampoule.profile=simulation quiet ampoule.deadline=10m\n", map[string]string{"cmdline": own}, true},
		{"any, for an image that has none", "ampoule.profile=simulation ampoule.deadline=10m\n", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, peer, _ := bareMachine()
			m.mount = func() error { return m.baked.read(initramfs(t, c.files)) }
			m.commandLine = func() (string, error) { return c.started, nil }
			reached := false
			boot(t.Context(), m, []step{sequence[0], {"next", result.Internal, sequence[0].limit, func(r *run, _ context.Context) error {
				reached = r.opts.Deadline.Minutes() == 10
				return nil
			}}})
			o := peer.outcomes()
			switch {
			case len(o) != 1:
				t.Fatalf("outcomes %v", o)
			case c.refused && (o[0].Step != "mount" || o[0].Reason != result.BadManifest || reached):
				t.Errorf("outcome %+v, reached the next step: %v; want it refused in mount", o[0], reached)
			case !c.refused && (o[0].Reason != result.OK || !reached):
				t.Errorf("outcome %+v, the options of the line are there: %v", o[0], reached)
			}
		})
	}
}

// What the machine was started with does not even decide how a refusal is told.
func TestARefusedCommandLineDecidesNothing(t *testing.T) {
	own := &baked{line: "ampoule.profile=production"}
	got, err := own.own("ampoule.profile=simulation ampoule.allow=errors\n")
	if got != own.line || err == nil || !strings.Contains(err.Error(), "ampoule.allow=errors") {
		t.Errorf("%q, %v; want its own line and an error with the other", got, err)
	}
}

func TestTheManifestOfTheImage(t *testing.T) {
	image := cmdline.Source{Kind: cmdline.Image}
	var with baked
	if err := with.read(initramfs(t, map[string]string{"manifest.json": "{}"})); err != nil {
		t.Fatal(err)
	}
	if b, err := with.fetch(t.Context(), image); err != nil || string(b) != "{}" {
		t.Errorf("%q, %v", b, err)
	}
	var without baked
	if err := without.read(initramfs(t, nil)); err != nil {
		t.Fatal(err)
	}
	if b, err := without.fetch(t.Context(), image); err == nil || b != nil {
		t.Errorf("an image without a manifest has %q, %v", b, err)
	}
	if _, err := with.fetch(t.Context(), cmdline.Source{Kind: "cmdline", Arg: "!"}); err == nil || !strings.Contains(err.Error(), "command line") {
		t.Errorf("another source than the image: %v", err)
	}
	if err := new(baked).read(initramfs(t, map[string]string{"manifest.json": string(bytes.Repeat([]byte(" "), source.MaxSize+1))})); err == nil {
		t.Error("a manifest over the limit was taken")
	}
	if err := new(baked).read(initramfs(t, map[string]string{"cmdline": strings.Repeat("a", 5000)})); err == nil {
		t.Error("a command line over the limit was taken")
	}
}
