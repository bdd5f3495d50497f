package kbsserver

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func shared(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../../shared/wire/vectors/kbs", name))
	if os.IsNotExist(err) {
		t.Skipf("no shared vectors beside this checkout: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newServer(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestInitData(t *testing.T) {
	var vectors map[string]struct {
		HostData   string `json:"snp_host_data"`
		MRConfigID string `json:"tdx_mrconfigid"`
	}
	if err := json.Unmarshal(shared(t, "initdata.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	wrap := func(body string) json.RawMessage {
		b, err := json.Marshal(map[string]string{"format": "toml", "body": body})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for file, want := range vectors {
		got, err := parseInitData(wrap(string(shared(t, file))))
		if err != nil {
			t.Fatal(err)
		}
		if host := hex.EncodeToString(evidence.InRegister(evidence.HostData, got.digest)); err != nil || host != want.HostData {
			t.Errorf("%s: HOST_DATA %s, want %s: %v", file, host, want.HostData, err)
		}
		if config := hex.EncodeToString(evidence.InRegister(evidence.MRConfigID, got.digest)); config != want.MRConfigID {
			t.Errorf("%s: MRCONFIGID %s, want %s", file, config, want.MRConfigID)
		}
	}
	for name, bad := range map[string]string{
		"no algorithm":           "version = \"0.1.0\"\n[data]\n",
		"the dash of the spec":   "version = \"0.1.0\"\nalgorithm = \"sha-384\"\n[data]\n",
		"another version":        "version = \"0.2.0\"\nalgorithm = \"sha256\"\n[data]\n",
		"data that is no string": "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\na = 1\n",
		"a further member":       "version = \"0.1.0\"\nalgorithm = \"sha256\"\nx = 1\n[data]\n",
		"a member twice":         "version = \"0.1.0\"\nalgorithm = \"sha256\"\nalgorithm = \"sha256\"\n[data]\n",
		"no TOML":                "{}",
	} {
		if _, err := parseInitData(wrap(bad)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestHTTP(t *testing.T) {
	s := newServer(t)
	ts := httptest.NewServer(s)
	defer ts.Close()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	do := func(method, path, body string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(method, ts.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}

	resp, body := do("POST", "/kbs/v0/auth", `{"version":"0.4.0","tee":"snp","extra-params":""}`)
	var challenge map[string]string
	if err := json.Unmarshal([]byte(body), &challenge); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp.Status, body, err)
	}
	nonce, err := base64.StdEncoding.DecodeString(challenge["nonce"])
	if extra, ok := challenge["extra-params"]; err != nil || len(nonce) != 32 || !ok || extra != "" || len(challenge) != 2 {
		t.Errorf("challenge %s", body)
	}
	c := resp.Cookies()[0]
	if c.Name != "kbs-session-id" || len(c.Value) != 32 || c.Path != "" || time.Until(c.Expires) < 4*time.Minute {
		t.Errorf("cookie %s", c.Raw)
	}

	const errors = "https://github.com/confidential-containers/kbs/errors/"
	for _, c := range []struct {
		method, path string
		status       int
		variant      string
	}{
		{"GET", "/healthz", 200, ""},
		{"POST", "/kbs/v0/attest", 401, "AttestationError"},
		{"POST", "/kbs/v0/auth", 401, "AttestationError"},
		{"GET", "/kbs/v0/resource/a/b/c", 401, "TokenNotFound"},
		{"POST", "/kbs/v0/resource/a/b/c", 401, "AdminAuthAccess"},
		{"DELETE", "/kbs/v0/resource/a/b/c", 401, "AdminAuthAccess"},
		{"GET", "/kbs/v0/pkcs11/a", 404, "PluginNotFound"},
		{"GET", "/kbs/v0/auth", 404, "PluginNotFound"},
		{"GET", "/kbs/v0//resource/a/b/c", 404, "PluginNotFound"},
		{"GET", "/kbs/v0/", 404, "InvalidRequestPath"},
		{"GET", "/", 404, "InvalidRequestPath"},
	} {
		resp, body := do(c.method, c.path, "")
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: status %d, want %d", c.method, c.path, resp.StatusCode, c.status)
		}
		if c.variant == "" {
			continue
		}
		var info map[string]string
		if err := json.Unmarshal([]byte(body), &info); err != nil || info["type"] != errors+c.variant || info["detail"] == "" || len(info) != 2 {
			t.Errorf("%s %s: %s, want %s", c.method, c.path, body, c.variant)
		}
	}
}

func TestTokens(t *testing.T) {
	s := newServer(t)
	now := time.Now()
	_, jwk := newKey(t, "P-256")
	a := &attestation{key: jwk}
	n := &session{id: newSessionID(), expires: now.Add(time.Minute), key: jwk}
	foreign := *n
	if err := errors.Join(s.sign(t.Context(), n, a, now), newServer(t).sign(t.Context(), &foreign, a, now)); err != nil {
		t.Fatal(err)
	}
	s.sessions.add(n, now)
	ask := func(head, value string) *refusal {
		r := httptest.NewRequest("GET", "/kbs/v0/resource/a/b/c", nil)
		r.Header.Set(head, value)
		_, ref := s.authorized(r)
		return ref
	}
	for name, c := range map[string]struct{ head, value, variant string }{
		"the cookie":            {"Cookie", "kbs-session-id=" + n.id, ""},
		"the token":             {"Authorization", "Bearer " + n.token, ""},
		"another cookie":        {"Cookie", "kbs-session-id=" + newSessionID(), "TokenNotFound"},
		"a token of a stranger": {"Authorization", "Bearer " + foreign.token, "TokenVerifierError"},
		"no token":              {"Authorization", "Bearer x", "TokenVerifierError"},
		"another scheme":        {"Authorization", "Basic eDp4", "TokenNotFound"},
		"alg none": {"Authorization", "Bearer " + base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." +
			strings.Split(n.token, ".")[1] + ".", "TokenVerifierError"},
	} {
		ref := ask(c.head, c.value)
		if (ref == nil) != (c.variant == "") || ref != nil && ref.variant != c.variant {
			t.Errorf("%s: %+v, want %q", name, ref, c.variant)
		}
	}
	s.Now = func() time.Time { return now.Add(2 * time.Minute) }
	if ref := ask("Authorization", "Bearer "+n.token); ref == nil || ref.variant != "TokenNotFound" {
		t.Errorf("after the session: %+v", ref)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s := sessions{byID: map[string]*session{}}
	start := time.Now()
	for i := range 3 * maxSessions {
		now := start.Add(time.Duration(i) * time.Millisecond)
		s.add(&session{id: fmt.Sprint(i), expires: now.Add(sessionLifetime)}, now)
	}
	if len(s.byID) != maxSessions {
		t.Errorf("%d sessions, at most %d", len(s.byID), maxSessions)
	}
	if s.get("0", start) != nil || s.get(fmt.Sprint(3*maxSessions-1), start) == nil {
		t.Error("the youngest went, not the oldest")
	}
	if s.take("5000", start) != nil {
		t.Error("a session that never was")
	}
	id := fmt.Sprint(3*maxSessions - 1)
	if s.take(id, start) == nil || s.take(id, start) != nil {
		t.Error("a nonce is good for one try")
	}
	s.add(&session{id: "late", expires: start.Add(time.Hour)}, start.Add(time.Hour-time.Second))
	if len(s.byID) != 1 {
		t.Errorf("%d sessions are left after an hour", len(s.byID))
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "keys/<repository>") {
		t.Errorf("a directory without keys: %v", err)
	}
	dir := newServer(t).Dir
	if err := os.WriteFile(filepath.Join(dir, "policy.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a spoiled policy is taken")
	}
}

func FuzzAttestation(f *testing.F) {
	report := make([]byte, evidence.SNPReportSize)
	report[0], report[0x188] = 3, 0x19
	ev, err := evidence.Evidence{Kind: evidence.SNP, Report: report}.JSON()
	if err != nil {
		f.Fatal(err)
	}
	_, jwk := newKey(f, "P-256")
	body, err := json.Marshal(map[string]any{
		"init-data":    map[string]string{"format": "toml", "body": "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"a\" = '''b'''\n"},
		"runtime-data": map[string]any{"nonce": "nonce", "tee-pubkey": jwk},
		"tee-evidence": map[string]any{"primary_evidence": ev, "additional_evidence": ""},
	})
	if err != nil {
		f.Fatal(err)
	}
	current := generations["0.4.0"]
	if _, err := current.attestation(body, evidence.SNP, "nonce"); err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"runtime-data":{"nonce":"nonce","tee-pubkey":{}},"tee-evidence":{}}`))
	_, rsa := newKey(f, evidence.RSA15)
	for _, primary := range []any{ev, string(ev)} {
		body, err := json.Marshal(map[string]any{"tee-pubkey": rsa, "tee-evidence": primary})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for version, g := range generations {
			for _, kind := range []evidence.Kind{evidence.SNP, evidence.TDX, evidence.AzSNPvTPM, evidence.Sample} {
				a, err := g.attestation(b, kind, "nonce")
				if err == nil && (a.key == nil || a.evidence.Kind != kind || a.reportData == [64]byte{}) {
					t.Errorf("%s: half an attestation is taken", version)
				}
			}
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"version":"0.4.0","tee":"snp","extra-params":{"supported-hash-algorithms":["sha384"]}}`))
	f.Add([]byte(`{"version":"0.1.0","tee":"azsnpvtpm","extra-params":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for version, g := range generations {
			if kind, err := g.request(b); err == nil && (kind == "" || !bytes.Contains(b, []byte("version"))) {
				t.Errorf("%s takes %q", version, b)
			}
		}
	})
}
