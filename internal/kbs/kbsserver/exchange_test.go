package kbsserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
)

func TestAGuestGetsItsKeys(t *testing.T) {
	r := newRig(t, nil)
	url := r.listen(t)
	g, err := r.exchange(t, url, algoKey, datasetKey, algoKey)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(g.Key(url, algoKey), bytes.Repeat([]byte{7}, 32)) || !bytes.Equal(g.Key(url, datasetKey), bytes.Repeat([]byte{8}, 32)) {
		t.Error("other keys")
	}
	if n := r.guest.asked.Load(); n != 1 {
		t.Errorf("%d reports for one broker", n)
	}
	if n := strings.Count(r.log.String(), "decision=allow released=true"); n != 2 {
		t.Errorf("%d decisions in the log, want 2:\n%s", n, r.log)
	}
	for _, out := range []string{fmt.Sprint(g), fmt.Sprintf("%+v %#v", g, g), slog.AnyValue(g).Resolve().String()} {
		if !strings.Contains(out, "[secret]") || strings.Contains(out, "7 7") {
			t.Errorf("a grant prints as %s", out)
		}
	}
	if j, err := json.Marshal(g); err != nil || string(j) != `"[secret]"` {
		t.Errorf("a grant marshals as %s", j)
	}
	key := g.Key(url, algoKey)
	g.Zero()
	if !bytes.Equal(key, make([]byte, 32)) || g.Key(url, algoKey) != nil {
		t.Error("a key is left after Zero")
	}
}

func TestSeveralBrokersAtOnce(t *testing.T) {
	a, b := newRig(t, nil), newRig(t, nil)
	b.key(t, algoKey, bytes.Repeat([]byte{9}, 32))
	urlA, urlB := a.listen(t), b.listen(t)
	brokers := []kbs.Broker{{URL: urlA, AllowHTTP: true}, {URL: urlB, AllowHTTP: true}}
	g, err := kbs.Exchange(t.Context(), brokers, a.guest, initdata, []kbs.Want{{Broker: urlA, Path: algoKey}, {Broker: urlB, Path: algoKey}})
	if err != nil {
		t.Fatal(err)
	}
	if g.Key(urlA, algoKey)[0] != 7 || g.Key(urlB, algoKey)[0] != 9 {
		t.Error("keys of one broker under another")
	}
}

func TestPolicyDenies(t *testing.T) {
	digest := sha256.Sum256(initdata)
	for name, c := range map[string]struct {
		change func(r *evidence.SNPReport)
		policy string
		log    []string
	}{
		"another measurement": {
			func(r *evidence.SNPReport) { r.Measurement[0] = 9 }, "",
			[]string{"claim=measurement", "expected=" + measurement.String(), "actual=0902"},
		},
		"a manifest that is not listed": {
			nil, `{"default/key/*": {"measurements": ["` + measurement.String() + `"], "init_data": ["` + strings.Repeat("ab", 32) + `"]}}`,
			[]string{"claim=init_data", "expected=" + strings.Repeat("ab", 32), fmt.Sprintf("actual=%x", digest)},
		},
		"no rule for the resource": {nil, `{"other/key/*": {"measurements": [], "init_data": []}}`, []string{"claim=resource"}},
		"an empty policy":          {nil, `{}`, []string{"claim=resource"}},
		"empty lists":              {nil, `{"*/*/*": {"measurements": [], "init_data": []}}`, []string{"claim=measurement"}},
		"a policy that is spoiled": {nil, `{"*/*/*": {"measurements": []}}`, []string{"claim=policy", "init_data"}},
		"a measurement of one rule, a manifest of another": {nil, fmt.Sprintf(
			`{"default/key/*": {"measurements": ["%s"], "init_data": []}, "default/*/*": {"measurements": [], "init_data": ["%x"]}}`, measurement, digest),
			[]string{"claim=init_data"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.guest.change = c.change
			if c.policy != "" {
				r.policyText(t, c.policy)
			}
			_, err := r.exchange(t, r.listen(t), algoKey)
			d := denied(t, err, "PolicyDeny", algoKey)
			if d.Detail != "Access denied by policy" {
				t.Errorf("the guest is told %q", d.Detail)
			}
			if !strings.Contains(err.Error(), "the policy of the resource refuses this measurement or manifest") {
				t.Errorf("no next step in %q", err)
			}
			for _, want := range append(c.log, "decision=deny", "resource="+algoKey) {
				if !strings.Contains(r.log.String(), want) {
					t.Errorf("log has no %q:\n%s", want, r.log)
				}
			}
			if n := r.guest.asked.Load(); n != 1 {
				t.Errorf("%d attestations: a denial is final", n)
			}
		})
	}
}

