package kbs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// sampler is a device without hardware: the broker below looks at no evidence.
type sampler struct{ err error }

func (sampler) Kind() evidence.Kind { return evidence.Sample }

func (s sampler) Evidence(_ context.Context, data [64]byte) (evidence.Evidence, error) {
	return evidence.Evidence{Kind: evidence.Sample, Report: data[:]}, s.err
}

// broker answers as RCAR wants it, except where a test puts another handler in the way. It checks what the client sends.
type broker struct {
	auth, attest, resource http.HandlerFunc
	t                      testing.TB
	key                    jose.JSONWebKey
}

const testNonce = "3RmTP0k2j3y5x5SDRG7a7iwO6ZTq84ENmXgxujRZdV8="

func (b *broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		b.t.Error(err)
	}
	if r.URL.Path != "/kbs/v0/auth" && r.Header.Get("Cookie") != "kbs-session-id=0123" {
		b.t.Errorf("%s: cookie %q", r.URL.Path, r.Header.Get("Cookie"))
	}
	h := b.resource
	switch r.URL.Path {
	case "/kbs/v0/auth":
		if want := `{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha384"]}}`; string(body) != want {
			b.t.Errorf("auth with %s, want %s", body, want)
		}
		w.Header().Set("Set-Cookie", "kbs-session-id=0123; Expires=Wed, 01 Jan 2100 00:00:00 GMT")
		h = b.auth
		if h == nil {
			h = answering(200, `{"nonce":"`+testNonce+`","extra-params":""}`)
		}
	case "/kbs/v0/attest":
		b.checkAttest(body)
		h = b.attest
		if h == nil {
			h = answering(200, `{"token":"a.b.c"}`)
		}
	}
	if h == nil {
		h = func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, b.seal(bytes.Repeat([]byte{1}, 32))) }
	}
	h(w, r)
}

