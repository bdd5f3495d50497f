package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/tree"
	"github.com/ampoule-vm/ampoule/internal/tree/treetest"
)

// notes is a log that goroutines share.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

// TestMirrors: whatever a mirror does, the image is the registry's, and the log says what it did.
func TestMirrors(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	want, err := unpack(t, uri, nil, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	kind := func(what string) func(r *http.Request) bool {
		return func(r *http.Request) bool { return strings.Contains(r.URL.Path, what) }
	}
	good := func(w http.ResponseWriter, r *http.Request, b []byte) { w.Write(b) }
	// Layers are the blobs that come after the config; it is small here as well, so it is told apart by its braces.
	layer := func(b []byte) bool { return len(b) > 0 && b[0] != '{' }
	for name, c := range map[string]struct {
		of   func(r *http.Request) bool
		do   func(w http.ResponseWriter, r *http.Request, b []byte)
		note string // "" if there is nothing to say
		keep bool   // the mirror is asked on
	}{
		"is as the registry": {kind("/"), good, "", true},
		"lacks the manifest": {kind("/manifests/"), func(w http.ResponseWriter, r *http.Request, b []byte) { http.NotFound(w, r) }, "lacks=sha256:", true},
		"lacks the blobs":    {kind("/blobs/"), func(w http.ResponseWriter, r *http.Request, b []byte) { http.NotFound(w, r) }, "lacks=sha256:", true},
		"is broken":          {kind("/"), func(w http.ResponseWriter, r *http.Request, b []byte) { w.WriteHeader(503) }, "status 503", false},
		"wants a password": {kind("/"), func(w http.ResponseWriter, r *http.Request, b []byte) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
		}, "wants a password", false},
		"hangs up":             {kind("/"), func(w http.ResponseWriter, r *http.Request, b []byte) { panic(http.ErrAbortHandler) }, "EOF", false},
		"has another manifest": {kind("/manifests/"), func(w http.ResponseWriter, r *http.Request, b []byte) { w.Write(append(b, ' ')) }, ErrDigest.Error(), false},
		"has an endless manifest": {kind("/manifests/"), func(w http.ResponseWriter, r *http.Request, b []byte) {
			w.Write(append(b, make([]byte, maxManifest)...))
		}, ErrTooBig.Error(), false},
		"has another config": {kind("/blobs/"), func(w http.ResponseWriter, r *http.Request, b []byte) {
			w.Write(bytes.Replace(b, []byte("/bin/run"), []byte("/bin/sh "), 1)[:len(b)])
		}, ErrDigest.Error(), false},
		"has layers of garbage":          {kind("/blobs/"), func(w http.ResponseWriter, r *http.Request, b []byte) { w.Write(garble(b, layer(b), 0)) }, ErrDigest.Error(), false},
		"has layers with one other byte": {kind("/blobs/"), func(w http.ResponseWriter, r *http.Request, b []byte) { w.Write(garble(b, layer(b), len(b)/2)) }, "mirror is not asked again", false},
		"has layers that are longer":     {kind("/blobs/"), func(w http.ResponseWriter, r *http.Request, b []byte) { w.Write(append(b[:len(b):len(b)], 'x')) }, ErrDigest.Error(), false},
		"breaks off": {kind("/blobs/"), func(w http.ResponseWriter, r *http.Request, b []byte) {
			if layer(b) {
				w.Header().Set("Content-Length", "100000")
				w.Write(b[:len(b)/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			w.Write(b)
		}, "mirror is not asked again", false},
		"ends early": {kind("/blobs/"), func(w http.ResponseWriter, r *http.Request, b []byte) {
			if layer(b) {
				b = b[:len(b)/2]
			}
			w.Write(b)
		}, "mirror is not asked again", false},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var asked []string
			m := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				asked = append(asked, r.URL.Path)
				mu.Unlock()
				if r.Header.Get("Authorization") != "" {
					t.Error("the mirror got a credential")
				}
				path, ok := strings.CutPrefix(r.URL.Path, "/v2/some/prefix/r/i/")
				if !ok {
					t.Errorf("the mirror was asked for %s", r.URL.Path)
				}
				id := path[strings.LastIndexByte(path, '/')+1:]
				s.mu.Lock()
				b, there := s.docs[id]
				s.mu.Unlock()
				if !there || !strings.HasPrefix(id, "sha256:") {
					t.Errorf("the mirror was asked for %s", id)
				}
				if strings.HasPrefix(path, "manifests/") {
					w.Header().Set("Content-Type", ociManifest)
				}
				if c.of(r) {
					c.do(w, r, b)
				} else {
					good(w, r, b)
				}
			}))
			defer m.Close()
			var log notes
			o := Options{PlainHTTP: true, Log: slog.New(slog.NewTextHandler(&log, nil)),
				Mirrors: []Mirror{{At: strings.TrimPrefix(m.URL, "http://") + "/some/prefix", PlainHTTP: true}}}
			i, err := Resolve(t.Context(), uri, o)
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(t.TempDir(), "root")
			if err := i.Unpack(t.Context(), dir, nil, Limits{}, nil); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(treetest.List(t, want), treetest.List(t, dir)); d != "" {
				t.Errorf("the trees differ:\n%s", d)
			}
			if got := log.String(); !strings.Contains(got, c.note) || c.note == "" && got != "" {
				t.Errorf("the log says %q, want %q", got, c.note)
			}
			if out := i.reg.places[0].out.Load(); out == c.keep {
				t.Errorf("the mirror is left out: %v", out)
			}
			if len(asked) == 0 {
				t.Error("the mirror was not asked")
			}
		})
	}
}

