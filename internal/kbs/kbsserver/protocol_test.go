package kbsserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
)

func TestGenerations(t *testing.T) {
	all := []string{"P-256", "P-521", evidence.RSAOAEP, evidence.RSA15}
	for version, keys := range map[string][]string{
		"0.4.0": {"P-256", "P-521", evidence.RSAOAEP},
		"0.2.0": {"P-256", evidence.RSAOAEP},
		"0.1.1": {evidence.RSA15},
		"0.1.0": {evidence.RSA15},
	} {
		t.Run(version, func(t *testing.T) {
			r := newRig(t, func(c *kbsserver.Config) { c.Protocol = version })
			url := r.listen(t)
			for _, key := range all {
				g := r.byHand(t, url, version, key)
				if ref := g.auth(t); ref != nil {
					t.Fatal(ref)
				}
				ref := g.attest(t, g.body(t))
				if !strings.Contains(strings.Join(keys, " "), key) {
					if ref == nil || !strings.Contains(r.log.String(), "protocol "+version+" has only") {
						t.Errorf("%s is taken, or refused for something else: %+v\n%s", key, ref, r.log)
					}
					continue
				}
				if ref != nil {
					t.Fatalf("%s: %+v\n%s", key, ref, r.log)
				}
				if got, ref := g.get(t, algoKey, ""); ref != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 32)) {
					t.Errorf("%s: %x, %+v", key, got, ref)
				}
			}
			for _, other := range []string{"0.1.0", "0.1.1", "0.2.0", "0.3.0", "0.4.0", "0.4"} {
				g := r.byHand(t, url, other, keys[0])
				ref := g.auth(t)
				if (ref == nil) != (other == version) {
					t.Errorf("a request of %s: %+v", other, ref)
				}
				want := "KBS Client Protocol Version Mismatch: expect =" + version + " while the request is " + other
				if ref != nil && !strings.Contains(ref.Detail, want) {
					t.Errorf("%s is told %q", other, ref.Detail)
				}
			}
		})
	}
	if _, err := kbsserver.New(kbsserver.Config{Dir: newRig(t, nil).dir, Protocol: "0.3.0", Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "0.3.0") {
		t.Errorf("a protocol that no server spoke: %v", err)
	}
}

// The body and the hash of one generation are not those of another, and nothing of one is taken for the other.
func TestGenerationsDoNotMix(t *testing.T) {
	for _, c := range []struct{ server, body, claim string }{
		{"0.4.0", "0.2.0", "tee-pubkey"}, {"0.2.0", "0.4.0", "runtime-data"}, {"0.1.0", "0.1.1", "tee-evidence"}, {"0.1.1", "0.1.0", "JSON object"},
	} {
		t.Run(c.body+" to "+c.server, func(t *testing.T) {
			r := newRig(t, func(conf *kbsserver.Config) { conf.Protocol = c.server })
			key := "P-256"
			if strings.HasPrefix(c.server, "0.1.") {
				key = evidence.RSA15
			}
			g := r.byHand(t, r.listen(t), c.server, key)
			if ref := g.auth(t); ref != nil {
				t.Fatal(ref)
			}
			g.version = c.body
			if ref := g.attest(t, g.body(t)); ref == nil || !strings.Contains(r.log.String(), c.claim) {
				t.Errorf("%+v, and the log has no %q:\n%s", ref, c.claim, r.log)
			}
		})
	}
	t.Run("the hash of 0.4.0 in evidence of 0.2.0", func(t *testing.T) {
		r := newRig(t, func(c *kbsserver.Config) { c.Protocol = "0.2.0" })
		g := r.byHand(t, r.listen(t), "0.2.0", "P-256")
		if ref := g.auth(t); ref != nil {
			t.Fatal(ref)
		}
		good := evidence.Binding{Nonce: g.nonce, Key: g.public}
		r.guest.change = func(report *evidence.SNPReport) { report.ReportData = good.ReportData() }
		if ref := g.attest(t, g.body(t)); ref == nil || !strings.Contains(r.log.String(), "claim=report_data") {
			t.Errorf("%+v\n%s", ref, r.log)
		}
	})
}

// Up to Trustee v0.9 a client of today does not get as far as the version.
func TestParametersOfTheOldest(t *testing.T) {
	const today = `{"version":"0.4.0","tee":"snp","extra-params":{"supported-hash-algorithms":["sha384"]}}`
	for version, want := range map[string]int{"0.1.0": 400, "0.1.1": 401, "0.2.0": 401, "0.4.0": 200} {
		r := newRig(t, func(c *kbsserver.Config) { c.Protocol = version })
		w := httptest.NewRecorder()
		r.server.ServeHTTP(w, httptest.NewRequest("POST", "/kbs/v0/auth", strings.NewReader(today)))
		if w.Code != want || want == 400 && !strings.HasPrefix(w.Body.String(), "Json deserialize error") {
			t.Errorf("%s: %d %s", version, w.Code, w.Body)
		}
	}
}

