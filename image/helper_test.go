package image

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	regserver "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
)

var plainHTTP = Options{PlainHTTP: true}

// realRegistry is go-containerregistry's; what is pushed to it, it checks.
func realRegistry(t testing.TB) (host string) {
	t.Helper()
	s := httptest.NewServer(regserver.New(regserver.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// shelf is a registry of one repository, "r/i", that believes whatever it is given.
type shelf struct {
	host string
	mu   sync.Mutex
	docs map[string][]byte // blobs and manifests by digest or tag
	// reply, if set, may answer a request for content itself.
	reply func(w http.ResponseWriter, r *http.Request, b []byte) bool
	hits  map[string]int
}

func newShelf(t testing.TB) *shelf {
	t.Helper()
	s := &shelf{docs: map[string][]byte{}, hits: map[string]int{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.host = strings.TrimPrefix(srv.URL, "http://")
	return s
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return
	}
	id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	s.mu.Lock()
	b, ok := s.docs[id]
	s.hits[id]++
	reply := s.reply
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		var m struct{ MediaType string }
		json.Unmarshal(b, &m)
		w.Header().Set("Content-Type", m.MediaType)
	}
	if reply != nil && reply(w, r, b) {
		return
	}
	w.Write(b)
}

func (s *shelf) put(b []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digestOf(b)
	s.docs[d] = b
	return d
}

// tag stores a manifest and returns the pinned reference to it.
func (s *shelf) tag(t testing.TB, name string, m any) string {
	t.Helper()
	b, ok := m.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	}
	d := s.put(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.docs[name] = b
	return fmt.Sprintf("docker://%s/r/i:%s@%s", s.host, name, d)
}

const f644 = "-rw-r--r-- " // how treetest.List shows an ordinary file

// plain is one layer to be: a tar, how it is stored.
type plain struct {
	tar       []byte
	mediaType string
}

func (p plain) blob(t testing.TB) []byte {
	t.Helper()
	comp, _, err := layerType(p.mediaType)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	var w io.WriteCloser
	switch comp {
	case raw:
		return p.tar
	case gzipped:
		w = gzip.NewWriter(&b)
	case zstded:
		if w, err = zstd.NewWriter(&b); err != nil {
			t.Fatal(err)
		}
	}
	w.Write(p.tar)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image stores a plain image of the layers and returns its reference.
func (s *shelf) image(t testing.TB, name string, layers ...plain) string {
	t.Helper()
	diffs := []string{}
	descs := []desc{}
	for _, l := range layers {
		l.mediaType = cmp.Or(l.mediaType, ociLayer+"+gzip")
		b := l.blob(t)
		diffs = append(diffs, digestOf(l.tar))
		descs = append(descs, desc{"mediaType": l.mediaType, "digest": s.put(b), "size": len(b)})
	}
	return s.described(t, name, diffs, descs)
}

type desc = map[string]any

// stored is an image of one layer, whose blob is given beside its archive.
func (s *shelf) stored(t testing.TB, archive, blob []byte, mediaType string) string {
	t.Helper()
	return s.described(t, "stored", []string{digestOf(archive)}, []desc{{"mediaType": mediaType, "digest": s.put(blob), "size": len(blob)}})
}

func (s *shelf) described(t testing.TB, name string, diffs []string, descs []desc) string {
	t.Helper()
	config, err := json.Marshal(desc{
		"os": "linux", "architecture": "amd64",
		"config": desc{"Entrypoint": []string{"/bin/run"}, "Cmd": []string{"x"}, "Env": []string{"A=b"}, "WorkingDir": "/w", "User": "7:8"},
		"rootfs": desc{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s.tag(t, name, desc{
		"schemaVersion": 2, "mediaType": ociManifest, "layers": descs,
		"config": desc{"mediaType": ociConfig, "digest": s.put(config), "size": len(config)},
	})
}

// store puts a v1.Image on the shelf after tamper, if any, had its way with the manifest.
func (s *shelf) store(t testing.TB, name string, img v1.Image, tamper func(m *v1.Manifest, blob [][]byte)) string {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	s.put(config)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var blobs [][]byte
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, b)
	}
	if tamper != nil {
		tamper(m, blobs)
	}
	for _, b := range blobs {
		s.put(b)
	}
	return s.tag(t, name, m)
}

// sealed encrypts the image at uri under kek and stores the result.
func (s *shelf) sealed(t testing.TB, uri string, kek []byte, tamper func(m *v1.Manifest, blob [][]byte)) string {
	t.Helper()
	src, err := Load(t.Context(), uri, plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	img, err := Encrypt(t.Context(), src, kek, "kbs:///default/key/k", EncryptOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.store(t, "sealed", img, tamper)
}

// unpack resolves and unpacks to a fresh directory. On error it checks that nothing is left.
func unpack(t testing.TB, uri string, keys Keys, lim Limits) (string, error) {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "root")
	i, err := Resolve(t.Context(), uri, plainHTTP)
	if err != nil {
		return "", err
	}
	err = i.Unpack(t.Context(), dir, keys, lim, nil)
	if err == nil {
		return dir, nil
	}
	left, lerr := os.ReadDir(parent)
	if lerr != nil {
		t.Fatal(lerr)
	}
	if len(left) != 0 {
		t.Errorf("failed Unpack left %v", left)
	}
	return "", err
}
