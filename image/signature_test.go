package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// signatureImage is a manifest as cosign makes them.
func signatureImage(layers ...descriptor) []byte {
	b, err := json.Marshal(document{SchemaVersion: 2, MediaType: ociManifest, Config: &descriptor{MediaType: ociConfig, Digest: digestOf(nil)}, Layers: layers})
	if err != nil {
		panic(err)
	}
	return b
}

func (s *shelf) payload(b string) descriptor {
	return descriptor{MediaType: cosignLayer, Digest: s.put([]byte(b)), Size: int64(len(b)), Annotations: map[string]string{cosignAnnotation: "c2ln", "other": "x"}}
}

// signedImage is an image at s of which only what Signatures needs is there.
func (s *shelf) signedImage(t *testing.T) *Image {
	t.Helper()
	ref, _, err := parseURI("docker://"+s.host+"/r/i:t", true)
	if err != nil {
		t.Fatal(err)
	}
	return &Image{URI: "docker://" + s.host + "/r/i:t", reg: openRegistry(ref.Context(), plainHTTP)}
}

func TestSignatures(t *testing.T) {
	digest := digestOf([]byte("image"))
	tag := strings.Replace(digest, ":", "-", 1) + ".sig"
	for name, c := range map[string]struct {
		set   func(*shelf) []byte // the manifest of signatures; nil: there is none
		found int
		want  error
		text  string
	}{
		"none":  {func(*shelf) []byte { return nil }, 0, nil, "404"},
		"one":   {func(s *shelf) []byte { return signatureImage(s.payload("a")) }, 1, nil, ""},
		"three": {func(s *shelf) []byte { return signatureImage(s.payload("a"), s.payload("b"), s.payload("a")) }, 3, nil, ""},
		"as an artifact": {func(s *shelf) []byte {
			return []byte(strings.Replace(string(signatureImage(s.payload("a"))), ociConfig, "application/vnd.dev.cosign.artifact.sig.v1+json", 1))
		}, 1, nil, ""},
		"a layer of another kind": {func(s *shelf) []byte {
			other := s.payload("b")
			other.MediaType = ociLayer
			return signatureImage(other, s.payload("a"))
		}, 1, ErrFormat, "layer 0"},
		"a layer without a signature": {func(s *shelf) []byte {
			other := s.payload("b")
			other.Annotations = nil
			return signatureImage(s.payload("a"), other)
		}, 1, ErrFormat, "layer 1"},
		"a payload altered": {func(s *shelf) []byte {
			d := s.payload("aa")
			s.docs[d.Digest] = []byte("ab")
			return signatureImage(d)
		}, 0, ErrDigest, "layer 0"},
		"a payload longer than it says": {func(s *shelf) []byte {
			d := s.payload("aa")
			d.Size = 1
			return signatureImage(d)
		}, 0, ErrDigest, "layer 0"},
		"a payload that is too large": {func(s *shelf) []byte { return signatureImage(s.payload(strings.Repeat("a", maxSignature+1))) }, 0, ErrTooBig, "payload of 65537 bytes"},
		"a payload that is missing": {func(s *shelf) []byte {
			d := s.payload("a")
			delete(s.docs, d.Digest)
			return signatureImage(s.payload("b"), d)
		}, 1, nil, "404"},
		"too many": {func(s *shelf) []byte {
			return signatureImage(append(make([]descriptor, maxSignatures), s.payload("a"))...)
		}, 0, ErrFormat, "33 layers"},
		"a manifest that is too large": {func(s *shelf) []byte { return append(signatureImage(s.payload("a")), make([]byte, maxSignatureDoc)...) }, 0, ErrTooBig, ""},
		"no JSON":                      {func(s *shelf) []byte { return []byte("x") }, 0, ErrFormat, ""},
		"another schema":               {func(s *shelf) []byte { return []byte(`{"schemaVersion":1,"layers":[]}`) }, 0, ErrFormat, "schema 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			if b := c.set(s); b != nil {
				s.docs[tag] = b
			}
			all, err := s.signedImage(t).Signatures(t.Context(), digest)
			if len(all) != c.found || c.want != nil && !errors.Is(err, c.want) || c.want == nil && c.text == "" && err != nil ||
				c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
				t.Errorf("%d signatures, %v; want %d, %v, %q", len(all), err, c.found, c.want, c.text)
			}
			for _, one := range all {
				if one.Signature != "c2ln" || len(one.Payload) != 1 {
					t.Errorf("%+v", one)
				}
			}
		})
	}
}

func TestLookaside(t *testing.T) {
	digest := digestOf([]byte("image"))
	at := "/sigs/r/i@" + strings.Replace(digest, ":", "=", 1) + "/signature-"
	docs := map[string]string{at + "1": "first", at + "2": "second", at + "4": "after a gap"}
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		b, ok := docs[r.URL.Path]
		switch {
		case !ok:
			http.NotFound(w, r)
		case b == "elsewhere":
			http.Redirect(w, r, at+"1", http.StatusFound)
		case b == "broken":
			http.Error(w, b, http.StatusInternalServerError)
		default:
			fmt.Fprint(w, b)
		}
	}))
	defer srv.Close()
	i := &Image{URI: "docker://r.example/r/i:t@" + digest}
	read := func(base string, o Options) ([]string, error) {
		all, err := i.Lookaside(t.Context(), base, digest, o)
		var text []string
		for _, b := range all {
			text = append(text, string(b))
		}
		return text, err
	}
	if all, err := read(srv.URL+"/sigs", plainHTTP); err != nil || fmt.Sprint(all) != "[first second]" {
		t.Errorf("%q, %v", all, err)
	}
	if all, err := read(srv.URL+"/other", plainHTTP); err != nil || all != nil {
		t.Errorf("%q, %v, where there are none", all, err)
	}
	docs[at+"1"] = ""
	if all, err := read(srv.URL+"/sigs", plainHTTP); err != nil || len(all) != 2 || all[0] != "" {
		t.Errorf("%q, %v, want an empty one first", all, err)
	}
	for name, c := range map[string]struct{ second, want string }{
		"a redirect":          {"elsewhere", "redirect to"},
		"an error":            {"broken", "500"},
		"one that is too big": {strings.Repeat("a", maxSignature+1), "over 65536 bytes"},
	} {
		docs[at+"1"], docs[at+"2"] = "first", c.second
		all, err := read(srv.URL+"/sigs", plainHTTP)
		if err == nil || !strings.Contains(err.Error(), c.want) || fmt.Sprint(all) != "[first]" {
			t.Errorf("%s: %q, %v", name, all, err)
		}
	}
	for n := range 40 {
		docs[fmt.Sprintf("%s%d", at, n+1)] = "x"
	}
	if all, err := read(srv.URL+"/sigs", plainHTTP); err != nil || len(all) != maxSignatures {
		t.Errorf("%d, %v", len(all), err)
	}
	asked = 0
	if _, err := read(srv.URL+"/sigs", Options{}); !errors.Is(err, ErrPlainHTTP) || asked != 0 {
		t.Errorf("plain http: %v, asked %d times", err, asked)
	}
	for _, base := range []string{"", "x", "https://", "https://a:b@c.example", "https://c.example?x=1"} {
		if _, err := read(base, plainHTTP); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", base, err)
		}
	}
}
