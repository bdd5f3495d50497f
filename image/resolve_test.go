package image

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestResolveReadsConfigAndDigests(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	digest := uri[strings.Index(uri, "@")+1:]
	for _, u := range []string{uri, strings.Replace(uri, ":v1@", "@", 1), strings.TrimSuffix(uri, "@"+digest)} {
		i, err := Resolve(t.Context(), u, plainHTTP)
		if err != nil {
			t.Fatal(err)
		}
		want := Image{
			URI: u, Digest: digest, ManifestDigest: digest, PlainHTTP: true, Pinned: strings.Contains(u, "@"),
			Config: Config{[]string{"/bin/run"}, []string{"x"}, []string{"A=b"}, "/w", "7:8", nil},
		}
		if diff := cmp.Diff(want, *i, cmpopts.IgnoreUnexported(Image{}), cmpopts.IgnoreFields(Image{}, "Layers", "ConfigDigest")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", u, diff)
		}
		if len(i.Layers) != 2 || i.Size() != i.Layers[0].Size+i.Layers[1].Size || i.Size() == 0 {
			t.Errorf("layers %+v, size %d", i.Layers, i.Size())
		}
		if p := i.PinnedURI(); !strings.HasSuffix(p, "@"+digest) {
			t.Errorf("pinned URI %s", p)
		}
	}
}

func TestIndexGivesTheImageOfThePlatform(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	digest := uri[strings.Index(uri, "@")+1:]
	size := len(s.docs[digest])
	index := func(entries ...string) string {
		return s.tag(t, "index", fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(entries, ",")))
	}
	of := func(digest, platform string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, ociManifest, digest, size, platform)
	}
	zero := "sha256:" + strings.Repeat("0", 64)
	amd := `,"platform":{"os":"linux","architecture":"amd64"}`
	for name, c := range map[string]struct {
		uri  string
		want error
	}{
		"among others":             {index(of(zero, `,"platform":{"os":"linux","architecture":"arm64"}`), of(zero, `,"platform":{"os":"unknown","architecture":"unknown"}`), of(digest, amd)), nil},
		"the one without variant":  {index(of(zero, `,"platform":{"os":"linux","architecture":"amd64","variant":"v3"}`), of(digest, amd)), nil},
		"the only one":             {index(of(digest, "")), nil},
		"none for it":              {index(of(digest, `,"platform":{"os":"linux","architecture":"arm64"}`)), ErrPlatform},
		"none at all":              {index(), ErrPlatform},
		"an index inside an index": {index(of(strings.Split(index(of(digest, amd)), "@")[1], amd)), ErrFormat},
		"a manifest not there":     {index(of(zero, amd)), nil},
	} {
		i, err := Resolve(t.Context(), c.uri, plainHTTP)
		switch {
		case name == "a manifest not there":
			if err == nil {
				t.Errorf("%s: no error", name)
			}
		case !errors.Is(err, c.want):
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		case err == nil && (i.ManifestDigest != digest || i.Digest == digest):
			t.Errorf("%s: got manifest %s of %s, want %s", name, i.ManifestDigest, i.Digest, digest)
		}
	}
	if _, err := Resolve(t.Context(), uri, Options{PlainHTTP: true, Platform: "linux/arm64"}); !errors.Is(err, ErrPlatform) {
		t.Errorf("an amd64 image for arm64: error %v, want ErrPlatform", err)
	}
}

func TestManifestsThatLieAreRefused(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	digest := uri[strings.Index(uri, "@")+1:]
	good := string(s.docs[digest])
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("manifest lacks %q", old)
		}
		return s.tag(t, "bad", []byte(strings.Replace(good, old, new, 1)))
	}
	big := s.tag(t, "big", []byte(good+strings.Repeat(" ", maxManifest)))
	for name, c := range map[string]struct {
		uri  string
		want error
	}{
		"trailing data":           {s.tag(t, "trail", []byte(good+"{}")), ErrFormat},
		"not JSON":                {s.tag(t, "no", []byte("<html>")), ErrFormat},
		"over 4 MiB":              {big, ErrTooBig},
		"schema 1":                {swap(`"schemaVersion":2`, `"schemaVersion":1`), ErrFormat},
		"unknown type":            {swap(ociManifest, "text/plain"), ErrFormat},
		"manifest and index":      {swap(`"schemaVersion":2`, `"schemaVersion":2,"manifests":[]`), ErrFormat},
		"config of no known type": {swap(ociConfig, "application/vnd.unknown.config.v1+json"), ErrFormat},
		"layer of no known type":  {swap(ociLayer+"+gzip", "application/zip"), ErrFormat},
		"encrypted docker layer":  {swap(ociLayer+"+gzip", dockerLayer+".gzip+encrypted"), ErrFormat},
		"encrypted, no packet":    {swap(ociLayer+"+gzip", ociLayer+"+gzip+encrypted"), ErrKey},
		"negative size":           {swap(`"size":`, `"size":-`), ErrTooBig},
		"huge size":               {swap(`"size":`, `"size":99999999999999`), ErrTooBig},
		"a digest of md5":         {swap(`"digest":"sha256:`, `"digest":"md5:`), ErrFormat},
		"fewer layers than diff-IDs": {s.tag(t, "few", []byte(good[:strings.Index(good, `"layers":[`)]+
			`"layers":[]`+good[strings.Index(good, `],"mediaType"`)+1:])), ErrFormat},
	} {
		if _, err := Resolve(t.Context(), c.uri, plainHTTP); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}

	s.docs[digest] = []byte(strings.Replace(good, "{", "{ ", 1))
	if _, err := Resolve(t.Context(), uri, plainHTTP); !errors.Is(err, ErrDigest) {
		t.Errorf("another manifest under the digest: error %v, want ErrDigest", err)
	}
	s.docs[digest] = []byte(good)
	i, err := Resolve(t.Context(), uri, plainHTTP)
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range []string{strings.Replace(string(s.docs[i.ConfigDigest]), "amd64", "arm64", 1), "{}", ""} {
		was := s.docs[i.ConfigDigest]
		s.docs[i.ConfigDigest] = []byte(config)
		if _, err := Resolve(t.Context(), uri, plainHTTP); !errors.Is(err, ErrDigest) {
			t.Errorf("another config under the digest: error %v, want ErrDigest", err)
		}
		s.docs[i.ConfigDigest] = was
	}
}

