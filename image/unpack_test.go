package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/internal/tree"
	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

func twoLayers(t testing.TB) []plain {
	return []plain{
		{tar: treetest.Tar(t, treetest.Entry{Name: "app/"}, treetest.File("app/a", strings.Repeat("one ", 30_000)))},
		{tar: treetest.Tar(t, treetest.File("app/b", "two"), treetest.File("app/.wh.gone", "")), mediaType: ociLayer},
	}
}

// edit changes one JSON document in an annotation.
func edit(t *testing.T, d *v1.Descriptor, annotation string, change func(map[string]any)) {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(d.Annotations[annotation])
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	d.Annotations[annotation] = base64.StdEncoding.EncodeToString(b)
}

// restamp makes digest and size of a layer those of its blob again.
func restamp(m *v1.Manifest, n int, blob []byte) {
	m.Layers[n].Digest, m.Layers[n].Size = hashOf(blob), int64(len(blob))
}

func TestBadImagesAreRefusedAndLeaveNothing(t *testing.T) {
	kek := NewKey()
	keys := Keys{"default/key/k": kek}
	type tamper = func(m *v1.Manifest, blob [][]byte)
	corrupt := func(change func(b []byte) []byte) func(t *testing.T, s *shelf) string {
		return func(t *testing.T, s *shelf) string {
			uri := s.sealed(t, s.image(t, "plain", twoLayers(t)...), kek, nil)
			i, err := Resolve(t.Context(), uri, plainHTTP)
			if err != nil {
				t.Fatal(err)
			}
			d := i.Layers[1].Digest
			s.docs[d] = change(append([]byte{}, s.docs[d]...))
			return uri
		}
	}
	altered := func(f tamper) func(t *testing.T, s *shelf) string {
		return func(t *testing.T, s *shelf) string {
			return s.sealed(t, s.image(t, "plain", twoLayers(t)...), kek, f)
		}
	}
	for name, c := range map[string]struct {
		build func(t *testing.T, s *shelf) string
		keys  Keys
		want  error
		layer int
	}{
		"one flipped ciphertext bit": {corrupt(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), keys, ErrDigest, 1},
		"a blob cut short":           {corrupt(func(b []byte) []byte { return b[:len(b)-1] }), keys, ErrTruncated, 1},
		"an empty blob":              {corrupt(func(b []byte) []byte { return nil }), keys, ErrTruncated, 1},
		"a blob with a byte more":    {corrupt(func(b []byte) []byte { return append(b, 0) }), keys, ErrDigest, 1},
		"a flipped bit under a new digest": {altered(func(m *v1.Manifest, b [][]byte) {
			b[0][7] ^= 1
			restamp(m, 0, b[0])
		}), keys, ErrMAC, 0},
		"layers swapped wholesale": {altered(func(m *v1.Manifest, b [][]byte) {
			m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0]
			// Both layers are genuine, so MACs hold; only the diff-IDs know the order.
		}), keys, ErrDiffID, 0},
		"a public HMAC of another layer": {func(t *testing.T, s *shelf) string {
			return altered(func(m *v1.Manifest, b [][]byte) {
				m.Layers[0].Annotations[annotationOpts] = m.Layers[1].Annotations[annotationOpts]
			})(t, s)
		}, keys, ErrMAC, 0},
		"a public nonce of the host's": {func(t *testing.T, s *shelf) string {
			return altered(func(m *v1.Manifest, b [][]byte) {
				edit(t, &m.Layers[1], annotationOpts, func(o map[string]any) {
					o["cipheroptions"] = map[string]any{"nonce": make([]byte, 16)}
				})
			})(t, s)
		}, keys, ErrDigest, 1},
		"no key":              {altered(nil), nil, ErrKey, 0},
		"the wrong key":       {altered(nil), Keys{"default/key/k": NewKey()}, ErrKey, 0},
		"a key stored as hex": {altered(nil), Keys{"default/key/k": fmt.Appendf(nil, "%x\n", kek)}, ErrKey, 0},
		"a packet with a flipped bit": {func(t *testing.T, s *shelf) string {
			return altered(func(m *v1.Manifest, b [][]byte) {
				edit(t, &m.Layers[1], annotationKeys, func(o map[string]any) {
					w, _ := base64.StdEncoding.DecodeString(o["wrapped_data"].(string))
					w[3] ^= 1
					o["wrapped_data"] = w
				})
			})(t, s)
		}, keys, ErrKey, 1},
		"the published sample key": {func(t *testing.T, s *shelf) string {
			return altered(func(m *v1.Manifest, b [][]byte) {
				edit(t, &m.Layers[1], annotationKeys, func(o map[string]any) { o["kid"] = "kbs:///default/test-key/1" })
			})(t, s)
		}, keys, ErrSampleKey, 1},
		"a plain layer of wrong diff-ID": {func(t *testing.T, s *shelf) string {
			uri := s.image(t, "plain", twoLayers(t)...)
			other := s.image(t, "other", plain{tar: treetest.Tar(t, treetest.File("evil", "x"))}, twoLayers(t)[1])
			var a, b v1.Manifest
			json.Unmarshal(s.docs[uri[strings.Index(uri, "@")+1:]], &a)
			json.Unmarshal(s.docs[other[strings.Index(other, "@")+1:]], &b)
			a.Layers[0] = b.Layers[0]
			return s.tag(t, "mixed", a)
		}, nil, ErrDiffID, 0},
		"rubbish that is not gzip": {func(t *testing.T, s *shelf) string {
			return s.store(t, "x", mustLoad(t, s.image(t, "plain", twoLayers(t)...)), func(m *v1.Manifest, b [][]byte) {
				b[0] = []byte("not a gzip stream at all")
				restamp(m, 0, b[0])
			})
		}, nil, ErrFormat, 0},
		"an escape in an honest layer": {func(t *testing.T, s *shelf) string {
			return s.sealed(t, s.image(t, "plain", plain{tar: treetest.Tar(t, treetest.File("../x", "1"))}), kek, nil)
		}, keys, ErrUnsafe, 0},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := unpack(t, c.build(t, newShelf(t)), c.keys, Limits{})
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Layer != c.layer || !strings.HasPrefix(e.URI, "docker://") {
				t.Errorf("error %#v, want one of layer %d", err, c.layer)
			}
			for _, k := range c.keys {
				if strings.Contains(err.Error(), string(k)) {
					t.Error("the error holds the key")
				}
			}
		})
	}
}

