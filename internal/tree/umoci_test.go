package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/debian"
)

func chacha(seed uint64) *rand.ChaCha8 {
	return rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
}

func TestSameAsUmoci(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m, archives, _ := generator{rand.New(chacha(seed)).IntN}.layers(t, false)
			ours := SameAsUmoci(t, archives, m.unsaid)
			if diff := cmp.Diff(m.list(), snapshot(t, ours, m.unsaid)); diff != "" {
				t.Errorf("tree (-model +got):\n%s", diff)
			}
		})
	}
}

// SameAsUmoci unpacks layers here and by Debian's umoci, and compares names, types, modes, owners, contents, link targets, hard links and
// times. umoci keeps setuid and setgid, and the time of a directory is lost where it makes one in it that no entry names; so are times of
// directories that are unsaid. It removes the parent of the root on a whiteout named ".wh..." (FIELD S26): no image here has one, and it
// works in directories that nobody misses. It returns our tree.
func SameAsUmoci(t *testing.T, archives [][]byte, unsaid func(rel string, mtime time.Time) bool) string {
	t.Helper()
	root, err := debian.Fetch(t.Context(), debian.CacheDir(), "bookworm", []string{"umoci"}, os.Stderr)
	if errors.Is(err, debian.ErrNotServed) {
		t.Skipf("no umoci to compare with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now().Add(-time.Second)
	ours, err := unpackTars(t, Limits{Chown: os.Geteuid() == 0}, archives...)
	if err != nil {
		t.Fatal(err)
	}
	box := filepath.Join(t.TempDir(), "thrown", "away")
	if err := os.MkdirAll(box, 0o700); err != nil {
		t.Fatal(err)
	}
	layout(t, filepath.Join(box, "image"), archives)
	args := []string{"unpack", "--image", filepath.Join(box, "image") + ":it", filepath.Join(box, "bundle")}
	if os.Geteuid() != 0 {
		args = append(args[:1], append([]string{"--rootless"}, args[1:]...)...)
	}
	cmd := root.Command(t.Context(), "umoci", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	late := map[string]bool{}
	theirs := snapshot(t, filepath.Join(box, "bundle", "rootfs"), func(rel string, mtime time.Time) bool {
		late[rel] = mtime.After(start)
		return late[rel] || unsaid(rel, mtime)
	})
	for p, v := range theirs {
		theirs[p] = withoutSetID(v)
	}
	if diff := cmp.Diff(theirs, snapshot(t, ours, func(rel string, mtime time.Time) bool { return late[rel] || unsaid(rel, mtime) })); diff != "" {
		t.Errorf("tree (-umoci +ours):\n%s", diff)
	}
	return ours
}

// withoutSetID clears the bits in what [show] makes.
func withoutSetID(s string) string {
	var mode int
	fmt.Sscanf(s[1:5], "%o", &mode)
	keep := 0o777
	if s[0] == 'd' {
		keep |= 0o1000
	}
	return fmt.Sprintf("%c%04o%s", s[0], mode&keep, s[5:])
}

// layout writes an image with the tag "it".
func layout(t testing.TB, dir string, archives [][]byte) {
	t.Helper()
	type desc struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, v any) desc {
		b, ok := v.([]byte)
		if !ok {
			b, _ = json.Marshal(v)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		put("blobs/sha256/"+sum, b)
		return desc{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(b)}
	}
	const v1 = "application/vnd.oci.image."
	var layers []desc
	var diffs []string
	for _, a := range archives {
		d := blob(v1+"layer.v1.tar", bytes.Clone(a))
		layers, diffs = append(layers, d), append(diffs, d.Digest)
	}
	config := blob(v1+"config.v1+json", map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffs}})
	m := blob(v1+"manifest.v1+json", map[string]any{"schemaVersion": 2, "mediaType": v1 + "manifest.v1+json", "config": config, "layers": layers})
	m.Annotations = map[string]string{"org.opencontainers.image.ref.name": "it"}
	index, _ := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []desc{m}})
	put("index.json", index)
	put("oci-layout", []byte(strings.TrimSpace(`{"imageLayoutVersion":"1.0.0"}`)))
}
