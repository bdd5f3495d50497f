package store

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

type adminRig struct {
	*Admin
	key     ed25519.PrivateKey
	changes int
	log     bytes.Buffer
}

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func newAdmin(t testing.TB) *adminRig {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &adminRig{key: key}
	r.Admin = NewAdmin(open(t, t.TempDir(), nil), AdminOptions{
		Key: pub, Now: func() time.Time { return noon }, Changed: func() { r.changes++ },
		Log: slog.New(slog.NewTextHandler(&r.log, nil)),
		CheckPolicy: func(src []byte) error {
			if !bytes.HasPrefix(src, []byte("package policy")) {
				return errors.New("not a policy")
			}
			return nil
		},
	})
	return r
}

func (r *adminRig) token(t testing.TB) string {
	t.Helper()
	token, err := Token(r.key, "admin", noon, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (r *adminRig) do(t testing.TB, method, path, body string, token string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest(method, "/kbs/v0/"+path, strings.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	return w
}

func refused(t testing.TB, w *httptest.ResponseRecorder, status int, variant, detail string) {
	t.Helper()
	var e struct{ Type, Detail string }
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	if w.Code != status || e.Type != "https://github.com/confidential-containers/kbs/errors/"+variant || !strings.Contains(e.Detail, detail) {
		t.Errorf("%d %+v, want %d %s with %q", w.Code, e, status, variant, detail)
	}
}

func policyJSON(src string) string {
	return fmt.Sprintf(`{"policy":%q}`, base64.RawURLEncoding.EncodeToString([]byte(src)))
}

// The bodies and answers are those of SPEC §1.1.
func TestAdministration(t *testing.T) {
	r := newAdmin(t)
	token := r.token(t)
	ok := func(w *httptest.ResponseRecorder, contentType, body string) {
		t.Helper()
		if got := w.Header().Get("Content-Type"); w.Code != 200 || got != contentType || strings.TrimSpace(w.Body.String()) != body {
			t.Fatalf("%d %q %q, want %q %q", w.Code, got, w.Body, contentType, body)
		}
	}

	secret := "\x00\xff raw bytes, not base64"
	ok(r.do(t, "POST", "resource/"+key, secret, token), "text/xml", "")
	if b, err := r.store.Get(key); err != nil || string(b) != secret {
		t.Fatalf("%q, %v", b, err)
	}
	ok(r.do(t, "DELETE", "resource/"+key, "", token), "text/xml", "")
	if _, err := r.store.Get(key); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	refused(t, r.do(t, "DELETE", "resource/"+key, "", token), 401, "PluginInternalError", "no such file")

	ok(r.do(t, "GET", "resource-policy", "", token), "application/json", `[]`)
	rego := "package policy\n# ?>~ have base64 say - and _\nallow if true\n"
	ok(r.do(t, "POST", "resource-policy", policyJSON(rego), token), "", "")
	if b, err := r.store.Policy("resource"); err != nil || string(b) != rego {
		t.Fatalf("%q, %v", b, err)
	}
	ok(r.do(t, "GET", "resource-policy", "", token), "application/json", `["resource-policy"]`)

	ok(r.do(t, "POST", "attestation-policy", `{"type":"rego","policy_id":"default_cpu",`+policyJSON(rego)[1:], token), "", "")
	if b, err := r.store.Policy("attestation/default_cpu"); err != nil || string(b) != rego {
		t.Fatalf("%q, %v", b, err)
	}

	payload := base64.StdEncoding.EncodeToString([]byte(`{"snp_measurement":["abcd"],"svn":1}`))
	ok(r.do(t, "POST", "reference-value", `{"version":"0.1.0","type":"sample","payload":"`+payload+`"}`, token), "application/json", "")
	payload = base64.StdEncoding.EncodeToString([]byte(`{"svn":2}`))
	ok(r.do(t, "POST", "reference-value", `{"type":"sample","payload":"`+payload+`"}`, token), "application/json", "")
	ok(r.do(t, "GET", "reference-value/snp_measurement", "", token), "application/json", `["abcd"]`)
	ok(r.do(t, "GET", "reference-value/svn", "", token), "application/json", `2`)
	ok(r.do(t, "GET", "reference-value/other", "", token), "application/json", `null`)
	if r.changes != 6 {
		t.Errorf("%d changes were told, want 6", r.changes)
	}
}

func TestBadAdministration(t *testing.T) {
	r := newAdmin(t)
	token := r.token(t)
	good := base64.RawURLEncoding.EncodeToString([]byte("package policy ?>~"))
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		variant, detail    string
	}{
		"path":              {"POST", "resource/default/key", "x", 401, "PluginInternalError", "REPO/TYPE/TAG"},
		"path up":           {"POST", "resource/a/../b", "x", 401, "PluginInternalError", "REPO/TYPE/TAG"},
		"empty":             {"POST", "resource/" + key, "", 401, "PluginInternalError", "0 bytes"},
		"too large":         {"POST", "resource/" + key, strings.Repeat("x", MaxResource+1), 401, "PluginInternalError", "too large"},
		"put":               {"PUT", "resource/" + key, "x", 404, "InvalidRequestPath", ""},
		"guest's":           {"GET", "resource/" + key, "", 404, "InvalidRequestPath", ""},
		"other":             {"POST", "auth", "{}", 404, "InvalidRequestPath", ""},
		"below a policy":    {"POST", "resource-policy/x", policyJSON("package policy"), 404, "InvalidRequestPath", ""},
		"policy in clear":   {"POST", "resource-policy", "package policy", 401, "ParsePolicyError", ""},
		"policy with pad":   {"POST", "resource-policy", `{"policy":"` + base64.URLEncoding.EncodeToString([]byte("package policy")) + `"}`, 401, "ParsePolicyError", "without padding"},
		"policy in std":     {"POST", "resource-policy", `{"policy":"` + strings.NewReplacer("-", "+", "_", "/").Replace(good) + `"}`, 401, "ParsePolicyError", "without padding"},
		"policy twice":      {"POST", "resource-policy", `{"policy":"","policy":""}`, 401, "ParsePolicyError", "twice"},
		"not a policy":      {"POST", "resource-policy", policyJSON("package other"), 401, "PolicyEngineError", "not a policy"},
		"no policy":         {"POST", "resource-policy", `{"type":"rego"}`, 401, "ParsePolicyError", "policy"},
		"no id":             {"POST", "attestation-policy", policyJSON("package policy"), 401, "AttestationError", "policy_id"},
		"id up":             {"POST", "attestation-policy", `{"policy_id":"../resource",` + policyJSON("package policy")[1:], 401, "AttestationError", "attestation/ID"},
		"RVPS version":      {"POST", "reference-value", `{"version":"0.2.0","type":"sample","payload":"e30="}`, 401, "RvpsError", "0.1.0"},
		"RVPS type":         {"POST", "reference-value", `{"version":"0.1.0","type":"corim","payload":"e30="}`, 401, "RvpsError", "sample"},
		"RVPS payload":      {"POST", "reference-value", `{"version":"0.1.0","type":"sample","payload":"e30"}`, 401, "RvpsError", "base64 with padding"},
		"RVPS not object":   {"POST", "reference-value", `{"version":"0.1.0","type":"sample","payload":"W10="}`, 401, "RvpsError", ""},
		"RVPS without name": {"POST", "reference-value", `{"type":"sample","payload":"` + base64.StdEncoding.EncodeToString([]byte(`{"":1}`)) + `"}`, 401, "RvpsError", "name"},
	} {
		t.Run(name, func(t *testing.T) {
			w := r.do(t, c.method, c.path, c.body, token)
			refused(t, w, c.status, c.variant, c.detail)
		})
	}
	if left, err := r.store.Policies(); len(left) != 0 || err != nil || r.changes != 0 {
		t.Errorf("policies %q, %d changes, %v", left, r.changes, err)
	}
}

func TestTokens(t *testing.T) {
	r := newAdmin(t)
	sign := func(alg jose.SignatureAlgorithm, key any, claims string) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		jws, err := s.Sign([]byte(claims))
		if err != nil {
			t.Fatal(err)
		}
		token, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	claims := func(role string, iat, exp int64) string {
		return fmt.Sprintf(`{"role":%q,"iat":%d,"exp":%d}`, role, noon.Unix()+iat, noon.Unix()+exp)
	}
	eddsa := func(claims string) string { return sign(jose.EdDSA, r.key, claims) }
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := claims("admin", -60, 3600)
	b64 := base64.RawURLEncoding.EncodeToString
	none := b64([]byte(`{"alg":"none"}`)) + "." + b64([]byte(good)) + "."
	for name, c := range map[string]struct{ token, detail string }{
		"none given":       {"", "want one with a Bearer token"},
		"alg none":         {none, "token"},
		"no role":          {eddsa(fmt.Sprintf(`{"iat":%d,"exp":%d}`, noon.Unix(), noon.Unix()+60)), `role "", want`},
		"other role":       {eddsa(claims("viewer", 0, 60)), `role "viewer", want`},
		"role in a list":   {eddsa(strings.Replace(good, `"admin"`, `["admin"]`, 1)), "token"},
		"expired":          {eddsa(claims("admin", -3600, 0)), "expired"},
		"of the future":    {eddsa(claims("admin", 120, 3600)), "compare the clocks"},
		"too long":         {eddsa(claims("admin", 0, 86401)), "at most 86400"},
		"no exp":           {eddsa(fmt.Sprintf(`{"role":"admin","iat":%d}`, noon.Unix())), "must be there"},
		"no iat":           {eddsa(fmt.Sprintf(`{"role":"admin","exp":%d}`, noon.Unix()+60)), "must be there"},
		"not before":       {eddsa(strings.Replace(good, "{", fmt.Sprintf(`{"nbf":%d,`, noon.Unix()+3000), 1)), "not good yet"},
		"other key":        {sign(jose.EdDSA, other, good), "not signed by"},
		"ES256":            {sign(jose.ES256, ec, good), "token"},
		"RS256":            {sign(jose.RS256, rsaKey, good), "token"},
		"HS256 by the key": {sign(jose.HS256, []byte(r.Key), good), "token"},
		"changed":          {eddsa(good) + "A", "token"},
		"garbage":          {"x.y.z", "token"},
		"huge":             {strings.Repeat("x", maxToken+1), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, req := range [][3]string{{"POST", "resource/" + key, "x"}, {"DELETE", "resource/" + key}, {"GET", "resource-policy"}, {"POST", "resource-policy", policyJSON("package policy")},
				{"POST", "attestation-policy", "{}"}, {"POST", "reference-value", "{}"}, {"GET", "reference-value/x"}} {
				refused(t, r.do(t, req[0], req[1], req[2], c.token), 401, "AdminAuthAccess", c.detail)
			}
		})
	}
	if w := r.do(t, "GET", "resource-policy", "", eddsa(good)); w.Code != 200 {
		t.Errorf("a good one: %d %s", w.Code, w.Body)
	}
	if _, err := r.store.Get(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
	r.Roles = []string{"kbs-admin"}
	refused(t, r.do(t, "GET", "resource-policy", "", eddsa(good)), 401, "AdminAuthAccess", "role")
	r.Key = nil
	refused(t, r.do(t, "GET", "resource-policy", "", eddsa(good)), 401, "AdminAuthAccess", "--admin-key")
	for _, d := range []time.Duration{0, -time.Hour, 24*time.Hour + time.Second} {
		if _, err := Token(r.key, "admin", noon, d); err == nil {
			t.Errorf("a token for %v", d)
		}
	}
	if strings.Contains(r.log.String(), "eyJ") {
		t.Error("the log holds a token")
	}
}

func TestHandles(t *testing.T) {
	got := map[string]bool{}
	want := map[string]bool{"GET resource/a/b/c": false, "POST resource/a/b/c": true, "DELETE resource/a/b/c": true, "GET resource-policy": true,
		"POST attestation-policy": true, "GET reference-value/x": true, "POST auth": false, "POST attest": false, "GET other": false}
	for c := range want {
		method, path, _ := strings.Cut(c, " ")
		got[c] = Handles(httptest.NewRequest(method, "/kbs/v0/"+path, nil))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if Handles(httptest.NewRequest(http.MethodPost, "/resource/a/b/c", nil)) {
		t.Error("outside of the prefix")
	}
}

func FuzzAdmin(f *testing.F) {
	f.Add("POST", "resource-policy", policyJSON("package policy\n"))
	f.Add("POST", "attestation-policy", `{"type":"rego","policy_id":"default_cpu","policy":""}`)
	f.Add("POST", "reference-value", `{"version":"0.1.0","type":"sample","payload":"e30="}`)
	f.Add("POST", "resource/a/b/c", "x")
	f.Add("GET", "reference-value/x", "")
	r := newAdmin(f)
	token := r.token(f)
	f.Fuzz(func(t *testing.T, method, path, body string) {
		req := httptest.NewRequest("POST", "/kbs/v0/x", strings.NewReader(body))
		req.Method, req.URL.Path = method, "/kbs/v0/"+path
		req.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		if w.Code != 200 && w.Code != 401 && w.Code != 404 {
			t.Errorf("status %d", w.Code)
		}
		r.log.Reset()
	})
}
