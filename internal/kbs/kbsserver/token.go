package kbsserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// appraised gives the vector, and the policy that it is of. Without a policy what was loaded is not appraised here but at
// each resource: a policy that asks for "affirming" denies then.
func (s *Server) appraised(ctx context.Context, n *session, claims map[string]any) (vector map[string]int, policy string, err error) {
	err = fs.ErrNotExist
	if s.Appraise != nil {
		vector, err = s.Appraise(ctx, claims)
	}
	switch {
	case err == nil:
		return vector, "default_cpu", nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, "", err
	case n.claims.Simulated:
		return map[string]int{"hardware": hardwareUnrecognized, "executables": executablesUnverified}, "none", nil
	}
	return map[string]int{"hardware": hardwareGenuine, "executables": executablesUnverified}, "none", nil
}

// status is that of the worst claim of a vector; one of nothing says nothing.
func status(vector map[string]int) string {
	names := []string{"none", "affirming", "warning", "contraindicated"}
	worst := 0
	for _, v := range vector {
		if v < 0 {
			v = -1 - v
		}
		tier := 3
		switch {
		case v < 2:
			tier = 0
		case v < 32:
			tier = 1
		case v < 96:
			tier = 2
		}
		worst = max(worst, tier)
	}
	return names[worst]
}

// tokenClaims are those of an EAT attestation result (§1.6).
func tokenClaims(n *session, annotated map[string]any, vector map[string]int, policy string, issued time.Time) map[string]any {
	return map[string]any{
		"eat_profile":     "tag:github.com,2026:ampoule-vm/ampoule",
		"iss":             "ampoule-kbs",
		"iat":             issued.Unix(),
		"exp":             n.expires.Unix(),
		"jti":             n.id,
		"ear.verifier-id": map[string]any{"developer": "ampoule-vm", "build": "ampoule-kbs"},
		"submods": map[string]any{"cpu0": map[string]any{
			"ear.status":                      status(vector),
			"ear.trustworthiness-vector":      vector,
			"ear.appraisal-policy-id":         policy,
			"ear.veraison.annotated-evidence": annotated,
		}},
	}
}

// sign gives a session its claims and its token: a JWT, ES256, good as long as the session is.
func (s *Server) sign(ctx context.Context, n *session, a *attestation, now time.Time) error {
	all, err := plainJSON(annotated(n, a))
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	vector, policy, err := s.appraised(ctx, n, all)
	if err != nil {
		return err
	}
	if n.tokenClaims, err = plainJSON(tokenClaims(n, all, vector, policy, now)); err != nil {
		return fmt.Errorf("token: %w", err)
	}
	payload, err := json.Marshal(tokenClaims(n, slim(all), vector, policy, now))
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

// plainJSON makes claims what a reader of their JSON would see, as policies do: numbers as float64, and so on.
func plainJSON(claims map[string]any) (out map[string]any, err error) {
	b, err := json.Marshal(claims)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return out, err
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
