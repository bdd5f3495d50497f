package kbsserver

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// tokenClaims are what a token says. The broker itself needs only the session; the rest is for whoever reads it.
type tokenClaims struct {
	Issuer      string             `json:"iss"`
	Issued      int64              `json:"iat"`
	Expires     int64              `json:"exp"`
	Session     string             `json:"jti"`
	Key         evidence.PublicKey `json:"tee-pubkey"`
	TEE         evidence.Kind      `json:"tee"`
	Measurement string             `json:"measurement"`
	InitData    string             `json:"init_data"`
	Simulated   bool               `json:"simulated"`
}

// sign makes the token of an attested session: a JWT, ES256, good as long as the session is.
func (s *Server) sign(n *session, jwk evidence.PublicKey, now time.Time) (string, error) {
	opts := (&jose.SignerOptions{EmbedJWK: true}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.token}, opts)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	payload, err := json.Marshal(tokenClaims{
		"ampoule-kbs", now.Unix(), n.expires.Unix(), n.id, jwk,
		n.kind, n.claims.Measurement.String(), hex.EncodeToString(n.claims.InitData), n.claims.Simulated,
	})
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return jws.CompactSerialize()
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
	var c tokenClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, invalid(err)
	}
	n := s.sessions.get(c.Session, now)
	if n == nil || n.token != token {
		return nil, missing("the session of the token is over")
	}
	return n, nil
}