func garble(b []byte, really bool, at int) []byte {
	if b = bytes.Clone(b); really {
		b[at] ^= 1
	}
	return b
}

// TestMirrorsThatLieAboutALayer one after the other, and the registry too: that ends.
func TestMirrorsThatLieAboutALayer(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	lies := func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && b[0] != '{' {
			w.Write(garble(b, true, len(b)-1))
			return true
		}
		return false
	}
	var mirrors []Mirror
	for range 3 {
		m := newShelf(t)
		m.docs, m.reply = s.docs, lies
		mirrors = append(mirrors, Mirror{At: m.host, PlainHTTP: true})
	}
	for name, bad := range map[string]bool{"the registry is right": false, "nobody is": true} {
		if s.reply = nil; bad {
			s.reply = lies
		}
		i, err := Resolve(t.Context(), uri, Options{PlainHTTP: true, Mirrors: mirrors})
		if err != nil {
			t.Fatal(err)
		}
		err = i.Unpack(t.Context(), filepath.Join(t.TempDir(), "root"), nil, Limits{}, nil)
		if !bad && err != nil || bad && !errors.Is(err, ErrDigest) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestWhatALyingMirrorTookIsGivenBack: the room that all images share is as large as this one's file, and the mirror's lie shows at its end.
func TestWhatALyingMirrorTookIsGivenBack(t *testing.T) {
	const size = 1 << 20
	s, m := newShelf(t), newShelf(t)
	uri := s.image(t, "v1", plain{treetest.Tar(t, treetest.File("f", string(random(size)))), ociLayer})
	m.docs, m.reply = s.docs, func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		if len(b) < size {
			return false
		}
		w.Write(garble(b, true, len(b)-1))
		return true
	}
	i, err := Resolve(t.Context(), uri, Options{PlainHTTP: true, Mirrors: []Mirror{{At: m.host, PlainHTTP: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Unpack(t.Context(), filepath.Join(t.TempDir(), "root"), nil, Limits{Pool: tree.NewPool(size)}, nil); err != nil {
		t.Error(err)
	}
	if m.hits[i.Layers[0].Digest] != 1 || s.hits[i.Layers[0].Digest] != 1 {
		t.Errorf("the layer was asked %d times of the mirror and %d of the registry, want 1 and 1", m.hits[i.Layers[0].Digest], s.hits[i.Layers[0].Digest])
	}
}

// TestMirrorOfATag is asked for what the tag's manifest names, and never for the tag.
func TestMirrorOfATag(t *testing.T) {
	s, m := newShelf(t), newShelf(t)
	uri, _, _ := strings.Cut(s.image(t, "v1", twoLayers(t)...), "@")
	m.docs = s.docs
	if _, err := Resolve(t.Context(), uri, Options{PlainHTTP: true, Mirrors: []Mirror{{At: m.host, PlainHTTP: true}}}); err != nil {
		t.Fatal(err)
	}
	if m.hits["v1"] != 0 || len(m.hits) != 1 {
		t.Errorf("the mirror was asked for %v", m.hits)
	}
}

// TestMirrorOverHTTP needs the permission of its own entry, and has its own login.
func TestMirrorOverHTTP(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	var log notes
	srv := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool { return false })
	o := Options{Transport: srv.Client().Transport, Log: slog.New(slog.NewTextHandler(&log, nil)), Mirrors: []Mirror{{At: s.host}}}
	i, err := Resolve(t.Context(), at(uri, s, srv), o)
	if err != nil || i.PlainHTTP || !strings.Contains(log.String(), ErrPlainHTTP.Error()) {
		t.Errorf("error %v, log %s", err, &log)
	}
	m := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user != "" && (user != "bob" || password != "y") {
			t.Errorf("the mirror got the login of %s", user)
		} else if user == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	o = Options{Login: &Login{"alice", "x"}, Transport: noTransport{t}, Mirrors: []Mirror{{At: m.Listener.Addr().String(), Transport: trusting(m), Login: &Login{"bob", "y"}}}}
	if _, err := Resolve(t.Context(), uri, o); err != nil {
		t.Error(err)
	}
}

func TestRanges(t *testing.T) {
	blob := []byte("0123456789")
	part := func(w http.ResponseWriter, contentRange, body string) {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, body)
	}
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		want   string // what is read; or, with a space, part of the error
	}{
		"what is asked for":               {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-9/10", "456789") }, "456789"},
		"of a size that is not said":      {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-9/*", "456789") }, "456789"},
		"a part of it":                    {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-6/10", "456") }, "456"},
		"from elsewhere":                  {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 3-9/10", "3456789") }, "bytes 4-9 are asked for"},
		"beyond the end":                  {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-10/11", "456789x") }, "bytes 4-9 are asked for"},
		"backwards":                       {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-3/10", "") }, "bytes 4-9 are asked for"},
		"of another blob":                 {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-9/11", "456789") }, "wrong digest: it has"},
		"in other units":                  {func(w http.ResponseWriter, r *http.Request) { part(w, "lines 4-9/10", "456789") }, "malformed: Content-Range"},
		"without a total":                 {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-9", "456789") }, "malformed: Content-Range"},
		"of numbers too large":            {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-99999999999999999999/*", "") }, "malformed: Content-Range"},
		"unnamed":                         {func(w http.ResponseWriter, r *http.Request) { part(w, "", "456789") }, "malformed: Content-Range"},
		"longer than it says":             {func(w http.ResponseWriter, r *http.Request) { part(w, "bytes 4-9/10", "456789xyz") }, "body too large"},
		"the whole, from one without any": {func(w http.ResponseWriter, r *http.Request) { w.Write(blob) }, "456789"},
		"a whole that is too short":       {func(w http.ResponseWriter, r *http.Request) { w.Write(blob[:3]) }, "blob sha256:"},
		"a whole that is too long":        {func(w http.ResponseWriter, r *http.Request) { w.Write(append(blob[:10:10], 'x')) }, "wrong digest: it has 11 bytes"},
		"no range, but the whole": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes */10")
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Write(blob)
		}, "456789"},
		"no range, and no whole": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) }, "status 416"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if got := r.Header.Get("Range"); got != "bytes=4-" && got != "" {
					t.Errorf("range %q", got)
				}
				c.answer(w, r)
			}))
			defer srv.Close()
			ref, _, err := parseURI("docker://"+strings.TrimPrefix(srv.URL, "http://")+"/r/i:v1", true)
			if err != nil {
				t.Fatal(err)
			}
			var b []byte
			rc, err := openRegistry(ref.Context(), plainHTTP).blob(t.Context(), digestOf(blob), 4, 10)
			if err == nil {
				b, err = io.ReadAll(rc)
				rc.Close()
			}
			if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && string(b) != c.want {
				t.Errorf("%q, error %v; want %q", b, err, c.want)
			}
		})
	}
	ref, _, err := parseURI("docker://r.example/r/i:v1", false)
	if err != nil {
		t.Fatal(err)
	}
	r := openRegistry(ref.Context(), Options{Transport: noTransport{t}})
	rc, err := r.blob(t.Context(), digestOf(blob), 10, 10)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(rc); len(b) != 0 || err != nil {
		t.Errorf("the rest of all: %q, %v", b, err)
	}
}