func TestPolicyIsReadAgain(t *testing.T) {
	r := newRig(t, nil)
	url := r.listen(t)
	if err := os.Remove(filepath.Join(r.dir, "policy.json")); err != nil {
		t.Fatal(err)
	}
	_, err := r.exchange(t, url, algoKey)
	denied(t, err, "PolicyDeny", algoKey)
	r.policy(t, kbsserver.Policy{algoKey: {Measurements: []evidence.Measurement{measurement}, InitData: []kbsserver.Digest{sha256.Sum256(initdata)}}})
	if _, err := r.exchange(t, url, algoKey); err != nil {
		t.Fatal(err)
	}
	_, err = r.exchange(t, url, datasetKey)
	denied(t, err, "PolicyDeny", datasetKey)
}

func TestAMissingKeyIsToldApart(t *testing.T) {
	r := newRig(t, nil)
	r.key(t, "default/key/empty", nil)
	r.key(t, "default/key/large", make([]byte, 64<<10+1))
	if err := os.Symlink("/etc/hostname", filepath.Join(r.dir, "keys/default/key/outside")); err != nil {
		t.Fatal(err)
	}
	url := r.listen(t)
	for _, path := range []string{"default/key/none", "default/key/empty", "default/key/large", "default/key/outside"} {
		_, err := r.exchange(t, url, path)
		denied(t, err, "PluginInternalError", path)
		if !strings.Contains(err.Error(), "not there") {
			t.Errorf("no next step in %q", err)
		}
	}
	r.policyText(t, "{}")
	_, err := r.exchange(t, url, "default/key/none")
	denied(t, err, "PolicyDeny", "default/key/none")
}

func TestEvidenceIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *rig)
		log    string
	}{
		"host data of another manifest": {func(r *rig) { r.guest.change = func(r *evidence.SNPReport) { r.HostData[0] ^= 1 } }, "claim=init_data"},
		"host data of no manifest":      {func(r *rig) { r.guest.change = func(r *evidence.SNPReport) { r.HostData = [32]byte{} } }, "claim=init_data"},
		"a guest that can be debugged":  {func(r *rig) { r.guest.change = func(r *evidence.SNPReport) { r.Policy |= 1 << 19 } }, "claim=policy.debug"},
		"a guest at VMPL 1":             {func(r *rig) { r.guest.change = func(r *evidence.SNPReport) { r.VMPL = 1 } }, "claim=vmpl"},
		"a test chain under AMD's roots": {func(r *rig) {
			r.server.Roots = nil
		}, "ARK-Milan"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			c.change(r)
			_, err := r.exchange(t, r.listen(t), algoKey)
			d := denied(t, err, "AttestationError", "")
			if d.Detail != "RCAR handshake Attest failed" {
				t.Errorf("the guest is told %q", d.Detail)
			}
			if !strings.Contains(r.log.String(), c.log) {
				t.Errorf("log has no %q:\n%s", c.log, r.log)
			}
		})
	}
}

// rewrite changes the requests of the client on their way.
func (r *rig) rewrite(t testing.TB, change func(path string, body []byte) []byte) string {
	t.Helper()
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		req.Body = io.NopCloser(bytes.NewReader(change(req.URL.Path, b)))
		r.server.ServeHTTP(w, req)
	}))
	t.Cleanup(ts.Close)
	return ts.URL
}