func TestNamesOfAzure(t *testing.T) {
	for _, c := range []struct {
		version string
		old     bool
		takes   string
		not     string
	}{
		{"0.4.0", false, "az-snp-vtpm", "azsnpvtpm"}, {"0.4.0", false, "az-tdx-vtpm", "aztdxvtpm"},
		{"0.4.0", true, "azsnpvtpm", "az-snp-vtpm"}, {"0.4.0", true, "aztdxvtpm", "az-tdx-vtpm"}, {"0.2.0", false, "azsnpvtpm", "az-snp-vtpm"},
	} {
		r := newRig(t, func(conf *kbsserver.Config) { conf.Protocol, conf.OldAzureNames = c.version, c.old })
		g := r.byHand(t, r.listen(t), c.version, "P-256")
		g.tee = c.takes
		if ref := g.auth(t); ref != nil {
			t.Errorf("%s, %s: %+v", c.version, c.takes, ref)
		}
		g.tee = c.not
		if ref := g.auth(t); ref == nil || !strings.Contains(ref.Detail, "deserialize Request: unknown variant `"+c.not+"`, expected one of") || !strings.Contains(ref.Detail, "`"+c.takes+"`") {
			t.Errorf("%s, %s: %+v", c.version, c.not, ref)
		}
	}
}

func TestSampleOnlyWhereAllowed(t *testing.T) {
	r := newRig(t, nil)
	g := r.byHand(t, r.listen(t), "0.4.0", "P-256")
	g.tee = "sample"
	if ref := g.auth(t); ref == nil || !strings.Contains(ref.Detail, "sample where it is allowed") {
		t.Errorf("sample is taken: %+v", ref)
	}

	r = newRig(t, func(c *kbsserver.Config) { c.AllowSample = true })
	g = r.byHand(t, r.listen(t), "0.4.0", "P-256")
	g.tee, g.initdata = "sample", initdata
	if ref := g.auth(t); ref != nil {
		t.Fatal(ref)
	}
	if ref := g.attest(t, g.body(t)); ref != nil {
		t.Fatalf("%+v\n%s", ref, r.log)
	}
	for rule, allowed := range map[string]bool{
		`"measurements":["` + measurement.String() + `"],"init_data":["` + strings.Repeat("00", 32) + `"]`: false,
		`"measurements":["` + strings.Repeat("00", 48) + `"],"init_data":[],"allow_simulated":true`:        false,
		`"measurements":[],"init_data":[],"tee":["sample"]`:                                                false,
		`"measurements":[],"init_data":[],"tee":["sample"],"allow_simulated":true`:                         true,
	} {
		r.policyText(t, `{"default/key/*":{`+rule+`}}`)
		if _, ref := g.get(t, algoKey, ""); (ref == nil) != allowed {
			t.Errorf("%s: %+v", rule, ref)
		}
	}
}

// A nonce is good for one handshake, and evidence for the nonce that it was made for.
func TestReplay(t *testing.T) {
	for _, version := range []string{"0.4.0", "0.2.0"} {
		t.Run(version, func(t *testing.T) {
			r := newRig(t, func(c *kbsserver.Config) { c.Protocol = version })
			url := r.listen(t)
			g := r.byHand(t, url, version, "P-256")
			if ref := g.auth(t); ref != nil {
				t.Fatal(ref)
			}
			body := g.body(t)
			if ref := g.attest(t, body); ref != nil {
				t.Fatal(ref)
			}
			first := g.token
			if ref := g.attest(t, []byte("garbage")); ref != nil || g.token != first {
				t.Errorf("an attested session has another token: %+v", ref)
			}
			again := *g
			if ref := again.auth(t); ref != nil {
				t.Fatal(ref)
			}
			if ref := again.attest(t, body); ref == nil {
				t.Error("evidence of another session is taken")
			}
			if ref := again.attest(t, again.body(t)); ref == nil || !strings.Contains(r.log.String(), "no session") {
				t.Errorf("a nonce that was tried once is taken: %+v", ref)
			}
		})
	}
}

func TestExpiredBeforeAttest(t *testing.T) {
	var late atomic.Int64
	r := newRig(t, func(c *kbsserver.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	})
	g := r.byHand(t, r.listen(t), "0.4.0", "P-256")
	if ref := g.auth(t); ref != nil {
		t.Fatal(ref)
	}
	late.Store(int64(5 * time.Minute))
	if ref := g.attest(t, g.body(t)); ref == nil || !strings.Contains(r.log.String(), "expired") {
		t.Errorf("%+v", ref)
	}
}