// stalled is a body of which nothing comes.
type stalled struct{ ctx context.Context }

func (s stalled) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }
func (stalled) Close() error               { return nil }

// TestBodyThatStopsComing is cut: a mirror that stalls costs a minute, and not the deadline.
func TestBodyThatStopsComing(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	synctest.Test(t, func(t *testing.T) {
		tr := s.direct(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host != "mirror.example" {
				return nil, nil
			}
			resp := reply(r, 200)
			resp.Body = stalled{r.Context()}
			return resp, nil
		})
		var log notes
		start := time.Now()
		_, err := Resolve(t.Context(), strings.Replace(uri, s.host, "registry.example", 1),
			Options{Transport: tr, Mirrors: []Mirror{{At: "mirror.example", Transport: tr}}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil || time.Since(start) != maxStall || !strings.Contains(log.String(), "nothing came for 1m0s") {
			t.Errorf("after %v: %v; the log: %s", time.Since(start), err, &log)
		}
	})
}

// TestCutBlobGoesOnElsewhere: what a mirror has sent is kept, and the registry is asked for the rest alone.
func TestCutBlobGoesOnElsewhere(t *testing.T) {
	blob := []byte("0123456789")
	s, m := newShelf(t), newShelf(t)
	digest := s.put(blob)
	m.docs = s.docs
	m.reply = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		w.Write(b[:4])
		return true
	}
	s.reply = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		if r.Header.Get("Range") != "bytes=4-" {
			t.Errorf("range %q", r.Header.Get("Range"))
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return true
	}
	ref, _, err := parseURI("docker://"+s.host+"/r/i:v1", true)
	if err != nil {
		t.Fatal(err)
	}
	reg := openRegistry(ref.Context(), Options{PlainHTTP: true, Mirrors: []Mirror{{At: m.host, PlainHTTP: true}}})
	var got []byte
	for range 2 {
		rc, err := reg.blob(t.Context(), digest, int64(len(got)), int64(len(blob)))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(rc)
		rc.Close()
		got = append(got, b...)
	}
	if !bytes.Equal(got, blob) {
		t.Errorf("got %q", got)
	}
	if !reg.wrong(digest, ErrDigest) || reg.wrong(digest, ErrDigest) {
		t.Error("the mirror sent some of it and is to blame, once")
	}
}
