package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// TestEveryPlaceOfAnImage: what is encrypted comes out of each, as it went in.
func TestEveryPlaceOfAnImage(t *testing.T) {
	s := newShelf(t)
	src := mustLoad(t, s.image(t, "plain", twoLayers(t)...))
	kek := NewKey()
	img := must(Encrypt(t.Context(), src, kek, "kbs:///default/key/k", EncryptOptions{}))
	want, _ := img.Digest()
	dir, host := t.TempDir(), realRegistry(t)
	for name, place := range map[string]string{
		"a folder":                    filepath.Join(dir, "layout"),
		"a folder, said so":           "oci:" + filepath.Join(dir, "layout2"),
		"an archive, by its name":     filepath.Join(dir, "image.tar"),
		"an archive, said so":         "oci-archive:" + filepath.Join(dir, "image"),
		"a registry":                  "docker://" + host + "/a/b:c",
		"a folder whose name ends so": "oci:" + filepath.Join(dir, "layout.tar"),
	} {
		ref, err := Write(t.Context(), img, place, plainHTTP)
		if err != nil || !strings.HasSuffix(ref, want.String()) {
			t.Errorf("%s: %s, %v", name, ref, err)
			continue
		}
		back, err := Load(t.Context(), place, plainHTTP)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, _ := back.Digest(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if !strings.Contains(name, "registry") {
			if err := validate.Image(back, validate.Fast); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := Write(t.Context(), img, place, plainHTTP); err == nil {
				t.Errorf("%s: written over", name)
			}
		}
		uri := must(Push(t.Context(), back, "docker://"+host+"/x/"+strings.ReplaceAll(strings.Fields(name)[1], ",", "")+":t", plainHTTP))
		root, err := unpack(t, uri, Keys{"default/key/k": bytes.Clone(kek)}, Limits{})
		if err != nil || len(treetest.List(t, root)) != 3 {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, b := must(os.ReadFile(filepath.Join(dir, "image.tar"))), must(os.ReadFile(filepath.Join(dir, "image")))
	if !bytes.Equal(a, b) {
		t.Error("two archives of one image differ")
	}
	if _, err := Write(t.Context(), img, "docker-archive:"+filepath.Join(dir, "d.tar"), plainHTTP); !errors.Is(err, ErrFormat) {
		t.Errorf("docker-archive: %v", err)
	}
}

// tarOf is an archive of these files.
func tarOf(t *testing.T, files map[string][]byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	f := must(os.Create(file))
	w := tar.NewWriter(f)
	for name, b := range files {
		if err := entry(w, name, int64(len(b)), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestArchivesOfManyKinds: indexes in layouts, and archives that are wrong.
func TestArchivesOfManyKinds(t *testing.T) {
	s := newShelf(t)
	img := mustLoad(t, s.image(t, "plain", twoLayers(t)...))
	saved := filepath.Join(t.TempDir(), "i.tar")
	if err := SaveArchive(img, saved); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	f := must(os.Open(saved))
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		files["./"+h.Name] = must(io.ReadAll(r)) // as GNU tar names them
	}
	digest := must(img.Digest())
	size := must(img.Size())
	desc := func(platform string) v1.Descriptor {
		d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: digest, Size: size}
		if platform != "" {
			os, arch, _ := strings.Cut(platform, "/")
			d.Platform = &v1.Platform{OS: os, Architecture: arch}
		}
		return d
	}
	index := func(all ...v1.Descriptor) []byte {
		return must(json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: all}))
	}
	inner := index(desc("linux/amd64"), desc("unknown/unknown"))
	other := index(desc("linux/arm64"), desc("linux/arm64"))
	nested := func(b []byte) v1.Descriptor {
		return v1.Descriptor{MediaType: types.OCIImageIndex, Digest: hashOf(b), Size: int64(len(b))}
	}
	deep := index(nested(inner))
	for name, c := range map[string]struct {
		edit func(map[string][]byte)
		want string // "": it opens
	}{
		"as it was":              {func(map[string][]byte) {}, ""},
		"two images, one for us": {func(f map[string][]byte) { f["./index.json"] = inner }, ""},
		"an index in the index": {func(f map[string][]byte) {
			f["./index.json"], f["./"+blobName(hashOf(inner))] = index(nested(inner)), inner
		}, ""},
		"two images, none for us": {func(f map[string][]byte) { f["./index.json"] = other }, "2 manifests and 0 for linux/amd64"},
		"no images":               {func(f map[string][]byte) { f["./index.json"] = index() }, "0 manifests"},
		"three indexes": {func(f map[string][]byte) {
			f["./index.json"], f["./"+blobName(hashOf(deep))], f["./"+blobName(hashOf(inner))] = index(nested(deep)), deep, inner
		}, "an index inside an index"},
		"no index":                     {func(f map[string][]byte) { delete(f, "./index.json") }, "index.json"},
		"no manifest":                  {func(f map[string][]byte) { delete(f, "./"+blobName(digest)) }, blobName(digest)},
		"a manifest of another digest": {func(f map[string][]byte) { f["./"+blobName(digest)] = []byte("{}") }, "wrong digest"},
		"an index that is none":        {func(f map[string][]byte) { f["./index.json"] = []byte("[") }, "index"},
		"an index that is enormous":    {func(f map[string][]byte) { f["./index.json"] = make([]byte, maxManifest+1) }, "at most"},
		"a digest that is a way out": {func(f map[string][]byte) {
			f["./index.json"] = bytes.Replace(f["./index.json"], []byte(digest.String()), []byte("sha256:../../x"), 1)
		}, "index"},
		"a layer that is another": {func(f map[string][]byte) {
			l := must(img.Layers())[0]
			f["./"+blobName(must(l.Digest()))] = []byte("x")
		}, "wrong digest"},
		"neither a layout nor docker's": {func(f map[string][]byte) { delete(f, "./oci-layout") }, "docker save"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := map[string][]byte{}
			for k, v := range files {
				changed[k] = v
			}
			c.edit(changed)
			opened, err := Load(t.Context(), tarOf(t, changed), Options{})
			if err == nil {
				_, err = Encrypt(t.Context(), opened, NewKey(), "kbs:///a/b/c", EncryptOptions{})
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestFailedArchiveLeavesNothing: a source that changes under us.
func TestFailedArchiveLeavesNothing(t *testing.T) {
	s := newShelf(t)
	src := filepath.Join(t.TempDir(), "src")
	if err := Save(mustLoad(t, s.image(t, "plain", twoLayers(t)...)), src); err != nil {
		t.Fatal(err)
	}
	var read int64
	img, err := EncryptFor(t.Context(), mustLoad(t, src), []Recipient{must(ForKey(NewKey(), "kbs:///a/b/c", EncryptOptions{}))}, func(n int64) { read += n })
	if err != nil {
		t.Fatal(err)
	}
	var want int64
	for _, l := range must(img.Manifest()).Layers {
		want += l.Size
	}
	if read != want {
		t.Errorf("progress of %d bytes, want %d", read, want)
	}
	blobs, _ := filepath.Glob(filepath.Join(src, "blobs/sha256/*"))
	for _, b := range blobs {
		if err := os.WriteFile(b, append(must(os.ReadFile(b)), 0), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "i.tar")
	if err := SaveArchive(img, file); err == nil {
		t.Error("a source that grew was written")
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left %s", file)
	}
}

func FuzzArchive(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range map[string]string{layoutMark: `{"imageLayoutVersion":"1.0.0"}`, indexName: `{"schemaVersion":2,"manifests":[]}`} {
		if err := entry(w, name, int64(len(content)), strings.NewReader(content)); err != nil {
			f.Fatal(err)
		}
	}
	w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "i.tar")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, isLayout, err := openArchive(file)
		if err != nil || !isLayout {
			return
		}
		if img, err := layoutImage(a, defaultPlatform); err == nil {
			if diff := cmp.Diff(digestOf(must(img.RawManifest())), fmt.Sprint(must(img.Digest()))); diff != "" {
				t.Error(diff)
			}
		}
	})
}
