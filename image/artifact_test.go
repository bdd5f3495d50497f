package image

import (
	"bytes"
	stdcmp "cmp"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// artifact stores a manifest of files and returns its reference. Its config is as ORAS writes it, unless more says otherwise.
func (s *shelf) artifact(t *testing.T, more map[string]any, layers ...v1.Descriptor) string {
	t.Helper()
	m := map[string]any{
		"schemaVersion": 2, "mediaType": ociManifest, "artifactType": "application/vnd.example.table", "layers": layers,
		"config": map[string]any{"mediaType": emptyConfig, "digest": digestOf([]byte("{}")), "size": 2, "data": "e30="},
	}
	for k, v := range more {
		m[k] = v
	}
	return s.tag(t, "artifact", m)
}

func file(s *shelf, body, mediaType, title string, more ...string) v1.Descriptor {
	d := v1.Descriptor{Size: int64(len(body)), Digest: hashOf([]byte(body)), Annotations: map[string]string{titleKey: title}}
	d.MediaType = types.MediaType(stdcmp.Or(mediaType, ociLayer))
	for i := 0; i < len(more); i += 2 {
		d.Annotations[more[i]] = more[i+1]
	}
	if title == "" {
		delete(d.Annotations, titleKey)
	}
	s.put([]byte(body))
	return d
}

func TestArtifacts(t *testing.T) {
	s := newShelf(t)
	tar := string(treetest.Tar(t, treetest.Entry{Name: "d/a", Body: "1"}))
	zipped := string(plain{[]byte(tar), ociLayer + "+gzip"}.blob(t))
	uri := s.artifact(t, nil,
		file(s, "a,b\n", "", "iris.csv"), // ORAS calls a file a tar unless told otherwise
		file(s, "x", "application/vnd.example", "some/where/x.bin"),
		file(s, zipped, ociLayer+"+gzip", "d.tar.gz"),
		file(s, zipped, ociLayer+"+gzip", "d", unpackKey, "true"),
		file(s, tar, ociLayer, ""))
	i, err := Resolve(t.Context(), uri, plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	type layer struct {
		File, DiffID string
		Comp         compression
	}
	var got []layer
	for _, l := range i.Layers {
		got = append(got, layer{l.File, l.DiffID, l.comp})
	}
	want := []layer{{"iris.csv", "", raw}, {"some/where/x.bin", "", raw}, {"d.tar.gz", "", raw}, {"", "", gzipped}, {"", "", raw}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !i.Artifact || i.ConfigDigest != digestOf([]byte("{}")) || i.Config.Entrypoint != nil || i.Encrypted() {
		t.Errorf("%+v", i)
	}
	if s.hits[i.ConfigDigest] != 0 {
		t.Error("the config was fetched, and it is empty")
	}
	if i, err = Resolve(t.Context(), s.image(t, "v1", twoLayers(t)...), plainHTTP); err != nil || i.Artifact {
		t.Errorf("an image is called an artifact, or error %v", err)
	}
}

// TestArchivesOfAnArtifact have no diff-IDs, and are unpacked by what their blob's digest says.
func TestArchivesOfAnArtifact(t *testing.T) {
	s := newShelf(t)
	tar := string(treetest.Tar(t, treetest.Entry{Name: "d/a", Body: "1"}, treetest.Entry{Name: "b", Body: "2"}))
	zipped := string(plain{[]byte(tar), ociLayer + "+gzip"}.blob(t))
	for name, l := range map[string]v1.Descriptor{"tar": file(s, tar, ociLayer, ""), "gzip": file(s, zipped, ociLayer+"+gzip", "", unpackKey, "true")} {
		uri := s.artifact(t, nil, l)
		dir, err := unpack(t, uri, nil, Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := treetest.List(t, dir); got["b"] == "" || got["d/a"] == "" {
			t.Errorf("%s: %v", name, got)
		}
		good := s.docs[l.Digest.String()]
		s.docs[l.Digest.String()] = garble(good, true, len(good)/2)
		if _, err := unpack(t, uri, nil, Limits{}); !errors.Is(err, ErrDigest) {
			t.Errorf("%s with one other bit: error %v, want ErrDigest", name, err)
		}
		s.docs[l.Digest.String()] = good
	}
}

// TestEncryptedArtifact carries the annotations of an encrypted layer, and asks for its key like an image.
func TestEncryptedArtifact(t *testing.T) {
	s := newShelf(t)
	kek := NewKey()
	sealed := s.sealed(t, s.image(t, "v1", twoLayers(t)...), kek, nil)
	var m v1.Manifest
	if err := json.NewDecoder(bytes.NewReader(s.docs[sealed[strings.Index(sealed, "@")+1:]])).Decode(&m); err != nil {
		t.Fatal(err)
	}
	l := m.Layers[0]
	l.MediaType, l.Annotations[titleKey] = "text/csv+encrypted", "iris.csv"
	archive := m.Layers[1]
	i, err := Resolve(t.Context(), s.artifact(t, nil, l, archive), plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	if !i.Encrypted() || i.Layers[0].File != "iris.csv" || i.Layers[1].File != "" || len(i.KeyIDs()) != 1 || i.KeyIDs()[0] != "default/key/k" {
		t.Errorf("keys %q of %+v", i.KeyIDs(), i.Layers)
	}
	if i, err = Resolve(t.Context(), s.artifact(t, nil, archive), plainHTTP); err != nil {
		t.Fatal(err)
	}
	if err := i.Unpack(t.Context(), filepath.Join(t.TempDir(), "root"), Keys{"default/key/k": kek}, Limits{}, nil); err != nil {
		t.Errorf("an encrypted archive: %v", err)
	}
}

func TestArtifactsThatAreRefused(t *testing.T) {
	s := newShelf(t)
	one := func(title string) []v1.Descriptor { return []v1.Descriptor{file(s, "x", "text/csv", title)} }
	config := func(mediaType string) map[string]any {
		return map[string]any{"config": map[string]any{"mediaType": mediaType, "digest": digestOf([]byte("{}")), "size": 2}}
	}
	for name, c := range map[string]struct {
		more   map[string]any
		layers []v1.Descriptor
		want   error
	}{
		"a file without a name":            {nil, one(""), ErrFormat},
		"a name that goes up":              {nil, one("../x"), ErrUnsafe},
		"a name that goes up inside":       {nil, one("a/../x"), ErrUnsafe},
		"an absolute name":                 {nil, one("/x"), ErrUnsafe},
		"a directory":                      {nil, one("x/"), ErrUnsafe},
		"a dot":                            {nil, one("./x"), ErrUnsafe},
		"a NUL":                            {nil, one("x\x00y"), ErrUnsafe},
		"a whiteout":                       {nil, one("a/.wh.x"), ErrUnsafe},
		"a long component":                 {nil, one(strings.Repeat("x", 256)), ErrTooBig},
		"a long name":                      {nil, one(strings.Repeat("x/", maxFileName/2) + "x"), ErrTooBig},
		"a deep name":                      {nil, one(strings.Repeat("x/", maxFileDepth) + "x"), ErrTooBig},
		"a name twice":                     {nil, append(one("x"), one("x")...), ErrUnsafe},
		"a file that is a folder":          {nil, append(one("x/y"), one("x")...), ErrUnsafe},
		"a folder that is a file":          {nil, append(one("x"), one("x/y")...), ErrUnsafe},
		"unpacking what is no archive":     {nil, []v1.Descriptor{file(s, "x", "text/csv", "x", unpackKey, "true")}, ErrFormat},
		"encrypted, without a packet":      {nil, []v1.Descriptor{file(s, "x", "text/csv+encrypted", "x")}, ErrKey},
		"an image's config, of any type":   {config(ociConfig), one("x"), ErrFormat}, // it is an image then, and {} has no diff-IDs
		"no artifact type, another config": {map[string]any{"artifactType": "", "config": config("application/vnd.x+json")["config"]}, one("x"), ErrFormat},
	} {
		s.put([]byte("{}"))
		if i, err := Resolve(t.Context(), s.artifact(t, c.more, c.layers...), plainHTTP); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, error %v, want %v", name, i, err, c.want)
		}
	}
}

// TestFilesOfAnArtifact are unpacked under their names, in clear or encrypted, and not at all if a bit is another.
func TestFilesOfAnArtifact(t *testing.T) {
	s := newShelf(t)
	kek := NewKey()
	keys := Keys{"default/key/k": kek}
	body := strings.Repeat("a,b\n", chunkSize)
	sealed := s.sealed(t, s.image(t, "v1", plain{[]byte(body), ociLayer}), kek, nil)
	var m v1.Manifest
	if err := json.NewDecoder(bytes.NewReader(s.docs[sealed[strings.Index(sealed, "@")+1:]])).Decode(&m); err != nil {
		t.Fatal(err)
	}
	secret := m.Layers[0]
	secret.MediaType, secret.Annotations[titleKey] = "text/csv+encrypted", "in/secret.csv"
	clear := file(s, body+"c", "text/csv", "iris.csv")
	tar := file(s, string(treetest.Tar(t, treetest.File("d/a", "1"))), ociLayer, "")
	uri := s.artifact(t, nil, clear, secret, tar)
	dir, err := unpack(t, uri, keys, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	got := treetest.List(t, dir)
	if got["iris.csv"] != f644+body+"c" || got["in/secret.csv"] != f644+body || got["d/a"] != f644+"1" {
		t.Errorf("%d entries, %d and %d bytes", len(got), len(got["iris.csv"]), len(got["in/secret.csv"]))
	}
	for _, l := range []v1.Descriptor{clear, secret} {
		good := s.docs[l.Digest.String()]
		s.docs[l.Digest.String()] = garble(good, true, len(good)/2)
		if _, err := unpack(t, uri, keys, Limits{}); !errors.Is(err, ErrDigest) {
			t.Errorf("%s with one other bit: error %v, want ErrDigest", l.Annotations[titleKey], err)
		}
		s.docs[l.Digest.String()] = good
	}
	// A packet that names another digest: the only word on the plaintext that there is.
	i, err := Resolve(t.Context(), s.artifact(t, nil, secret), plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	k, err := i.Layers[0].enc.unwrap(keys)
	if err != nil {
		t.Fatal(err)
	}
	k.digest = digestOf(nil)
	if err := i.unpackOne(t, k); !errors.Is(err, ErrDigest) {
		t.Errorf("another digest in the packet: error %v, want ErrDigest", err)
	}
}

// TestVariants: of an index's images for one processor the newest is taken that it certainly runs.
func TestVariants(t *testing.T) {
	for _, c := range []struct {
		platform, offered string // variants; - is none
		want              int
	}{
		{"linux/amd64", "v3 -", 1},
		{"linux/amd64", "v2 v1 v3", 1},
		{"linux/amd64", "- v1", 0},
		{"linux/amd64", "v4 v3", 1},
		{"linux/amd64", "odd v4", 1},
		{"linux/amd64", "odd", 0},
		{"linux/amd64/v3", "- v2 v4 v3", 3},
		{"linux/amd64/v3", "- v2 v4", 1},
		{"linux/arm64", "v9 v8", 1},
		{"linux/arm64/v8", "v9 -", 1},
		{"linux/arm", "v6 v7 v5", 1},
		{"linux/arm/v6", "v7 v5 v6", 2},
	} {
		var d document
		parts := strings.Split(c.platform, "/")
		for n, v := range strings.Fields(c.offered) {
			m := descriptor{Digest: "sha256:" + strings.Repeat(string(rune('0'+n)), 64)}
			if err := json.Unmarshal([]byte(`{"os":"linux","architecture":"`+parts[1]+`","variant":"`+strings.TrimPrefix(v, "-")+`"}`), &m.Platform); err != nil {
				t.Fatal(err)
			}
			d.Manifests = append(d.Manifests, m)
		}
		if got, err := d.choose(c.platform); err != nil || got.Digest != d.Manifests[c.want].Digest {
			t.Errorf("%s among %s: %s, error %v", c.platform, c.offered, got.Digest, err)
		}
	}
}