func (b *broker) checkAttest(body []byte) {
	var a struct {
		InitData struct{ Format, Body string } `json:"init-data"`
		Runtime  struct {
			Nonce string             `json:"nonce"`
			Key   evidence.PublicKey `json:"tee-pubkey"`
		} `json:"runtime-data"`
		Evidence struct {
			Primary struct {
				SVN  string `json:"svn"`
				Data []byte `json:"report_data"`
			} `json:"primary_evidence"`
			Additional *string `json:"additional_evidence"`
		} `json:"tee-evidence"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		b.t.Errorf("attest with %s: %v", body, err)
		return
	}
	if a.Runtime.Nonce != testNonce || a.Evidence.Additional == nil || *a.Evidence.Additional != "" || a.InitData.Format != "toml" || a.InitData.Body != "init" {
		b.t.Errorf("attest with %s", body)
	}
	data := evidence.Binding{Nonce: testNonce, Key: a.Runtime.Key}.ReportData()
	if !bytes.Equal(a.Evidence.Primary.Data, data[:48]) {
		b.t.Errorf("report data %x, want %x", a.Evidence.Primary.Data, data[:48])
	}
	jwk, err := json.Marshal(a.Runtime.Key)
	if err != nil {
		b.t.Error(err)
	}
	if err := b.key.UnmarshalJSON(jwk); err != nil {
		b.t.Error(err)
	}
}

func (b *broker) seal(plain []byte, opts ...func(*jose.EncrypterOptions)) string {
	var o jose.EncrypterOptions
	for _, f := range opts {
		f(&o)
	}
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: b.key.Key}, &o)
	if err != nil {
		b.t.Fatal(err)
	}
	jwe, err := e.Encrypt(plain)
	if err != nil {
		b.t.Fatal(err)
	}
	return jwe.FullSerialize()
}

func answering(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func (b *broker) listen(t testing.TB) string {
	b.t = t
	ts := httptest.NewServer(b)
	t.Cleanup(ts.Close)
	return ts.URL
}

func get(t testing.TB, url string) (*Grant, error) {
	return ask(t.Context(), Broker{URL: url, AllowHTTP: true}, "default/key/1")
}

func ask(ctx context.Context, b Broker, path string) (*Grant, error) {
	return Exchange(ctx, []Broker{b}, sampler{}, []byte("init"), []Want{{b.URL, path}})
}

func TestExchange(t *testing.T) {
	url := new(broker).listen(t)
	for _, prefix := range []string{"", "/"} {
		g, err := get(t, url+prefix)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(g.Key(url+prefix, "default/key/1"), bytes.Repeat([]byte{1}, 32)) || g.Key(url, "default/key/2") != nil {
			t.Error("another key")
		}
	}
}

func TestBadAnswers(t *testing.T) {
	const e = "https://github.com/confidential-containers/kbs/errors/"
	huge := answering(200, `{"nonce":"`+strings.Repeat("a", maxBody)+`"}`)
	for name, c := range map[string]struct {
		b    broker
		want string
	}{
		"a redirect": {broker{auth: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}}, "redirects to \"http://127.0.0.1:1/\""},
		"a redirect of a resource": {broker{resource: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}}, "redirects"},
		"a challenge over 1 MiB":   {broker{auth: huge}, "more than 1048576 bytes"},
		"a resource over 1 MiB":    {broker{resource: huge}, "more than 1048576 bytes"},
		"no challenge":             {broker{auth: answering(200, "")}, "challenge"},
		"a challenge of no JSON":   {broker{auth: answering(200, "<html>")}, "challenge"},
		"a challenge twice":        {broker{auth: answering(200, `{"nonce":"a","nonce":"b"}`)}, "twice"},
		"an empty nonce":           {broker{auth: answering(200, `{"nonce":""}`)}, "nonce"},
		"a long nonce":             {broker{auth: answering(200, `{"nonce":"`+strings.Repeat("a", 1025)+`"}`)}, "nonce"},
		"a nonce of numbers":       {broker{auth: answering(200, `{"nonce":1}`)}, "nonce"},
		"a hash not offered":       {broker{auth: answering(200, `{"nonce":"a","extra-params":{"selected-hash-algorithm":"sha512"}}`)}, "sha512"},
		"a hash that is none":      {broker{auth: answering(200, `{"nonce":"a","extra-params":{"selected-hash-algorithm":384}}`)}, "384"},
		"no token":                 {broker{attest: answering(200, `{}`)}, "token"},
		"a token that splits":      {broker{attest: answering(200, `{"token":"a\r\nX: y"}`)}, "no HTTP header can carry"},
		"a broker out of order":    {broker{attest: answering(500, `<html>`)}, "status 500"},
		"an unexpected success":    {broker{attest: answering(204, ``)}, "status 204"},
		"a refusal without reason": {broker{resource: answering(403, `nginx`)}, "no reason that RCAR knows"},
		"a denial by 403":          {broker{resource: answering(403, `{"type":"`+e+`PolicyDeny","detail":"no"}`)}, "PolicyDeny"},
		"no such plugin":           {broker{resource: answering(404, `{"type":"`+e+`PluginNotFound","detail":"no"}`)}, "not a key broker with the resource plugin"},
		"a version of no release": {broker{auth: answering(401, `{"type":"`+e+`AttestationError","detail":"KBS Client Protocol Version Mismatch: expect =0.3.0 while the request is 0.4.0"}`)},
			"the broker speaks protocol 0.3.0, this build speaks 0.4.0 (Trustee v0.14.0 to v0.21.0), 0.2.0"},
		"the version that was asked with": {broker{auth: answering(401, `{"type":"`+e+`AttestationError","detail":"KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.4.0"}`)},
			"a proxy that changes requests"},
		"a detail with escapes": {broker{auth: answering(401, `{"type":"`+e+`AttestationError","detail":"\u001b[2J"}`)}, `\x1b[2J`},
	} {
		t.Run(name, func(t *testing.T) {
			url := c.b.listen(t)
			g, err := get(t, url)
			if err == nil || g != nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), url) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	d := denied("https://b", "a/b/c", []byte(`{"type":"https://github.com/confidential-containers/kbs/errors/PolicyDeny","detail":"`+strings.Repeat("é", 300)+`"}`))
	if d.Variant != "PolicyDeny" || len(d.Detail) != 512 {
		t.Errorf("%+v", d)
	}
	if d := denied("https://b", "", []byte(`{"type":"https://example.org/PolicyDeny","detail":1}`)); d.Variant != "" || d.Detail != "" {
		t.Errorf("%+v", d)
	}
	if d := denied("https://b", "", []byte(`{"type":"https://github.com/confidential-containers/kbs/errors/a b"}`)); d.Variant != "" {
		t.Errorf("%+v", d)
	}
}

func TestBadRequestsNeverLeave(t *testing.T) {
	for name, c := range map[string]struct {
		broker, path, want string
	}{
		"another scheme":      {"ftp://b", "a/b/c", "scheme"},
		"no scheme":           {"b", "a/b/c", "scheme"},
		"no host":             {"https://", "a/b/c", "want https://host"},
		"a password":          {"https://u:p@b", "a/b/c", "want https://host"},
		"a query":             {"https://b?x", "a/b/c", "want https://host"},
		"a fragment":          {"https://b#x", "a/b/c", "want https://host"},
		"two segments":        {"https://b", "a/b", "want repository/type/tag"},
		"four segments":       {"https://b", "a/b/c/d", "want repository/type/tag"},
		"a way up":            {"https://b", "a/../c", "want repository/type/tag"},
		"a query in the path": {"https://b", "a/b/c?d", "want repository/type/tag"},
		"a line feed":         {"https://b", "a/b/c\n", "want repository/type/tag"},
		"a slash in front":    {"https://b", "/a/b/c", "want repository/type/tag"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ask(t.Context(), Broker{URL: c.broker}, c.path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	b := Broker{URL: "https://b"}
	if _, err := Exchange(t.Context(), []Broker{b, b}, sampler{}, nil, nil); err == nil {
		t.Error("the same broker twice")
	}
	if _, err := Exchange(t.Context(), []Broker{b}, sampler{}, nil, []Want{{"https://c", "a/b/c"}}); err == nil || !strings.Contains(err.Error(), "not among") {
		t.Errorf("a broker that is not listed: %v", err)
	}
	if _, err := Exchange(t.Context(), []Broker{b}, sampler{}, []byte{0xff}, nil); err == nil {
		t.Error("an initdata document that JSON would change")
	}
	if g, err := Exchange(t.Context(), []Broker{b}, sampler{}, nil, nil); err != nil || g.Key("https://b", "a/b/c") != nil {
		t.Errorf("nothing wanted: %v", err)
	}
}

// liar gives evidence that is not what it was asked for.
type liar struct{ ev evidence.Evidence }

func (liar) Kind() evidence.Kind { return evidence.SNP }

func (l liar) Evidence(context.Context, [64]byte) (evidence.Evidence, error) { return l.ev, nil }

func TestBadDevices(t *testing.T) {
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/kbs/v0/auth" {
			t.Errorf("%s is asked with bad evidence", r.URL.Path)
		}
		w.Header().Set("Set-Cookie", "kbs-session-id=1")
		io.WriteString(w, `{"nonce":"n"}`)
	}))
	defer ts.Close()
	stale := evidence.SNPReport{Version: 3}
	broken := errors.New("firmware error")
	for name, c := range map[string]struct {
		dev interface {
			Kind() evidence.Kind
			Evidence(context.Context, [64]byte) (evidence.Evidence, error)
		}
		want string
	}{
		"a broken one":   {sampler{broken}, "firmware error"},
		"a stale report": {liar{evidence.Evidence{Kind: evidence.SNP, Report: stale.Marshal()}}, "asked for"},
		"a short report": {liar{evidence.Evidence{Kind: evidence.SNP, Report: []byte("x")}}, "1 bytes"},
		"another kind":   {liar{evidence.Evidence{Kind: evidence.Sample, Report: make([]byte, 64)}}, "is snp and gave sample"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Exchange(t.Context(), []Broker{{URL: ts.URL, AllowHTTP: true}}, c.dev, nil, []Want{{ts.URL, "a/b/c"}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestNoCookieNoSession(t *testing.T) {
	ts := httptest.NewServer(answering(200, `{"nonce":"n"}`))
	defer ts.Close()
	if _, err := get(t, ts.URL); err == nil || !strings.Contains(err.Error(), "cookie") {
		t.Errorf("error %v", err)
	}
}

func TestKeyHint(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb}, 32)
	for name, c := range map[string]struct {
		key  []byte
		want string
	}{
		"hex":             {[]byte(hex.EncodeToString(raw)), "hexadecimal"},
		"hex and a line":  {[]byte(hex.EncodeToString(raw) + "\n"), "hexadecimal"},
		"base64":          {[]byte(base64.StdEncoding.EncodeToString(raw)), "base64"},
		"base64 for URLs": {[]byte(base64.RawURLEncoding.EncodeToString(raw)), "base64"},
		"raw and a line":  {append(bytes.Clone(raw), '\n'), "line feed"},
		"16 bytes":        {raw[:16], ""},
		"hex of 16 bytes": {[]byte(hex.EncodeToString(raw[:16])), ""},
		"nothing":         {nil, ""},
	} {
		if got := KeyHint(c.key); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q in it", name, got, c.want)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add([]byte(`{"nonce":"` + testNonce + `","extra-params":""}`))
	f.Add([]byte(`{"nonce":"a","extra-params":{"selected-hash-algorithm":"sha512"}}`))
	f.Add([]byte(`{"token":"a.b.c"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if nonce, err := parseChallenge(b); err == nil && (nonce == "" || len(nonce) > maxNonce) {
			t.Errorf("nonce %q", nonce)
		}
		if token, err := parseToken(b); err == nil {
			if strings.ContainsAny(token, "\r\n\x00 ") {
				t.Errorf("token %q", token)
			}
			expired(token, time.Now())
		}
	})
}
