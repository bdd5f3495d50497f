package kbsserver

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// The recorded handshakes, with sample evidence around them: what a server of each generation holds evidence against.
func TestRecordedHandshakes(t *testing.T) {
	var vectors []struct {
		Name       string             `json:"name"`
		Nonce      string             `json:"nonce"`
		Key        evidence.PublicKey `json:"tee_pubkey"`
		Additional string             `json:"additional_evidence"`
		Primary    string             `json:"primary_report_data_64"`
		Device     string             `json:"device_sha384"`
	}
	if err := json.Unmarshal(shared(t, "rcar.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	primary, err := evidence.Evidence{Kind: evidence.Sample, Report: make([]byte, 64)}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	body := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			a, err := generations["0.4.0"].attestation(body(map[string]any{
				"runtime-data": map[string]any{"nonce": v.Nonce, "tee-pubkey": v.Key},
				"tee-evidence": map[string]any{"primary_evidence": primary, "additional_evidence": v.Additional},
			}), evidence.Sample, v.Nonce)
			if v.Additional != "" {
				if err == nil || !strings.Contains(err.Error(), "additional_evidence") {
					t.Errorf("additional evidence that nobody checks is taken: %v", err)
				}
			} else if err != nil || hex.EncodeToString(a.reportData[:]) != v.Primary {
				t.Errorf("%+v, want report data %s: %v", a, v.Primary, err)
			}
			a, err = generations["0.2.0"].attestation(body(map[string]any{"tee-pubkey": v.Key, "tee-evidence": primary}), evidence.Sample, v.Nonce)
			if v.Key["crv"] == "P-521" {
				if err == nil {
					t.Error("0.2.0 takes P-521")
				}
				return
			}
			if err != nil || hex.EncodeToString(a.reportData[:48]) != v.Device || [16]byte(a.reportData[48:]) != [16]byte{} {
				t.Errorf("%+v, want report data %s: %v", a, v.Device, err)
			}
		})
	}
}

// On Azure the guest extends PCR 8, whose bank is SHA-256: nothing longer can be in it (§2.4).
func TestAzureTakesInitDataOfSHA256Alone(t *testing.T) {
	s := newServer(t)
	for _, kind := range []evidence.Kind{evidence.AzSNPvTPM, evidence.AzTDXvTPM} {
		a := &attestation{evidence: evidence.Evidence{Kind: kind}, initData: &initDocument{digest: make([]byte, sha512.Size384)}}
		_, err := s.verify(a)
		if c, ok := errors.AsType[*verify.ClaimError](err); !ok || c.Claim != "init_data" || !strings.Contains(c.Want, "sha256") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// A flood of auth does not throw out a guest that has attested.
func TestAFloodLeavesAttestedSessions(t *testing.T) {
	s := newServer(t)
	now := s.Now()
	s.sessions.add(&session{id: "attested", token: "x", expires: now.Add(sessionLifetime)}, now)
	for range 2 * maxSessions {
		s.sessions.add(&session{id: newSessionID(), expires: now.Add(2 * sessionLifetime)}, now)
	}
	if s.sessions.get("attested", now) == nil || len(s.sessions.byID) > maxSessions {
		t.Errorf("%d sessions, attested one there: %t", len(s.sessions.byID), s.sessions.get("attested", now) != nil)
	}
}

// An initdata document may be a mebibyte, and an HTTP header not: the token goes without it, policies see it.
func TestALargeInitDataIsNotInTheToken(t *testing.T) {
	s := newServer(t)
	_, jwk := newKey(t, "P-256")
	for size, in := range map[int]bool{100: true, 100 << 10: false} {
		n := &session{id: newSessionID(), expires: s.Now().Add(sessionLifetime), kind: evidence.SNP, key: jwk}
		a := &attestation{key: jwk, initData: &initDocument{data: map[string]string{"ampoule.json": strings.Repeat("x", size), "cdh.toml": "a = 1"}}}
		if err := s.sign(t.Context(), n, a, s.Now()); err != nil {
			t.Fatal(err)
		}
		if len(n.token) > 32<<10 {
			t.Errorf("a token of %d bytes", len(n.token))
		}
		claims := n.tokenClaims["submods"].(map[string]any)["cpu0"].(map[string]any)["ear.veraison.annotated-evidence"].(map[string]any)["init_data_claims"].(map[string]any)
		if len(claims["ampoule.json"].(string)) != size || claims["cdh.toml"].(map[string]any)["a"] != 1.0 {
			t.Errorf("claims %.200v", claims)
		}
		if payload := strings.Split(n.token, ".")[1]; (len(payload) > size) != in && in {
			t.Errorf("the token has no initdata of %d bytes", size)
		}
	}
}
