package kbsserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
)

// counted is an endless body of which it is known how much was read.
type counted struct{ n int64 }

func (c *counted) Read(p []byte) (int, error) {
	if c.n >= 1<<30 {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = ' '
	}
	c.n += int64(len(p))
	return len(p), nil
}

func TestABodyOfAGigabyte(t *testing.T) {
	r := newRig(t, nil)
	g := r.byHand(t, r.listen(t), "0.4.0", "P-256")
	if ref := g.auth(t); ref != nil {
		t.Fatal(ref)
	}
	for _, c := range []struct {
		method, path string
		session      bool
		most         int64
	}{
		{"POST", "auth", false, 65 << 10}, {"POST", "attest", false, 0}, {"POST", "attest", true, 9 << 20},
		{"GET", "resource/" + algoKey, false, 0}, {"POST", "resource/" + algoKey, false, 0}, {"POST", "resource-policy", false, 0},
	} {
		body := new(counted)
		req := httptest.NewRequest(c.method, "/kbs/v0/"+c.path, body)
		if c.session {
			req.AddCookie(g.cookie)
		}
		w := httptest.NewRecorder()
		r.server.ServeHTTP(w, req)
		if w.Code != http.StatusUnauthorized || body.n > c.most {
			t.Errorf("%s %s: status %d, %d bytes were read, at most %d", c.method, c.path, w.Code, body.n, c.most)
		}
	}
}

func TestGarbage(t *testing.T) {
	r := newRig(t, nil)
	url := r.listen(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		b := make([]byte, rng.IntN(4096))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		g := r.byHand(t, url, "0.4.0", "P-256")
		if ref := g.auth(t); ref != nil {
			t.Fatal(ref)
		}
		good := g.body(t)
		if rng.IntN(2) == 0 {
			b = good[:rng.IntN(len(good))]
		}
		if ref := g.attest(t, b); ref == nil || ref.Detail != "RCAR handshake Attest failed" {
			t.Errorf("%.200q: %+v", b, ref)
		}
		g.cookie = nil
		if _, ref, _ := g.do(t, "POST", "auth", b, ""); ref == nil {
			t.Errorf("auth takes %q", b)
		}
	}
}

