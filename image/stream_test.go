package image

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// A gate holds the first half of one blob back until it is opened.
type gate struct {
	size int // of the blob that is held
	open chan struct{}
}

func (g gate) reply(w http.ResponseWriter, r *http.Request, b []byte) bool {
	if len(b) != g.size {
		return false
	}
	w.Write(b[:len(b)/2])
	w.(http.Flusher).Flush()
	select {
	case <-g.open:
	case <-r.Context().Done():
	}
	w.Write(b[len(b)/2:])
	return true
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// TestLayersAheadAreBoundedAndNothingShowsBeforeTheEnd: while the first layer is held back, later ones are fetched, but no more of them than
// there is memory for; and the image is nowhere.
func TestLayersAheadAreBoundedAndNothingShowsBeforeTheEnd(t *testing.T) {
	const big = (aheadChunks + 8) * chunkSize
	s := newShelf(t)
	first := plain{treetest.Tar(t, treetest.File("first", string(random(3*chunkSize)))), ociLayer}
	layers := []plain{first}
	for n := range aheadLayers {
		layers = append(layers, plain{treetest.Tar(t, treetest.File(fmt.Sprint("f", n), string(random(big+n)))), ociLayer})
	}
	uri := s.image(t, "p", layers...)
	g := gate{len(first.tar), make(chan struct{})}
	s.reply = g.reply
	i, err := Resolve(t.Context(), uri, plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	dir := filepath.Join(parent, "root")
	var fetched atomic.Int64
	progress := make(chan struct{}, 1<<16)
	done := make(chan error)
	go func() {
		done <- i.Unpack(t.Context(), dir, nil, Limits{}, func(n int64) { fetched.Add(n); progress <- struct{}{} })
	}()
	// All that layers ahead can have comes, and nothing of the first, of which half a chunk is missing.
	for fetched.Load() < aheadChunks*chunkSize {
		<-progress
	}
	if got := fetched.Load(); got > (aheadChunks+ownChunks)*chunkSize {
		t.Errorf("%d bytes are in memory, of %d", got, (aheadChunks+ownChunks)*chunkSize)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the image shows before it is verified: %v", err)
	}
	left, err := os.ReadDir(parent)
	if err != nil || len(left) != 1 {
		t.Fatalf("beside it are %v, %v; want the one staging folder", left, err)
	}
	if fi, err := left[0].Info(); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the staging folder has mode %v, %v; want 0700", fi.Mode(), err)
	}
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(treetest.List(t, dir)) != len(layers) {
		t.Error("files are missing")
	}
}

// TestImagesShareBuffers: more images at once than there are places, each with more layers than are fetched ahead, in the same memory.
func TestImagesShareBuffers(t *testing.T) {
	s := newShelf(t)
	kek := NewKey()
	mem := NewBuffers()
	o := plainHTTP
	o.Buffers = mem
	var all sync.WaitGroup
	for n := range 2 * atOnce {
		var layers []plain
		for l := range 2 * aheadLayers {
			layers = append(layers, plain{treetest.Tar(t, treetest.File(fmt.Sprint(l), string(random(2*chunkSize+n)))), ociLayer + "+zstd"})
		}
		i, err := Resolve(t.Context(), s.sealed(t, s.image(t, "p", layers...), kek, nil), o)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "root")
		all.Go(func() {
			if err := i.Unpack(t.Context(), dir, Keys{"default/key/k": kek}, Limits{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(mem.blobs) != aheadChunks || len(mem.archives) != aheadChunks || len(mem.turns) != 0 || len(mem.wide) != 0 {
		t.Errorf("of %d chunks of each kind %d and %d came back; %d places and %d large windows are still taken", aheadChunks, len(mem.blobs), len(mem.archives), len(mem.turns), len(mem.wide))
	}
}

func TestZstdWindows(t *testing.T) {
	archive := treetest.Tar(t, treetest.File("a", strings.Repeat(string(random(1<<20)), 3)))
	for window, want := range map[int]error{4 << 20: nil, usualWindow: nil, 2 * usualWindow: nil, maxWindow: nil, 2 * maxWindow: ErrTooBig} {
		s := newShelf(t)
		mem := NewBuffers()
		o := plainHTTP
		o.Buffers = mem
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
		if err != nil {
			t.Fatal(err)
		}
		z.Write(archive)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		i, err := Resolve(t.Context(), s.stored(t, archive, b.Bytes(), ociLayer+"+zstd"), o)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time with the decoder of the first
			if err := i.Unpack(t.Context(), filepath.Join(t.TempDir(), "root"), nil, Limits{}, nil); !errors.Is(err, want) {
				t.Errorf("window of %d MiB: error %v, want %v", window>>20, err, want)
			}
		}
		if len(mem.wide) != 0 {
			t.Errorf("window of %d MiB: the place for large windows is still taken", window>>20)
		}
	}
}

// TestKeyPacketDigest: the plaintext blob's own digest is held against the packet's where nothing else fixes key and nonce.
func TestKeyPacketDigest(t *testing.T) {
	kek := NewKey()
	keys := Keys{"default/key/k": kek}
	for _, mt := range []string{ociLayer, ociLayer + "+gzip", ociLayer + "+zstd"} {
		s := newShelf(t)
		uri := s.sealed(t, s.image(t, "p", plain{treetest.Tar(t, treetest.File("a", string(random(2*chunkSize)))), mt}), kek, nil)
		i, err := Resolve(t.Context(), uri, plainHTTP)
		if err != nil {
			t.Fatal(err)
		}
		l := &i.Layers[0]
		for _, fixed := range []bool{true, false} {
			for _, right := range []bool{true, false} {
				k, err := l.enc.unwrap(keys)
				if err != nil {
					t.Fatal(err)
				}
				if !k.fixed {
					t.Fatal("a key under A256GCM with its nonce beside it leaves nothing open")
				}
				if k.fixed = fixed; !right {
					k.digest = formatDigest(random(32))
				}
				err = i.unpackOne(t, k)
				if wrong := !right && (!fixed || l.comp == raw); wrong != errors.Is(err, ErrDigest) || !wrong && err != nil {
					t.Errorf("%s, fixed %v, digest right %v: error %v", mt, fixed, right, err)
				}
			}
		}
	}
}

// unpackOne unpacks an image of one layer under a key of the test's.
func (i *Image) unpackOne(t *testing.T, k *layerKey) error {
	t.Helper()
	p := i.passages([]*layerKey{k})
	i.start(t.Context(), p, make(chan struct{}, 1), func(int64) {})
	return p[0].unpack(mustTree(t))
}

func TestPublicNonceAndUnauthenticatedPacketsLeaveThePlaintextOpen(t *testing.T) {
	nonce := random(16)
	for name, c := range map[string]struct {
		wrap string
		pub  []byte
		want bool
	}{
		"GCM, nonce beside the key": {wrapGCM, nil, true},
		"GCM, nonce in the open":    {wrapGCM, nonce, false},
		"CTR":                       {wrapCTR, nil, false},
	} {
		kek := NewKey()
		opts := fmt.Sprintf(`{"symkey":%q,"digest":"sha256:%s","cipheroptions":{"nonce":%q}}`, b64(string(random(32))), hex.EncodeToString(random(32)), b64(string(nonce)))
		p := packet{wrapType: c.wrap}
		p.iv, p.wrapped = wrapAs(t, c.wrap, kek, []byte(opts))
		k, err := p.unwrap(kek, c.pub)
		if err != nil {
			t.Fatal(err)
		}
		if k.fixed != c.want {
			t.Errorf("%s: fixed %v, want %v", name, k.fixed, c.want)
		}
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// wrapAs wraps a layer key as CoCo's packets have it.
func wrapAs(t *testing.T, kind string, kek, plain []byte) (iv, wrapped []byte) {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	if kind == wrapCTR {
		iv, wrapped = random(aes.BlockSize), make([]byte, len(plain))
		cipher.NewCTR(block, iv).XORKeyStream(wrapped, plain)
		return iv, wrapped
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	iv = random(gcm.NonceSize())
	return iv, gcm.Seal(nil, iv, plain, nil)
}