func TestChangedRequestsAreRefused(t *testing.T) {
	replace := func(path, old, new string) func(string, []byte) []byte {
		return func(p string, b []byte) []byte {
			if !strings.HasSuffix(p, path) {
				return b
			}
			if !bytes.Contains(b, []byte(old)) {
				panic("no " + old + " in " + string(b))
			}
			return bytes.Replace(b, []byte(old), []byte(new), 1)
		}
	}
	for name, c := range map[string]struct {
		change         func(string, []byte) []byte
		detail, logged string
	}{
		"another version":      {replace("auth", "0.4.0", "0.2.0"), "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.2.0", "Mismatch"},
		"another TEE":          {replace("auth", `"snp"`, `"sgx"`), "RCAR handshake Auth failed", "sgx"},
		"no JSON":              {replace("auth", "{", ""), "deserialize Request", "deserialize"},
		"another nonce":        {replace("attest", `"nonce":"`, `"nonce":"A`), "RCAR handshake Attest failed", "nonce"},
		"another initdata":     {replace("attest", `ampoule.json`, `ampoule.jsom`), "RCAR handshake Attest failed", "claim=init_data"},
		"an initdata format":   {replace("attest", `"format":"toml"`, `"format":"json"`), "RCAR handshake Attest failed", "format"},
		"an unknown algorithm": {replace("attest", `sha256`, `sha-256`), "RCAR handshake Attest failed", "algorithm"},
		"another key":          {replace("attest", `"kty":"EC"`, `"kty":"EC","kid":"x"`), "RCAR handshake Attest failed", "tee-pubkey"},
		"further evidence":     {replace("attest", `"additional_evidence":""`, `"additional_evidence":"{}"`), "RCAR handshake Attest failed", "additional_evidence"},
		"a changed report":     {replace("attest", `"guest_svn":0`, `"guest_svn":1`), "RCAR handshake Attest failed", "signature"},
		"evidence over 8 MiB": {func(p string, b []byte) []byte {
			if strings.HasSuffix(p, "attest") {
				b = append(b, bytes.Repeat([]byte(" "), 8<<20)...)
			}
			return b
		}, "RCAR handshake Attest failed", "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			_, err := r.exchange(t, r.rewrite(t, c.change), algoKey)
			if d := denied(t, err, "AttestationError", ""); !strings.Contains(d.Detail, c.detail) {
				t.Errorf("detail %q, want %q in it", d.Detail, c.detail)
			}
			if !strings.Contains(r.log.String(), c.logged) {
				t.Errorf("log has no %q:\n%s", c.logged, r.log)
			}
		})
	}
}

func TestWithoutInitDataThePolicyStillSeesHostData(t *testing.T) {
	r := newRig(t, nil)
	url := r.listen(t)
	want := []kbs.Want{{Broker: url, Path: algoKey}}
	brokers := []kbs.Broker{{URL: url, AllowHTTP: true}}
	if _, err := kbs.Exchange(t.Context(), brokers, r.guest, nil, want); err != nil {
		t.Fatal(err)
	}
	r.guest.change = func(r *evidence.SNPReport) { r.HostData[0] ^= 1 }
	_, err := kbs.Exchange(t.Context(), brokers, r.guest, nil, want)
	denied(t, err, "PolicyDeny", algoKey)
}

// A broker may forget sessions: the token is tried in place of the cookie, then one new handshake, and no more.
func TestALostSession(t *testing.T) {
	for name, c := range map[string]struct {
		lose  func(n int32, req *http.Request) bool // at the n-th request of a resource
		asked int32
		err   string
	}{
		"the cookie is forgotten, the token is not": {func(n int32, req *http.Request) bool { return req.Header.Get("Cookie") != "" }, 1, ""},
		"all is forgotten once":                     {func(n int32, req *http.Request) bool { return n == 2 || n == 3 }, 2, ""},
		"all is forgotten always":                   {func(n int32, req *http.Request) bool { return true }, 2, "TokenNotFound"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			var n atomic.Int32
			ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if strings.Contains(req.URL.Path, "/resource/") && c.lose(n.Add(1), req) {
					w.WriteHeader(http.StatusUnauthorized)
					io.WriteString(w, `{"type":"https://github.com/confidential-containers/kbs/errors/TokenNotFound","detail":"Attestation Token not found"}`)
					return
				}
				r.server.ServeHTTP(w, req)
			}))
			defer ts.Close()
			g, err := r.exchange(t, ts.URL, algoKey, datasetKey)
			if c.err == "" && (err != nil || g.Key(ts.URL, datasetKey) == nil) {
				t.Errorf("error %v", err)
			}
			if c.err != "" {
				denied(t, err, c.err, algoKey)
			}
			if r.guest.asked.Load() != c.asked {
				t.Errorf("%d attestations, want %d", r.guest.asked.Load(), c.asked)
			}
		})
	}
}

func TestSessionsEnd(t *testing.T) {
	var skew atomic.Int64
	r := newRig(t, func(c *kbsserver.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	})
	var n atomic.Int32
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/resource/") && n.Add(1) == 2 {
			skew.Store(int64(5*time.Minute + time.Second))
		}
		r.server.ServeHTTP(w, req)
	}))
	defer ts.Close()
	if _, err := r.exchange(t, ts.URL, algoKey, datasetKey); err != nil {
		t.Fatal(err)
	}
	if r.guest.asked.Load() != 2 {
		t.Errorf("%d attestations, want a second one after five minutes", r.guest.asked.Load())
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	r := newRig(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(ctx, l) }()
	if _, err := r.exchange(t, "http://"+l.Addr().String()+"/", algoKey); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