func mustLoad(t testing.TB, uri string) v1.Image {
	t.Helper()
	img, err := Load(t.Context(), uri, plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPlainLayerWhereEncryptedIsRequired(t *testing.T) {
	s := newShelf(t)
	kek := NewKey()
	uri := s.image(t, "plain", twoLayers(t)...)
	original := mustLoad(t, uri)
	m, err := original.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	// The host swaps one encrypted layer for the same layer in the clear.
	mixed := s.sealed(t, uri, kek, func(e *v1.Manifest, b [][]byte) { e.Layers[1] = m.Layers[1] })
	for _, u := range []string{uri, mixed, s.image(t, "none")} {
		i, err := Resolve(t.Context(), u, plainHTTP)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.RequireEncrypted(); !errors.Is(err, ErrPlain) || i.Encrypted() {
			t.Errorf("%s: error %v, encrypted %v; want ErrPlain and false", u, err, i.Encrypted())
		}
	}
}

func TestEveryCompressionUnpacksPlainAndEncrypted(t *testing.T) {
	kek := NewKey()
	want := map[string]string{"a": f644 + "1"}
	for _, mt := range []string{
		ociLayer, ociLayer + "+gzip", ociLayer + "+zstd", ociForeign + "+gzip",
		dockerLayer, dockerLayer + ".gzip", dockerLayer + ".zstd", dockerForeign + ".gzip",
	} {
		s := newShelf(t)
		uri := s.image(t, "plain", plain{treetest.Tar(t, treetest.File("a", "1")), mt})
		for _, u := range []string{uri, s.sealed(t, uri, kek, nil)} {
			dir, err := unpack(t, u, Keys{"default/key/k": kek}, Limits{})
			if err != nil {
				t.Errorf("%s: %v", mt, err)
				continue
			}
			if diff := cmp.Diff(want, treetest.List(t, dir)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", mt, diff)
			}
		}
	}
}

func TestManyLayersStackInOrder(t *testing.T) {
	s := newShelf(t)
	var layers []plain
	want := map[string]string{"last": f644 + "39"}
	for n := range 40 {
		layers = append(layers, plain{tar: treetest.Tar(t, treetest.File(fmt.Sprint("f", n), fmt.Sprint(n)), treetest.File("last", fmt.Sprint(n)))})
		want[fmt.Sprint("f", n)] = f644 + fmt.Sprint(n)
	}
	kek := NewKey()
	i, err := Resolve(t.Context(), s.sealed(t, s.image(t, "p", layers...), kek, nil), plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	var got atomic.Int64
	dir := filepath.Join(t.TempDir(), "root")
	if err := i.Unpack(t.Context(), dir, Keys{"default/key/k": kek}, Limits{}, func(n int64) { got.Add(n) }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, treetest.List(t, dir)); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	if got.Load() != i.Size() {
		t.Errorf("progress counted %d bytes of %d", got.Load(), i.Size())
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("the root has mode %v, %v; want 0755", fi.Mode(), err)
	}
	if err := i.Unpack(t.Context(), dir, Keys{"default/key/k": kek}, Limits{}, nil); err == nil {
		t.Error("unpacked over an existing directory")
	}
}

func TestBrokenTransfersAreTakenUpWhereTheyBroke(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 3*chunkSize/16)
	for name, ranges := range map[string]bool{"with ranges": true, "without ranges": false} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			uri := s.image(t, "p", plain{treetest.Tar(t, treetest.File("a", body)), ociLayer})
			var sent atomic.Int64
			s.reply = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
				if len(b) < chunkSize {
					return false
				}
				start := 0
				w.Header().Set("Content-Length", strconv.Itoa(len(b)))
				if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && ranges {
					start, _ = strconv.Atoi(strings.TrimSuffix(from, "-"))
					w.Header().Set("Content-Length", strconv.Itoa(len(b)-start))
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(b)-1, len(b)))
					w.WriteHeader(http.StatusPartialContent)
				}
				// Each connection breaks a bit further on.
				end := min(len(b), int(sent.Add(1))*chunkSize+99)
				if start < end {
					w.Write(b[start:end])
				}
				return true
			}
			dir, err := unpack(t, uri, nil, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if got := treetest.List(t, dir)["a"]; got != f644+body {
				t.Errorf("the file has %d bytes, want %d", len(got), len(body))
			}
			if sent.Load() < 3 {
				t.Errorf("%d transfers, so none was broken", sent.Load())
			}
		})
	}
}

