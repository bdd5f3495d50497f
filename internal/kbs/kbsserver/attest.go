package kbsserver

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/BurntSushi/toml"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// protocol is compared for equality with the guest's (§1.2).
const protocol = "0.4.0"

// auth opens a session: POST auth (§1.3).
func (s *Server) auth(w http.ResponseWriter, r *http.Request) *refusal {
	body, err := readBody(w, r, maxAuth)
	var kind evidence.Kind
	if err == nil {
		kind, err = s.checkRequest(body)
	}
	if err != nil {
		return refuse("AttestationError", "RCAR handshake Auth failed: "+err.Error(), err)
	}
	var nonce [32]byte
	rand.Read(nonce[:])
	now := s.Now()
	n := &session{id: newSessionID(), kind: kind, nonce: base64.StdEncoding.EncodeToString(nonce[:]), expires: now.Add(sessionLifetime)}
	s.sessions.add(n, now)
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: n.id, Expires: n.expires})
	writeJSON(w, map[string]string{"nonce": n.nonce, "extra-params": ""})
	return nil
}

func (s *Server) checkRequest(body []byte) (evidence.Kind, error) {
	m, err := evidence.ObjectOf(body, []string{"version", "tee", "extra-params"}, nil)
	if err != nil {
		return "", fmt.Errorf("deserialize Request: %w", err)
	}
	var version, tee string
	if err := errors.Join(json.Unmarshal(m["version"], &version), json.Unmarshal(m["tee"], &tee)); err != nil {
		return "", fmt.Errorf("deserialize Request: %w", err)
	}
	if version != protocol {
		return "", fmt.Errorf("KBS Client Protocol Version Mismatch: expect =%s while the request is %.40s", protocol, version)
	}
	switch kind := evidence.Kind(tee); {
	case kind == evidence.SNP, kind == evidence.TDX, kind == evidence.Sample && s.AllowSample:
		return kind, nil
	}
	return "", fmt.Errorf("tee %.40q: this broker knows snp and tdx", tee)
}

// attest judges the evidence of a session: POST attest (§1.4). A session that has attested gets its token again.
func (s *Server) attest(w http.ResponseWriter, r *http.Request) *refusal {
	refused := func(err error) *refusal { return refuse("AttestationError", "RCAR handshake Attest failed", err) }
	body, err := readBody(w, r, maxAttest)
	if err != nil {
		return refused(err)
	}
	now, id := s.Now(), sessionOf(r)
	if old := s.sessions.get(id, now); old != nil && old.token != "" {
		writeJSON(w, map[string]string{"token": old.token})
		return nil
	}
	n := s.sessions.take(id, now)
	if n == nil {
		return refused(errors.New("no session: cookie missing, unknown or expired"))
	}
	a, err := parseAttestation(body, n.kind, n.nonce)
	if err != nil {
		return refused(err)
	}
	claims, err := verify.Evidence(a.evidence, verify.Options{
		Roots: s.Roots, Intel: s.Intel, AllowSample: s.AllowSample, ReportData: &a.reportData, InitData: a.initData, Now: now,
	})
	if err != nil {
		return refused(err)
	}
	n.key, n.claims = a.key, claims
	if n.token, err = s.sign(n, a.jwk, now); err != nil {
		return refused(err)
	}
	s.sessions.add(n, now)
	s.Log.Info("attested", "remote", r.RemoteAddr, "measurement", claims.Measurement.String(), "init_data", hex.EncodeToString(claims.InitData),
		"initdata_sent", a.initData != nil, "tee", n.kind, "product", claims.Product, "simulated", claims.Simulated)
	writeJSON(w, map[string]string{"token": n.token})
	return nil
}

// attestation is a parsed body of attest, and what the report must hold for it.
type attestation struct {
	key        *ecdsa.PublicKey
	jwk        evidence.PublicKey
	evidence   evidence.Evidence
	reportData [64]byte
	initData   []byte // digest of the document; nil: none was sent, so the register is not compared (§3)
}

func parseAttestation(body []byte, kind evidence.Kind, nonce string) (*attestation, error) {
	top, err := evidence.ObjectOf(body, []string{"runtime-data", "tee-evidence"}, []string{"init-data"})
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	runtime, err := evidence.ObjectOf(top["runtime-data"], []string{"nonce", "tee-pubkey"}, nil)
	if err != nil {
		return nil, fmt.Errorf("runtime-data: %w", err)
	}
	var got string
	if err := json.Unmarshal(runtime["nonce"], &got); err != nil || got != nonce {
		return nil, fmt.Errorf("runtime-data: nonce is %.80q, this session's is %q", got, nonce)
	}
	a := new(attestation)
	members, err := evidence.Object(runtime["tee-pubkey"])
	if err != nil {
		return nil, fmt.Errorf("tee-pubkey: %w", err)
	}
	a.jwk = evidence.PublicKey{}
	for name, raw := range members {
		var v string
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("tee-pubkey %.40q: %w", name, err)
		}
		a.jwk[name] = v
	}
	if a.key, err = a.jwk.P256(); err != nil {
		return nil, err
	}
	ev, err := evidence.ObjectOf(top["tee-evidence"], []string{"primary_evidence", "additional_evidence"}, nil)
	if err != nil {
		return nil, fmt.Errorf("tee-evidence: %w", err)
	}
	if string(ev["additional_evidence"]) != `""` {
		return nil, errors.New("additional_evidence: this broker takes none")
	}
	if a.evidence, err = evidence.FromJSON(kind, ev["primary_evidence"]); err != nil {
		return nil, err
	}
	a.reportData = evidence.Binding{Nonce: nonce, Key: a.jwk}.ReportData()
	if raw := top["init-data"]; raw != nil {
		if a.initData, err = parseInitData(raw); err != nil {
			return nil, fmt.Errorf("init-data: %w", err)
		}
	}
	return a, nil
}

// parseInitData gives the digest of an initdata document by its own algorithm (§3).
func parseInitData(raw json.RawMessage) ([]byte, error) {
	m, err := evidence.ObjectOf(raw, []string{"format", "body"}, nil)
	if err != nil {
		return nil, err
	}
	var format, body string
	if err := errors.Join(json.Unmarshal(m["format"], &format), json.Unmarshal(m["body"], &body)); err != nil {
		return nil, err
	}
	if format != "toml" {
		return nil, fmt.Errorf("format %.20q, want toml", format)
	}
	var doc struct {
		Version   string            `toml:"version"`
		Algorithm string            `toml:"algorithm"`
		Data      map[string]string `toml:"data"`
	}
	meta, err := toml.Decode(body, &doc)
	if err != nil {
		return nil, err
	}
	if extra := meta.Undecoded(); len(extra) > 0 {
		return nil, fmt.Errorf("member %.40q: unknown", extra[0].String())
	}
	if doc.Version != "0.1.0" {
		return nil, fmt.Errorf("version %.20q, want 0.1.0", doc.Version)
	}
	switch doc.Algorithm {
	case "sha256":
		sum := sha256.Sum256([]byte(body))
		return sum[:], nil
	case "sha384":
		sum := sha512.Sum384([]byte(body))
		return sum[:], nil
	case "sha512":
		sum := sha512.Sum512([]byte(body))
		return sum[:], nil
	}
	return nil, fmt.Errorf("algorithm %.20q, want sha256, sha384 or sha512", doc.Algorithm)
}
