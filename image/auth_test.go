package image

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChallenges(t *testing.T) {
	type params = map[string]string
	all := func(c ...challenge) []challenge { return c }
	for name, c := range map[string]struct {
		lines []string
		want  []challenge // nil: refused
	}{
		"a token service":               {[]string{`Bearer realm="https://a.example/token",service="r.example",scope="repository:x:pull,push"`}, all(challenge{"bearer", params{"realm": "https://a.example/token", "service": "r.example", "scope": "repository:x:pull,push"}})},
		"spaces and commas":             {[]string{` , Bearer  realm = "x" ,, Service=y , `}, all(challenge{"bearer", params{"realm": "x", "service": "y"}})},
		"escapes":                       {[]string{`BASIC realm="a\"b\\c"`}, all(challenge{"basic", params{"realm": `a"b\c`}})},
		"an empty value":                {[]string{`Bearer realm="x",scope=""`}, all(challenge{"bearer", params{"realm": "x", "scope": ""}})},
		"two in one line":               {[]string{`Basic realm="x", Bearer realm="y",service=z`}, all(challenge{"basic", params{"realm": "x"}}, challenge{"bearer", params{"realm": "y", "service": "z"}})},
		"two lines":                     {[]string{`Negotiate`, `Basic realm="x"`}, all(challenge{"negotiate", params{}}, challenge{"basic", params{"realm": "x"}})},
		"a scheme with token68":         {[]string{`Negotiate YII/+a==, Basic realm="x"`}, all(challenge{"negotiate", nil}, challenge{"basic", params{"realm": "x"}})},
		"a scheme alone before another": {[]string{`Negotiate, Basic realm="x"`}, all(challenge{"negotiate", params{}}, challenge{"basic", params{"realm": "x"}})},
		"a parameter twice":             {[]string{`Bearer realm="x",REALM="y"`}, nil},
		"a parameter of no scheme":      {[]string{`realm="x"`}, nil},
		"one that goes on in the next":  {[]string{`Bearer realm="x"`, `service="y"`}, nil},
		"no end of the quotes":          {[]string{`Bearer realm="x`}, nil},
		"an escape of nothing":          {[]string{`Bearer realm="x\`}, nil},
		"no value":                      {[]string{`Bearer realm=,service=x`}, nil},
		"a control character":           {[]string{"Bearer realm=\"x\r\nX: y\""}, nil},
		"a letter of no English":        {[]string{`Bearer realm="ü"`}, nil},
		"no comma between":              {[]string{`Bearer realm="x" service="y"`}, nil},
		"a tab behind the scheme":       {[]string{"Bearer\trealm=x"}, nil},
		"no name":                       {[]string{`="x"`}, nil},
		"5000 bytes":                    {[]string{`Bearer realm="` + strings.Repeat("x", 5000) + `"`}, nil},
		"nine lines":                    {strings.Split("a,b,c,d,e,f,g,h,i", ","), nil},
	} {
		got, err := parseChallenges(c.lines)
		if (err == nil) != (c.want != nil) {
			t.Errorf("%s: error %v", name, err)
		} else if d := cmp.Diff(c.want, got, cmp.AllowUnexported(challenge{})); err == nil && d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	if got, err := parseChallenges(nil); got != nil || err != nil {
		t.Errorf("no header: %v, %v", got, err)
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a.example/token",service="r",scope="x"`)
	f.Add(`Negotiate abc==, Basic realm="a\"b"`)
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseChallenges([]string{s})
		if err != nil {
			if all != nil {
				t.Errorf("%v beside an error", all)
			}
			return
		}
		for _, c := range all {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Errorf("scheme %q", c.scheme)
			}
			for k, v := range c.params {
				if k == "" || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
					t.Errorf("parameter %q is %q", k, v)
				}
			}
		}
	})
}

func TestTokenReplies(t *testing.T) {
	for reply, want := range map[string]string{
		`{"token":"abc","expires_in":300,"issued_at":"x"}`: "abc",
		`{"access_token":"abc"}`:                           "abc",
		`{"token":"abc","access_token":"other"}`:           "abc",
		`{}`:                                               "",
		`{"token":""}`:                                     "",
		`{"token":"a b"}`:                                  "",
		`{"token":"a\r\nX: y"}`:                            "",
		`{"token":7}`:                                      "",
		`{"token":"s3cret"}{}`:                             "",
		`["s3cret"]`:                                       "",
		`{"token":"` + strings.Repeat("x", maxToken+1) + `"}`: "",
	} {
		got, err := parseToken([]byte(reply))
		if got != want || (err == nil) != (want != "") || err != nil && (!errors.Is(err, ErrFormat) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%.60s: %q, %v", reply, got, err)
		}
	}
}

