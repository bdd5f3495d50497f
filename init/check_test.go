package main

import (
	"crypto/sha256"
	"crypto/sha3"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// TestCheckFile: a hash in a manifest is of the one regular file of an image, wherever that is.
func TestCheckFile(t *testing.T) {
	sum, sum3 := sha256.Sum256([]byte("1\n")), sha3.Sum256([]byte("1\n"))
	wrong := sha256.Sum256([]byte("2\n"))
	for name, c := range map[string]struct {
		files string // by path, each with "1\n"
		want  manifest.Resource
		err   string // "": none
	}{
		"no hash is asked for":                 {"a b", manifest.Resource{}, ""},
		"SHA-256 holds":                        {"a", manifest.Resource{SHA256: sum[:]}, ""},
		"SHA3-256 holds":                       {"a", manifest.Resource{SHA3_256: sum3[:]}, ""},
		"both hold, of a file far below":       {"x/y/a", manifest.Resource{SHA256: sum[:], SHA3_256: sum3[:]}, ""},
		"SHA-256 differs":                      {"a", manifest.Resource{SHA256: wrong[:]}, "datasets[0].sha256"},
		"SHA3-256 differs, though SHA-2 holds": {"a", manifest.Resource{SHA256: sum[:], SHA3_256: wrong[:]}, "datasets[0].sha3_256"},
		"SHA-2 differs, though SHA3-256 holds": {"a", manifest.Resource{SHA256: wrong[:], SHA3_256: sum3[:]}, "datasets[0].sha256"},
		"SHA-2 stands for SHA-3":               {"a", manifest.Resource{SHA3_256: sum[:]}, "datasets[0].sha3_256"},
		"two files":                            {"a x/b", manifest.Resource{SHA256: sum[:]}, "has a and x/b"},
		"no file":                              {"", manifest.Resource{SHA256: sum[:]}, "has none"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, file := range strings.Fields(c.files) {
				path := filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := checkFile(&input{name: "datasets[0]", want: c.want, dir: dir}, "")
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want one with %q", err, c.err)
			}
		})
	}
}

// TestCheckFileFollowsNoLink: a link is not a file, and what it points at is not the image's.
func TestCheckFileFollowsNoLink(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("1\n"))
	if err := checkFile(&input{want: manifest.Resource{SHA256: sum[:]}, dir: dir}, ""); err == nil {
		t.Error("a link out of the image passed for its file")
	}
}

// TestHashOfADataset in a whole boot.
func TestHashOfADataset(t *testing.T) {
	for content, reason := range map[string]result.Reason{"1\n": result.OK, "2\n": result.BadImage} {
		t.Run(string(reason), func(t *testing.T) {
			f := newFlow(t)
			key := fmt.Sprintf(`"kbs_resource_path": %q,`, demo.DatasetKey)
			f.edit(key, key+fmt.Sprintf(` "sha256": "%x",`, sha256.Sum256([]byte(content))))
			f.boot()
			if reason == result.OK {
				f.ends("", reason, true)
			} else {
				f.ends("pull", reason, false)
			}
		})
	}
}