func TestBadReferencesAreRefusedWithoutARequest(t *testing.T) {
	for _, uri := range []string{
		"", "docker://", "host/r", "oci:dir", "https://host/r", "docker://host/R:x", "docker://host/r@sha256:12",
		"docker://host/r@sha512:" + strings.Repeat("0", 128), "docker://host/../r:x", "docker://host/r:x y",
	} {
		if _, err := Resolve(t.Context(), uri, Options{Transport: noTransport{t}}); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: error %v, want ErrFormat", uri, err)
		}
	}
}

type noTransport struct{ t *testing.T }

func (n noTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	n.t.Errorf("request to %s", r.URL)
	return nil, errors.New("no requests here")
}

func TestPlainHTTPNeedsPermissionEvenOnLoopback(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	if _, err := Resolve(t.Context(), uri, Options{}); !errors.Is(err, ErrPlainHTTP) {
		t.Errorf("error %v, want ErrPlainHTTP", err)
	}
	if _, err := Push(t.Context(), mustLoad(t, uri), "docker://"+s.host+"/r/j:x", Options{}); err == nil {
		t.Error("pushed over http without permission")
	}
	if n := s.hits["v1"]; n > 1 { // mustLoad's own
		t.Errorf("content was asked for %d times", n)
	}
}

func TestHTTPSIsNotCalledPlain(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	srv := httptest.NewTLSServer(s)
	defer srv.Close()
	uri = strings.Replace(uri, s.host, strings.TrimPrefix(srv.URL, "https://"), 1)
	for _, plain := range []bool{false, true} {
		i, err := Resolve(t.Context(), uri, Options{Transport: srv.Client().Transport, PlainHTTP: plain})
		if err != nil {
			t.Fatal(err)
		}
		if i.PlainHTTP {
			t.Errorf("permitted %v: an https registry is called plain", plain)
		}
	}
	// A blob store elsewhere may not be plain either.
	s.reply = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		http.Redirect(w, r, "http://"+s.host+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	if _, err := Resolve(t.Context(), uri, Options{Transport: srv.Client().Transport}); !errors.Is(err, ErrPlainHTTP) {
		t.Errorf("redirect to http: error %v, want ErrPlainHTTP", err)
	}
}

func TestRedirects(t *testing.T) {
	for to, ok := range map[string]bool{
		"https://blobs.example/x": true, "https://192.0.2.7/x": true, "http://169.254.169.254/latest": false,
		"https://[::1]/x": false, "https://127.0.0.1/x": false, "https://[::ffff:169.254.169.254]/x": false, "https://registry.example/other": true,
	} {
		from := httptest.NewRequest("GET", "https://registry.example/v2/", nil)
		if err := checkRedirect(httptest.NewRequest("GET", to, nil), []*http.Request{from}); (err == nil) != ok {
			t.Errorf("redirect to %s: %v", to, err)
		}
	}
}

func TestTokenFromTheRegistrysOwnService(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			if got := r.URL.Query().Get("scope"); got != "repository:r/i:pull" {
				t.Errorf("scope %q", got)
			}
			fmt.Fprint(w, `{"token":"abc"}`)
		case r.Header.Get("Authorization") != "Bearer abc":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			s.ServeHTTP(w, r)
		}
	}))
	defer srv.Close()
	if _, err := unpack(t, strings.Replace(uri, s.host, strings.TrimPrefix(srv.URL, "http://"), 1), nil, Limits{}); err != nil {
		t.Error(err)
	}
}