func FuzzTokenReply(f *testing.F) {
	f.Add([]byte(`{"token":"abc","access_token":"x","expires_in":60}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseToken(b)
		if (s == "") != (err != nil) || len(s) > maxToken || strings.ContainsAny(s, " \r\n\x00") {
			t.Errorf("%q, %v", s, err)
		}
	})
}

// tlsShelf is the shelf behind https; ask sees every request first and may answer it.
func tlsShelf(t *testing.T, s *shelf, ask func(w http.ResponseWriter, r *http.Request) bool) *httptest.Server {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ask(w, r) {
			s.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func at(uri string, s *shelf, srv *httptest.Server) string {
	return strings.Replace(uri, s.host, srv.Listener.Addr().String(), 1)
}

// trusting takes the certificates of all test servers.
func trusting(srv *httptest.Server) http.RoundTripper {
	tr := srv.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.InsecureSkipVerify = true
	return tr
}

// TestRefusedTokenIsRenewedOnce: a registry that no longer takes a token gets a new one, and no third.
func TestRefusedTokenIsRenewedOnce(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	var issued atomic.Int32
	var broken atomic.Bool
	var srv *httptest.Server
	srv = tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			fmt.Fprintf(w, `{"token":"t%d"}`, issued.Add(1))
			return true
		}
		// Every token is good until the config has been asked for.
		good := fmt.Sprintf("Bearer t%d", max(1, issued.Load()))
		if strings.Contains(r.URL.Path, "/blobs/") {
			good = "Bearer t2"
		}
		if r.Header.Get("Authorization") != good || broken.Load() {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	o := Options{Transport: srv.Client().Transport}
	if _, err := Resolve(t.Context(), at(uri, s, srv), o); err != nil || issued.Load() != 2 {
		t.Errorf("%d tokens, error %v", issued.Load(), err)
	}
	broken.Store(true)
	issued.Store(0)
	if _, err := Resolve(t.Context(), at(uri, s, srv), o); err == nil || issued.Load() != 1 || !strings.Contains(err.Error(), "status 401") {
		t.Errorf("a registry that takes no token: %d tokens, error %v", issued.Load(), err)
	}
}

// TestCredentialsStayWhereTheyBelong: neither a password nor a token goes to another host, another port of the same, or down
// to http, by redirect or by challenge.
func TestCredentialsStayWhereTheyBelong(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	login := &Login{"alice", "s3cret"}
	noSecret := func(w http.ResponseWriter, r *http.Request) bool {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("%s%s got %q", r.Host, r.URL.Path, a)
		}
		return false
	}
	blobs := tlsShelf(t, s, noSecret)
	token := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user != login.User || password != login.Password {
			t.Errorf("the token service got user %q", user)
		}
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, blobs.URL+"/token", http.StatusTemporaryRedirect)
		} else {
			fmt.Fprint(w, `{"token":"abc"}`)
		}
		return true
	})
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		noSecret(w, r)
		fmt.Fprint(w, `{"token":"abc"}`)
	}))
	defer plain.Close()
	s.put([]byte(`{"token":"abc"}`))
	for name, c := range map[string]struct {
		challenge string
		to        string // where blobs are
		want      string // in the error; empty is success
	}{
		"password, blobs at another port":       {`Basic realm="x"`, blobs.URL, ""},
		"password, blobs at another name":       {`Basic realm="x"`, strings.Replace(blobs.URL, "127.0.0.1", "localhost", 1), ""},
		"password, blobs over http":             {`Basic realm="x"`, plain.URL, ErrDigest.Error()}, // permitted here, and still no password
		"token of another host":                 {`Bearer realm="` + token.URL + `/token"`, blobs.URL, ""},
		"token, blobs over http":                {`Bearer realm="` + token.URL + `/token"`, plain.URL, ErrDigest.Error()},
		"token service over http":               {`Bearer realm="` + plain.URL + `/token"`, "", ErrPlainHTTP.Error()},
		"token service that moved":              {`Bearer realm="` + token.URL + `/moved"`, "", "token service"},
		"token service at the metadata address": {`Bearer realm="https://169.254.169.254/latest"`, "", "is refused"},
		"token service with a user":             {`Bearer realm="https://a:b@127.0.0.1/"`, "", "is refused"},
		"token service that is a file":          {`Bearer realm="file:///etc/passwd"`, "", "is refused"},
		"token service that is missing":         {`Bearer service="x"`, "", "is refused"},
		"neither":                               {`Negotiate`, "", "neither for a token nor for a password"},
		"nothing":                               {``, "", "neither for a token nor for a password"},
		"nonsense":                              {`Bearer realm=,service=x`, "", "WWW-Authenticate: cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.Header.Get("Authorization") == "":
					w.Header().Set("WWW-Authenticate", c.challenge)
					w.WriteHeader(http.StatusUnauthorized)
				case strings.Contains(r.URL.Path, "/blobs/") && c.to != "":
					http.Redirect(w, r, c.to+r.URL.Path, http.StatusTemporaryRedirect)
				default:
					return false
				}
				return true
			})
			o := Options{Transport: trusting(srv), Login: login, PlainHTTP: true}
			_, err := Resolve(t.Context(), at(uri, s, srv), o)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), login.Password) {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

// TestChallengeAfterARedirect is not the registry's, and is not answered.
func TestChallengeAfterARedirect(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	var blobs *httptest.Server
	blobs = tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" || r.URL.Path == "/token" {
			t.Errorf("the blob store got a credential, or was asked for one: %s", r.URL.Path)
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+blobs.URL+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	srv := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, blobs.URL+r.URL.Path+"?signature=s3cret", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	_, err := Resolve(t.Context(), at(uri, s, srv), Options{Transport: trusting(srv), Login: &Login{"alice", "x"}})
	if err == nil || !strings.Contains(err.Error(), blobs.Listener.Addr().String()+": status 401") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("error %v", err)
	}
}

// TestLoginOverHTTPIsRefusedByWhoeverIsThere: over http the challenge is anyone's, so it must not send the login to an https service of
// its choice.
func TestLoginOverHTTPIsRefusedByWhoeverIsThere(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	token := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
		t.Error("the token service was asked")
		return false
	})
	s.reply = func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+token.URL+`/token"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	_, err := Resolve(t.Context(), uri, Options{Transport: trusting(token), PlainHTTP: true, Login: &Login{"alice", "x"}})
	if !errors.Is(err, ErrPlainHTTP) {
		t.Errorf("error %v, want ErrPlainHTTP", err)
	}
}

// TestHTTPIsNoWayBack: a registry that has answered over https is not asked over http, whatever becomes of its connections.
func TestHTTPIsNoWayBack(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	srv := tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool { return false })
	var plain atomic.Int32
	tr := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme == "http" {
			plain.Add(1)
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			return nil, http.ErrSchemeMismatch
		}
		return srv.Client().Transport.RoundTrip(r)
	})
	if _, err := Resolve(t.Context(), at(uri, s, srv), Options{Transport: tr, PlainHTTP: true}); err == nil || plain.Load() != 0 {
		t.Errorf("%d requests over http, error %v", plain.Load(), err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestOneTokenForAll: requests that are refused at the same time share the token that one of them fetches.
func TestOneTokenForAll(t *testing.T) {
	s := newShelf(t)
	uri := s.image(t, "v1", twoLayers(t)...)
	digest := uri[strings.Index(uri, "@")+1:]
	var issued atomic.Int32
	const requests = 4
	var refused sync.WaitGroup
	refused.Add(requests)
	var srv *httptest.Server
	srv = tlsShelf(t, s, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprintf(w, `{"token":"t%d"}`, issued.Add(1))
		case r.Header.Get("Authorization") == "":
			refused.Done()
			refused.Wait() // all have been sent without
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			return false
		}
		return true
	})
	ref, _, err := parseURI(at(uri, s, srv), false)
	if err != nil {
		t.Fatal(err)
	}
	reg := openRegistry(ref.Context(), Options{Transport: srv.Client().Transport})
	var all sync.WaitGroup
	for range requests {
		all.Go(func() {
			if _, _, err := reg.manifest(t.Context(), digest, maxManifest); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if issued.Load() != 1 {
		t.Errorf("%d tokens were fetched, want one", issued.Load())
	}
}
