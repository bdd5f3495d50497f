package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// vectors is where the recorded images and keys are.
func vectors(t testing.TB) string {
	t.Helper()
	dir := filepath.Join("..", "..", "shared", "wire", "vectors")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("the recorded vectors are not beside this checkout")
	}
	return dir
}

func vectorKeys(t testing.TB, dir string) Keys {
	t.Helper()
	keys := Keys{}
	for path, file := range map[string]string{"default/key/algo-key": "algo.key", "default/key/dataset-key": "dataset.key"} {
		b, err := os.ReadFile(filepath.Join(dir, "keys", file))
		if err != nil {
			t.Fatal(err)
		}
		keys[path] = b
	}
	return keys
}

func TestVectorsUnpackLikeTheirPlainForms(t *testing.T) {
	dir := vectors(t)
	host := realRegistry(t)
	keys := vectorKeys(t, dir)
	push := func(name string) string {
		t.Helper()
		img, err := Load(t.Context(), filepath.Join(dir, "oci", name), Options{})
		if err != nil {
			t.Fatal(err)
		}
		uri, err := Push(t.Context(), img, "docker://"+host+"/v/"+name+":v1", plainHTTP)
		if err != nil {
			t.Fatal(err)
		}
		return uri
	}
	for enc, c := range map[string]struct{ plain, key string }{
		"enc-algo-v1":       {"plain-algo", "default/key/algo-key"},
		"enc-algo-grpc":     {"plain-algo", "default/key/algo-key"},
		"enc-algo-v2packet": {"plain-algo", "default/key/algo-key"},
		"enc-algo-ctr":      {"plain-algo", "default/key/algo-key"},
		"enc-dataset-v1":    {"plain-dataset", "default/key/dataset-key"},
	} {
		t.Run(enc, func(t *testing.T) {
			want, err := unpack(t, push(c.plain), nil, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			uri := push(enc)
			i, err := Resolve(t.Context(), uri, plainHTTP)
			if err != nil {
				t.Fatal(err)
			}
			if !i.Pinned || !i.PlainHTTP || !i.Encrypted() || i.PinnedURI() != uri {
				t.Errorf("pinned %v, plain http %v, encrypted %v, pinned URI %s; want all true and %s", i.Pinned, i.PlainHTTP, i.Encrypted(), i.PinnedURI(), uri)
			}
			if diff := cmp.Diff([]string{c.key}, i.KeyIDs()); diff != "" {
				t.Errorf("key ids (-want +got):\n%s", diff)
			}
			got, err := unpack(t, uri, keys, Limits{Chown: os.Geteuid() == 0})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(treetest.List(t, want), treetest.List(t, got)); diff != "" {
				t.Errorf("tree (-plain +encrypted):\n%s", diff)
			}
			checkExpected(t, filepath.Join(dir, enc+".expected.json"), i, keys)
		})
	}
}

// checkExpected compares every intermediate value with the recorded one.
func checkExpected(t *testing.T, file string, i *Image, keys Keys) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want []struct {
		DiffID    string `json:"diff_id"`
		Digest    string
		MediaType string
		Plaintext string `json:"plaintext_digest"`
		PrivOpts  string `json:"privopts_json"`
	}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != len(i.Layers) {
		t.Fatalf("%d layers, %d recorded", len(i.Layers), len(want))
	}
	for n, w := range want {
		l := &i.Layers[n]
		if l.DiffID != w.DiffID || l.Digest != w.Digest || l.MediaType != w.MediaType {
			t.Errorf("layer %d is %s %s %s, recorded %s %s %s", n, l.DiffID, l.Digest, l.MediaType, w.DiffID, w.Digest, w.MediaType)
		}
		k, err := l.enc.unwrap(keys)
		if err != nil {
			t.Fatal(err)
		}
		var priv privateOptions
		if err := json.Unmarshal([]byte(w.PrivOpts), &priv); err != nil {
			t.Fatal(err)
		}
		if k.digest != w.Plaintext || !bytes.Equal(k.sym[:], priv.Symkey) || !bytes.Equal(k.nonce[:], priv.CipherOptions["nonce"]) {
			t.Errorf("layer %d: unwrapped key, nonce or digest is not the recorded one", n)
		}
	}
}

func TestVectorWithTheOtherOwnersKeyIsRefusedBeforeAnyFetch(t *testing.T) {
	dir := vectors(t)
	keys := vectorKeys(t, dir)
	keys["default/key/algo-key"] = keys["default/key/dataset-key"]
	for _, name := range []string{"enc-algo-v1", "enc-algo-ctr"} {
		img, err := Load(t.Context(), filepath.Join(dir, "oci", name), Options{})
		if err != nil {
			t.Fatal(err)
		}
		s := newShelf(t)
		uri := s.store(t, "x", img, nil)
		if _, err := unpack(t, uri, keys, Limits{}); !errors.Is(err, ErrKey) {
			t.Errorf("%s: error %v, want ErrKey", name, err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			if n := s.hits[l.Digest.String()]; n != 0 {
				t.Errorf("%s: layer was fetched %d times without a key", name, n)
			}
		}
	}
}