func TestTransferThatNeverProgressesEnds(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "p", plain{treetest.Tar(t, treetest.File("a", "1")), ociLayer})
	s.reply = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		if len(b) != 2048 {
			return false
		}
		w.Header().Set("Content-Length", "2048")
		return true // nothing, and the connection closes
	}
	if _, err := unpack(t, uri, nil, Limits{}); !errors.Is(err, ErrTruncated) {
		t.Errorf("error %v, want ErrTruncated", err)
	}
}

func TestCancelEndsAHangingTransfer(t *testing.T) {
	s := newShelf(t)
	kek := NewKey()
	uri := s.sealed(t, s.image(t, "plain", twoLayers(t)...), kek, nil)
	i, err := Resolve(t.Context(), uri, plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.reply = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		w.Write(b[:1])
		w.(http.Flusher).Flush()
		cancel()
		<-r.Context().Done()
		return true
	}
	parent := t.TempDir()
	if err := i.Unpack(ctx, filepath.Join(parent, "root"), Keys{"default/key/k": kek}, Limits{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("cancelled Unpack left %v, %v", left, err)
	}
}

func TestGzipBombIsStoppedByTheLimit(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "p", plain{tar: treetest.Tar(t, treetest.File("a", strings.Repeat("\x00", 32<<20)))})
	if _, err := unpack(t, uri, nil, Limits{Bytes: 1 << 20}); !errors.Is(err, ErrTooBig) {
		t.Errorf("error %v, want ErrTooBig", err)
	}
	// The same behind the end of the archive, where no file claims it.
	tail := append(treetest.Tar(t, treetest.File("a", "1")), make([]byte, 32<<20)...)
	uri = s.image(t, "q", plain{tar: tail})
	if _, err := unpack(t, uri, nil, Limits{Bytes: 1 << 20}); !errors.Is(err, ErrTooBig) {
		t.Errorf("error %v, want ErrTooBig", err)
	}
}

func mustTree(t *testing.T) *tree.Tree {
	t.Helper()
	tr, err := tree.Open(t.TempDir(), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return tr
}