// The token carries what Trustee's does, where policies look for it, and is good without the cookie.
func TestToken(t *testing.T) {
	r := newRig(t, nil)
	url := r.listen(t)
	g := r.byHand(t, url, "0.4.0", "P-256")
	g.initdata = initdata
	if ref := g.auth(t); ref != nil {
		t.Fatal(ref)
	}
	if ref := g.attest(t, g.body(t)); ref != nil {
		t.Fatal(ref)
	}
	parts := strings.Split(g.token, ".")
	var head struct {
		Alg string
		JWK map[string]string
	}
	var claims struct {
		Submods map[string]struct {
			Status    string `json:"ear.status"`
			Annotated struct {
				SNP map[string]any `json:"snp"`
				Key struct {
					Key   evidence.PublicKey `json:"tee-pubkey"`
					Nonce string             `json:"nonce"`
				} `json:"runtime_data_claims"`
				InitData map[string]string `json:"init_data_claims"`
			} `json:"ear.veraison.annotated-evidence"`
		}
	}
	for i, dst := range []any{&head, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(b, dst)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cpu := claims.Submods["cpu0"]
	if head.Alg != "ES256" || head.JWK["crv"] != "P-256" || head.JWK["d"] != "" {
		t.Errorf("header %+v", head)
	}
	if cpu.Status != "contraindicated" || cpu.Annotated.SNP["measurement"] != measurement.String() || cpu.Annotated.SNP["policy_debug_allowed"] != false ||
		cpu.Annotated.Key.Key["x"] != g.public["x"] || cpu.Annotated.Key.Nonce != g.nonce || cpu.Annotated.InitData["ampoule.json"] != "{}" {
		t.Errorf("claims %+v", cpu)
	}
	g.cookie = nil
	if got, ref := g.get(t, algoKey, g.token); ref != nil || len(got) != 32 {
		t.Errorf("by the token: %+v", ref)
	}
	if _, ref := g.get(t, algoKey, ""); ref == nil || !strings.HasSuffix(ref.Type, "/TokenNotFound") {
		t.Errorf("by nothing: %+v", ref)
	}
}

func TestTDX(t *testing.T) {
	rule := `"measurements":["` + measurement.String() + `"],"init_data":["` + fmt.Sprintf("%x", sha256.Sum256(initdata)) + `"]`
	for version, key := range map[string]string{"0.4.0": "P-521", "0.2.0": evidence.RSAOAEP, "0.1.1": evidence.RSA15, "0.1.0": evidence.RSA15} {
		t.Run(version, func(t *testing.T) {
			var claims map[string]any
			r := newTDX(t, func(c *kbsserver.Config) {
				c.Protocol = version
				c.ResourcePolicy = func(_ context.Context, _ string, seen map[string]any) (bool, string, error) {
					claims = seen
					return true, "", nil
				}
			})
			g := r.byHand(t, r.listen(t), version, key)
			g.tee = "tdx"
			if version == "0.4.0" {
				g.initdata = initdata
			}
			if ref := g.auth(t); ref != nil {
				t.Fatal(ref)
			}
			if ref := g.attest(t, g.body(t)); ref != nil {
				t.Fatalf("%+v\n%s", ref, r.log)
			}
			zero, other := strings.Repeat("00", 48), strings.Repeat("ab", 48)
			for more, allowed := range map[string]bool{
				"": true, `,"tee":["tdx"]`: true, `,"tee":["snp"]`: false, `,"min_tcb":{"snp":0}`: false, `,"allow_simulated":false`: false,
				`,"rtmr":{"3":["` + zero + `"]}`: true, `,"rtmr":{"3":["` + other + `"]}`: false, `,"mr_seam":["` + other + `"]`: false, `,"pcr":{"8":["` + zero[:64] + `"]}`: false,
			} {
				r.policyText(t, `{"default/key/*":{`+rule+more+`}}`)
				if _, ref := g.get(t, algoKey, ""); (ref == nil) != allowed {
					t.Errorf("%s: %+v\n%s", more, ref, r.log)
				}
			}
			cpu := claims["submods"].(map[string]any)["cpu0"].(map[string]any)["ear.veraison.annotated-evidence"].(map[string]any)
			body := cpu["tdx"].(map[string]any)["quote"].(map[string]any)["body"].(map[string]any)
			if body["mr_td"] != measurement.String() || body["rtmr_3"] != zero || cpu["init_data"] != fmt.Sprintf("%x", sha256.Sum256(initdata))+zero[:32] {
				t.Errorf("claims %v", cpu)
			}
		})
	}
}
