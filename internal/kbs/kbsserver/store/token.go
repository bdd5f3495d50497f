package store

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Bounds of an administrator's token (§1.9).
const (
	maxToken      = 8 << 10
	tokenLifetime = 24 * time.Hour
	clockSkew     = time.Minute
)

// adminClaims are what a token says. Whatever else is in it counts for nothing.
type adminClaims struct {
	Issuer    string   `json:"iss,omitempty"`
	IssuedAt  *float64 `json:"iat"`
	Expires   *float64 `json:"exp"`
	NotBefore *float64 `json:"nbf,omitempty"`
	Role      string   `json:"role"`
}

// Token signs an administrator's token as this broker and Trustee from v0.16 on take it: EdDSA, with a role. The
// lifetime is more than nothing and at most 24 hours, in whole seconds.
func Token(key ed25519.PrivateKey, role string, now time.Time, lifetime time.Duration) (string, error) {
	if lifetime < time.Second || lifetime > tokenLifetime {
		return "", fmt.Errorf("token: a lifetime of %v, want 1s to %v", lifetime, tokenLifetime)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	iat, exp := float64(now.Unix()), float64(now.Add(lifetime).Unix())
	payload, err := json.Marshal(adminClaims{Issuer: "ampoule", IssuedAt: &iat, Expires: &exp, Role: role})
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	return jws.CompactSerialize()
}

// bearer takes the token out of a request.
func bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return "", fmt.Errorf("%d Authorization headers, want one with a Bearer token", len(values))
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || len(token) > maxToken {
		return "", fmt.Errorf("the Authorization header is not a Bearer token of at most %d bytes", maxToken)
	}
	return strings.TrimSpace(token), nil
}

// verify gives the role of a token that the key has signed and that is good now.
func verifyToken(token string, key ed25519.PublicKey, roles []string, now time.Time) (string, error) {
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	payload, err := jws.Verify(key)
	if err != nil {
		return "", errors.New("token: not signed by the administrator's key")
	}
	var c adminClaims
	if err := json.Unmarshal(payload, &c); err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	at := float64(now.Unix())
	switch {
	case c.IssuedAt == nil || c.Expires == nil:
		return "", errors.New("token: iat and exp must be there")
	case *c.Expires <= at:
		return "", fmt.Errorf("token: expired %.0f s ago; make a new one", at-*c.Expires)
	case *c.IssuedAt > at+clockSkew.Seconds():
		return "", fmt.Errorf("token: issued %.0f s from now; compare the clocks", *c.IssuedAt-at)
	case *c.Expires-*c.IssuedAt > tokenLifetime.Seconds():
		return "", fmt.Errorf("token: good for %.0f s, at most %.0f", *c.Expires-*c.IssuedAt, tokenLifetime.Seconds())
	case c.NotBefore != nil && *c.NotBefore > at+clockSkew.Seconds():
		return "", errors.New("token: not good yet")
	case !slices.Contains(roles, c.Role):
		return "", fmt.Errorf("token: role %.40q, want one of %q", c.Role, roles)
	}
	return c.Role, nil
}

// ParsePublicKey reads an Ed25519 public key in PEM, "PUBLIC KEY", as openssl pkey -pubout writes it.
func ParsePublicKey(b []byte) (ed25519.PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("want PEM with a PUBLIC KEY")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	pub, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%T, want an Ed25519 key", key)
	}
	return pub, nil
}

// ParsePrivateKey reads an Ed25519 private key in PEM, "PRIVATE KEY", as openssl genpkey writes it.
func ParsePrivateKey(b []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("want PEM with a PRIVATE KEY")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%T, want an Ed25519 key", key)
	}
	return private, nil
}
