package kbsserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Levels of a trustworthiness vector (AR4SI, draft-ietf-rats-ar4si), as far as a broker without reference values has them.
const (
	hardwareGenuine       = 2
	hardwareUnrecognized  = 97
	executablesUnverified = 33
)

// tokenClaims are those of an EAT attestation result (§1.6). What was loaded is not appraised here but at each resource,
// so that the status is never better than a warning: a policy that asks for "affirming" denies.
func tokenClaims(n *session, annotated map[string]any, issued time.Time) map[string]any {
	status, hardware := "warning", hardwareGenuine
	if n.claims.Simulated {
		status, hardware = "contraindicated", hardwareUnrecognized
	}
	return map[string]any{
		"eat_profile":     "tag:github.com,2026:ampoule-vm/ampoule",
		"iss":             "ampoule-kbs",
		"iat":             issued.Unix(),
		"exp":             n.expires.Unix(),
		"jti":             n.id,
		"ear.verifier-id": map[string]any{"developer": "ampoule-vm", "build": "ampoule-kbs"},
		"submods": map[string]any{"cpu0": map[string]any{
			"ear.status":                      status,
			"ear.trustworthiness-vector":      map[string]any{"hardware": hardware, "executables": executablesUnverified},
			"ear.appraisal-policy-id":         "none",
			"ear.veraison.annotated-evidence": annotated,
		}},
	}
}

// sign gives a session its claims and its token: a JWT, ES256, good as long as the session is.
func (s *Server) sign(n *session, a *attestation, now time.Time) error {
	all := annotated(n, a)
	// Policies see what a reader of the JSON would: numbers as float64, and so on.
	full, err := json.Marshal(tokenClaims(n, all, now))
	if err == nil {
		err = json.Unmarshal(full, &n.tokenClaims)
	}
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	payload, err := json.Marshal(tokenClaims(n, slim(all), now))
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	opts := (&jose.SignerOptions{EmbedJWK: true}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.token}, opts)
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	n.token, err = jws.CompactSerialize()
	return err
}

// authorized finds the attested session of a request: by cookie first, then by token (§1.6).
func (s *Server) authorized(r *http.Request) (*session, *refusal) {
	now := s.Now()
	if n := s.sessions.get(sessionOf(r), now); n != nil && n.token != "" {
		return n, nil
	}
	missing := func(why string) *refusal {
		return refuse("TokenNotFound", "Attestation Token not found", errors.New(why))
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, missing("no attested session in the cookie, and no token")
	}
	invalid := func(err error) *refusal { return refuse("TokenVerifierError", "Token Verifier error", err) }
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, invalid(err)
	}
	payload, err := jws.Verify(&s.token.PublicKey)
	if err != nil {
		return nil, invalid(err)
	}
	var c struct {
		Session string `json:"jti"`
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, invalid(err)
	}
	n := s.sessions.get(c.Session, now)
	if n == nil || n.token != token {
		return nil, missing("the session of the token is over")
	}
	return n, nil
}