// TestLogin: a registry that wants a password gets it, at its own door and at its token service; nobody else does.
func TestLogin(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	login := &Login{"alice", "s3cret"}
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s was sent where the registry redirects", r.Header.Get("Authorization"))
		}
		s.ServeHTTP(w, r)
	}))
	defer elsewhere.Close()
	for name, token := range map[string]bool{"basic": false, "token": true} {
		t.Run(name, func(t *testing.T) {
			var srv *httptest.Server
			srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				user, password, _ := r.BasicAuth()
				known := user == login.User && password == login.Password
				switch {
				case token && r.URL.Path == "/token" && known:
					fmt.Fprint(w, `{"token":"abc"}`)
				case token && r.URL.Path == "/token":
					w.WriteHeader(http.StatusUnauthorized)
				case token && r.Header.Get("Authorization") != "Bearer abc":
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token",service="s"`)
					w.WriteHeader(http.StatusUnauthorized)
				case !token && !known:
					w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
					w.WriteHeader(http.StatusUnauthorized)
				case strings.Contains(r.URL.Path, "/blobs/"):
					http.Redirect(w, r, strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusTemporaryRedirect)
				default:
					s.ServeHTTP(w, r)
				}
			}))
			defer srv.Close()
			both := srv.Client().Transport.(*http.Transport).Clone()
			both.TLSClientConfig.InsecureSkipVerify = true // two servers, two certificates
			o := Options{Transport: both, Login: login}
			uri := strings.Replace(uri, s.host, strings.TrimPrefix(srv.URL, "https://"), 1)
			if _, err := Resolve(t.Context(), uri, o); err != nil {
				t.Error(err)
			}
			o.Login = &Login{"alice", "wrong"}
			if _, err := Resolve(t.Context(), uri, o); err == nil || strings.Contains(err.Error(), "wrong") {
				t.Errorf("with a wrong password: %v", err)
			}
			o.Login = nil
			if _, err := Resolve(t.Context(), uri, o); err == nil {
				t.Error("without a password")
			}
		})
	}
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("a password over plain http")
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer plain.Close()
	uri = strings.Replace(uri, s.host, strings.TrimPrefix(plain.URL, "http://"), 1)
	if _, err := Resolve(t.Context(), uri, Options{PlainHTTP: true, Login: login}); !errors.Is(err, ErrPlainHTTP) {
		t.Errorf("a login at a plain http registry: %v", err)
	}
	if text := fmt.Sprintf("%v %+v %#v %s", login, login, *login, *login); strings.Contains(text, "s3cret") {
		t.Errorf("prints as %s", text)
	}
}

func FuzzResolveManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"`+ociConfig+`","digest":"sha256:00","size":2},"layers":[]}`), ociManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`), ociIndex)
	f.Add([]byte(`{"schemaVersion":2,"artifactType":"x","config":{"mediaType":"`+emptyConfig+`","digest":"`+digestOf([]byte("{}"))+`","size":2},"layers":[`+
		`{"mediaType":"text/csv","digest":"`+digestOf(nil)+`","size":0,"annotations":{"`+titleKey+`":"a/b.csv"}}]}`), ociManifest)
	f.Fuzz(func(t *testing.T, b []byte, mediaType string) {
		d, err := parseDocument(b, mediaType)
		if err != nil {
			return
		}
		if d.isIndex() {
			if m, err := d.choose(defaultPlatform); err == nil && !isDigest(m.Digest) {
				t.Errorf("chose %+v", m)
			}
			return
		}
		i := Image{URI: "docker://h/r"}
		if d.isArtifact() {
			err = i.describeArtifact(d)
		} else {
			err = i.describe(d, b, defaultPlatform)
		}
		if err != nil {
			return
		}
		if len(i.Layers) != len(d.Layers) {
			t.Errorf("%d layers of %d", len(i.Layers), len(d.Layers))
		}
		for _, l := range i.Layers {
			if l.File != "" && (!i.Artifact || !filepath.IsLocal(l.File) || filepath.Clean(l.File) != l.File) {
				t.Errorf("file %q", l.File)
			}
			if (l.DiffID == "") != i.Artifact {
				t.Errorf("diff-ID %q", l.DiffID)
			}
		}
		i.KeyIDs()
		i.RequireEncrypted()
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","config":{"Entrypoint":["/run"],"Env":["A=b"]},"rootfs":{"type":"layers","diff_ids":["` + digestOf(nil) + `"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		i := Image{URI: "docker://h/r"}
		err := i.describe(&document{Layers: []descriptor{{MediaType: ociLayer, Digest: digestOf(nil)}}}, b, defaultPlatform)
		if err == nil && (len(i.Layers) != 1 || !isDigest(i.Layers[0].DiffID) || i.Artifact) {
			t.Errorf("%+v", i)
		}
	})
}