func TestOddPaths(t *testing.T) {
	r := newRig(t, nil)
	g := r.byHand(t, r.listen(t), "0.4.0", "P-256")
	if ref := g.auth(t); ref != nil {
		t.Fatal(ref)
	}
	if ref := g.attest(t, g.body(t)); ref != nil {
		t.Fatal(ref)
	}
	r.policyText(t, `{"*/*/*":{"measurements":["`+measurement.String()+`"],"init_data":["`+fmt.Sprintf("%x", sha256.Sum256(initdata))+`"]}}`)
	for _, path := range []string{"default/key", "default/key/algo-key/x", "../key/algo-key", "default/../key/algo-key", ".default/key/algo-key",
		"default/key/%2e%2e", "default%2Fkey%2Falgo-key/x", "default/key/a%00b", strings.Repeat("a", 600) + "/b/c", "default//algo-key", "default/key/*"} {
		w := httptest.NewRecorder()
		req := httptest.NewRequest("GET", "/kbs/v0/resource/"+path, nil)
		req.AddCookie(g.cookie)
		r.server.ServeHTTP(w, req)
		if w.Code == http.StatusOK || strings.Contains(w.Body.String(), "PolicyDeny") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// memory is a store of resources.
type memory map[string][]byte

func (m memory) Get(path string) ([]byte, error) {
	if b, ok := m[path]; ok {
		return bytes.Clone(b), nil
	}
	return nil, fmt.Errorf("resource %s: %w", path, fs.ErrNotExist)
}

func TestStoreAndPolicyOfOthers(t *testing.T) {
	var answer struct {
		allow bool
		why   string
		err   error
	}
	var asked map[string]any
	r := newRig(t, func(c *kbsserver.Config) {
		c.Resources = memory{algoKey: {1, 2, 3}, "default/key/large": make([]byte, 64<<10+1)}
		c.ResourcePolicy = func(_ context.Context, path string, claims map[string]any) (bool, string, error) {
			asked = claims
			return answer.allow, answer.why, answer.err
		}
		c.Dir = ""
	})
	g := r.byHand(t, r.listen(t), "0.4.0", "P-256")
	g.initdata = initdata
	if ref := g.auth(t); ref != nil {
		t.Fatal(ref)
	}
	if ref := g.attest(t, g.body(t)); ref != nil {
		t.Fatal(ref)
	}
	check := func(path, variant, logged string) {
		t.Helper()
		got, ref := g.get(t, path, "")
		if variant == "" {
			if ref != nil || !bytes.Equal(got, []byte{1, 2, 3}) {
				t.Errorf("%x, %+v", got, ref)
			}
			return
		}
		if ref == nil || !strings.HasSuffix(ref.Type, variant) || !strings.Contains(r.log.String(), logged) {
			t.Errorf("%+v, want %s, and %q in the log:\n%s", ref, variant, logged, r.log)
		}
	}
	answer.why = "no reference value matches"
	check(algoKey, "PolicyDeny", "no reference value matches")
	answer.allow, answer.err = true, errors.New("it took too long")
	check(algoKey, "PolicyDeny", "it took too long")
	answer.err = nil
	check(algoKey, "", "")
	check(datasetKey, "PluginInternalError", "file does not exist")
	check("default/key/large", "PluginInternalError", "more than 65536 bytes")
	cpu := asked["submods"].(map[string]any)["cpu0"].(map[string]any)["ear.veraison.annotated-evidence"].(map[string]any)
	if cpu["init_data_claims"].(map[string]any)["ampoule.json"] != "{}" || cpu["snp"].(map[string]any)["measurement"] != measurement.String() {
		t.Errorf("claims %v", cpu)
	}
	if _, err := kbsserver.New(kbsserver.Config{}); err == nil {
		t.Error("a broker without any resources")
	}
}

// policy.json, where there is one, and the other policy must both allow.
func TestBothPolicies(t *testing.T) {
	allow := false
	r := newRig(t, func(c *kbsserver.Config) {
		c.ResourcePolicy = func(context.Context, string, map[string]any) (bool, string, error) { return allow, "", nil }
	})
	url := r.listen(t)
	_, err := r.exchange(t, url, algoKey)
	denied(t, err, "PolicyDeny", algoKey)
	allow = true
	if _, err := r.exchange(t, url, algoKey); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"{}", "{"} {
		r.policyText(t, text)
		_, err = r.exchange(t, url, algoKey)
		denied(t, err, "PolicyDeny", algoKey)
	}
}

// The other policy can come and go. While it is not there policy.json decides alone, and without either nothing is allowed.
func TestPolicyThatIsNotThere(t *testing.T) {
	r := newRig(t, func(c *kbsserver.Config) {
		c.ResourcePolicy = func(context.Context, string, map[string]any) (bool, string, error) {
			return true, "", fmt.Errorf("resource.rego: %w", fs.ErrNotExist)
		}
	})
	url := r.listen(t)
	if _, err := r.exchange(t, url, algoKey); err != nil {
		t.Error(err)
	}
	r.policyText(t, "{}")
	_, err := r.exchange(t, url, algoKey)
	denied(t, err, "PolicyDeny", algoKey)
	if err := os.Remove(filepath.Join(r.dir, "policy.json")); err != nil {
		t.Fatal(err)
	}
	_, err = r.exchange(t, url, algoKey)
	denied(t, err, "PolicyDeny", algoKey)
}

func TestAdministrators(t *testing.T) {
	var got []string
	r := newRig(t, func(c *kbsserver.Config) {
		c.Admin = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got = append(got, r.Method+" "+r.URL.Path) })
	})
	for path, admin := range map[string]bool{
		"POST resource/a/b/c": true, "DELETE resource/a/b/c": true, "PUT resource/a/b/c": true, "POST resource-policy": true, "GET resource-policy": true,
		"POST attestation-policy": true, "POST reference-value": true, "GET reference-value/x": true,
		"GET resource/a/b/c": false, "POST auth": false, "POST attest": false, "POST resource-policy-x": false, "POST pkcs11/a": false,
	} {
		method, path, _ := strings.Cut(path, " ")
		got = nil
		w := httptest.NewRecorder()
		r.server.ServeHTTP(w, httptest.NewRequest(method, "/kbs/v0/"+path, nil))
		if (got != nil) != admin || admin && got[0] != method+" /kbs/v0/"+path {
			t.Errorf("%s %s: %q", method, path, got)
		}
		plain := newRig(t, nil)
		w = httptest.NewRecorder()
		plain.server.ServeHTTP(w, httptest.NewRequest(method, "/kbs/v0/"+path, nil))
		if strings.Contains(w.Body.String(), "AdminAuthAccess") != admin {
			t.Errorf("%s %s without administrators: %s", method, path, w.Body)
		}
	}
}
