package kbsserver

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// auth opens a session: POST auth (§1.3).
func (s *Server) auth(w http.ResponseWriter, r *http.Request) *refusal {
	n := new(session)
	body, err := readBody(w, r, maxAuth)
	if err == nil {
		n.kind, err = s.gen.request(body)
	}
	if err == nil && !s.judges(n.kind) {
		err = &verify.ClaimError{Claim: "tee", Want: "snp, tdx or their Azure kinds; sample where it is allowed", Got: string(n.kind)}
		s.auditRefusal(n, err)
	}
	if errors.Is(err, errFramework) {
		return refuse("", err.Error(), err)
	}
	if err != nil {
		return refuse("AttestationError", "RCAR handshake Auth failed: "+err.Error(), err)
	}
	var nonce [32]byte
	rand.Read(nonce[:])
	now := s.Now()
	n.id, n.nonce, n.expires = newSessionID(), base64.StdEncoding.EncodeToString(nonce[:]), now.Add(sessionLifetime)
	s.sessions.add(n, now)
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: n.id, Expires: n.expires})
	writeJSON(w, map[string]string{"nonce": n.nonce, "extra-params": ""})
	return nil
}

func (s *Server) judges(kind evidence.Kind) bool {
	switch kind {
	case evidence.SNP, evidence.TDX, evidence.AzSNPvTPM, evidence.AzTDXvTPM:
		return true
	}
	return kind == evidence.Sample && s.AllowSample
}

// attest judges the evidence of a session: POST attest (§1.4). A session that has attested gets its token again. Whoever
// has no session is refused before a byte of the body is read.
func (s *Server) attest(w http.ResponseWriter, r *http.Request) *refusal {
	refused := func(err error) *refusal { return refuse("AttestationError", "RCAR handshake Attest failed", err) }
	missing := refused(errors.New("no session: cookie missing, unknown or expired"))
	now, id := s.Now(), sessionOf(r)
	switch old := s.sessions.get(id, now); {
	case old == nil:
		return missing
	case old.token != "":
		writeJSON(w, map[string]string{"token": old.token})
		return nil
	}
	body, err := readBody(w, r, maxAttest)
	n := s.sessions.take(id, now)
	if n == nil {
		return missing
	}
	var a *attestation
	if err == nil {
		a, err = s.gen.attestation(body, n.kind, n.nonce)
	}
	if err == nil {
		n.claims, err = s.verify(a)
	}
	if err != nil {
		s.auditRefusal(n, err)
		return refused(err)
	}
	n.key = a.key
	if err := s.sign(r.Context(), n, a, now); err != nil {
		s.auditRefusal(n, err)
		return refused(err)
	}
	s.sessions.add(n, now)
	s.audit(n, Decision{Decision: Accepted})
	s.Log.Info("attested", "remote", r.RemoteAddr, "measurement", n.claims.Measurement.String(), "init_data", hex.EncodeToString(n.claims.InitData),
		"initdata_sent", a.initData != nil, "tee", n.kind, "product", n.claims.Product, "simulated", n.claims.Simulated)
	writeJSON(w, map[string]string{"token": n.token})
	return nil
}

// verify judges the evidence of an attestation, initdata document included if one was sent.
func (s *Server) verify(a *attestation) (verify.Claims, error) {
	o := verify.Options{Roots: s.Roots, Intel: s.Intel, AllowSample: s.AllowSample, ReportData: &a.reportData, Now: s.Now(),
		VCEKs: s.VCEKs, TCBStatus: s.TCBStatus}
	kind := a.evidence.Kind
	if s.Collateral != nil && (kind == evidence.TDX || kind == evidence.AzTDXvTPM) {
		var err error
		if o.Collateral, err = s.Collateral(); err != nil {
			return verify.Claims{}, err
		}
	}
	// Sample evidence has no register. Trustee compares nothing there, and nothing is lost: the document proves as little
	// as the rest of it.
	if a.initData != nil && kind != evidence.Sample {
		o.InitData = a.initData.digest
		if azure := kind == evidence.AzSNPvTPM || kind == evidence.AzTDXvTPM; azure && len(o.InitData) != 32 {
			return verify.Claims{}, &verify.ClaimError{Claim: "init_data",
				Want: "an initdata document of algorithm sha256, the only one that PCR 8 can hold", Got: fmt.Sprintf("a digest of %d bytes", len(o.InitData))}
		}
	}
	return verify.Evidence(a.evidence, o)
}

// attestation is a parsed body of attest, and what the report must hold for it.
type attestation struct {
	nonce      string
	key        evidence.PublicKey
	evidence   evidence.Evidence
	reportData [64]byte
	initData   *initDocument // nil: none was sent, so the register is not compared (§3)
}

// attestation reads the body of attest, whose form differs most between the generations (§1.4).
func (g generation) attestation(body []byte, kind evidence.Kind, nonce string) (*attestation, error) {
	a := &attestation{nonce: nonce}
	var primary json.RawMessage
	var err error
	if g.runtime {
		primary, err = g.composite(body, a)
	} else {
		primary, err = g.plain(body, a)
	}
	if err != nil {
		return nil, err
	}
	if a.evidence, err = evidence.FromJSON(kind, primary); err != nil {
		return nil, err
	}
	return a, nil
}

// composite reads the body of 0.4.0.
func (g generation) composite(body []byte, a *attestation) (primary json.RawMessage, err error) {
	top, err := evidence.ObjectOf(body, []string{"runtime-data", "tee-evidence"}, []string{"init-data"})
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	runtime, err := evidence.ObjectOf(top["runtime-data"], []string{"nonce", "tee-pubkey"}, nil)
	if err != nil {
		return nil, fmt.Errorf("runtime-data: %w", err)
	}
	var got string
	if err := json.Unmarshal(runtime["nonce"], &got); err != nil || got != a.nonce {
		return nil, &verify.ClaimError{Claim: "nonce", Want: a.nonce, Got: fmt.Sprintf("%.80q", got)}
	}
	if a.key, err = g.publicKey(runtime["tee-pubkey"]); err != nil {
		return nil, err
	}
	ev, err := evidence.ObjectOf(top["tee-evidence"], []string{"primary_evidence", "additional_evidence"}, nil)
	if err != nil {
		return nil, fmt.Errorf("tee-evidence: %w", err)
	}
	if string(ev["additional_evidence"]) != `""` {
		return nil, errors.New("additional_evidence: this broker takes none")
	}
	if raw := top["init-data"]; raw != nil {
		if a.initData, err = parseInitData(raw); err != nil {
			return nil, fmt.Errorf("init-data: %w", err)
		}
	}
	a.reportData = evidence.Binding{Nonce: a.nonce, Key: a.key}.ReportData()
	return ev["primary_evidence"], nil
}

// plain reads the body of 0.2.0 and 0.1.x. The nonce is in it only as what the evidence is over.
func (g generation) plain(body []byte, a *attestation) (primary json.RawMessage, err error) {
	top, err := evidence.ObjectOf(body, []string{"tee-pubkey", "tee-evidence"}, nil)
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	if a.key, err = g.publicKey(top["tee-pubkey"]); err != nil {
		return nil, err
	}
	primary = top["tee-evidence"]
	if g.quoted {
		var text string
		if err := json.Unmarshal(primary, &text); err != nil {
			return nil, fmt.Errorf("tee-evidence: %w", err)
		}
		primary = json.RawMessage(text)
	}
	a.reportData = evidence.Binding{Nonce: a.nonce, Key: a.key}.ReportDataV2()
	return primary, nil
}
