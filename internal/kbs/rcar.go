package kbs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// protocol is the version of RCAR that this client speaks. Brokers compare it for equality (§1.2).
const protocol = "0.4.0"

const (
	cookieName = "kbs-session-id"
	maxNonce   = 1 << 10
	maxToken   = 256 << 10
)

// session is one conversation with one broker: a key pair, a cookie, and the token that is bound to the key.
type session struct {
	client   *client
	dev      tee.Device
	initdata []byte

	key    keyPair
	cookie string
	token  string
}

// Bodies of §1.3 and §1.4. Dashes and underscores are as mixed as they are there.
type (
	request struct {
		Version string      `json:"version"`
		TEE     string      `json:"tee"`
		Extra   extraParams `json:"extra-params"`
	}
	extraParams struct {
		Hashes []string `json:"supported-hash-algorithms"`
	}
	attestation struct {
		InitData *initData   `json:"init-data,omitempty"`
		Runtime  runtimeData `json:"runtime-data"`
		Evidence composite   `json:"tee-evidence"`
	}
	initData struct {
		Format string `json:"format"`
		Body   string `json:"body"`
	}
	runtimeData struct {
		Nonce string             `json:"nonce"`
		Key   evidence.PublicKey `json:"tee-pubkey"`
	}
	composite struct {
		Primary    json.RawMessage `json:"primary_evidence"`
		Additional string          `json:"additional_evidence"`
	}
)

// fetch attests and gets every path. When the broker has forgotten the session in between, the token is tried in its
// place, and then one new handshake; a second loss is an error, so that two brokers cannot keep a guest busy.
func (s *session) fetch(ctx context.Context, paths []string, put func(path string, key []byte)) error {
	defer func() { s.key.zero() }()
	if err := s.attest(ctx); err != nil {
		return err
	}
	attested := 1
	for _, path := range paths {
		key, err := s.get(ctx, path)
		for lost(err) && (s.cookie != "" || attested == 1) {
			if s.cookie != "" {
				s.cookie = ""
			} else {
				if err := s.attest(ctx); err != nil {
					return err
				}
				attested++
			}
			key, err = s.get(ctx, path)
		}
		if err != nil {
			return err
		}
		put(path, key)
	}
	return nil
}

// lost says that the broker knows neither session nor token: the only refusals that attesting again can cure (§1.8).
func lost(err error) bool {
	d, ok := errors.AsType[*DeniedError](err)
	return ok && d.Path != "" && (d.Variant == "TokenNotFound" || d.Variant == "TokenVerifierError")
}

// attest does the handshake with a new key pair. Success says only that the broker took the evidence, not that it
// likes it: the policy speaks at each resource (§1.6).
func (s *session) attest(ctx context.Context) error {
	s.key.zero()
	s.key, s.cookie, s.token = keyPair{}, "", ""
	kind := s.dev.Kind()
	body, err := json.Marshal(request{protocol, string(kind), extraParams{[]string{"sha384"}}})
	if err != nil {
		return err
	}
	a, err := s.client.do(ctx, http.MethodPost, "auth", nil, body)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return s.refused(a, "")
	}
	nonce, err := parseChallenge(a.body)
	if err != nil {
		return fmt.Errorf("broker %s: challenge: %w", s.client.url, err)
	}
	for _, c := range a.cookies {
		if c.Name == cookieName {
			s.cookie = c.Value
		}
	}
	if s.cookie == "" || len(s.cookie) > maxNonce {
		return fmt.Errorf("broker %s: challenge: no usable %s cookie", s.client.url, cookieName)
	}
	var pub evidence.PublicKey
	if s.key, pub, err = newKeyPair(); err != nil {
		return err
	}
	body, err = s.attestation(ctx, kind, evidence.Binding{Nonce: nonce, Key: pub})
	if err != nil {
		return err
	}
	a, err = s.client.do(ctx, http.MethodPost, "attest", s.authority(), body)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return s.refused(a, "")
	}
	if s.token, err = parseToken(a.body); err != nil {
		return fmt.Errorf("broker %s: attest: %w", s.client.url, err)
	}
	return nil
}

// attestation asks the hardware to sign the binding and writes the body of attest.
func (s *session) attestation(ctx context.Context, kind evidence.Kind, b evidence.Binding) ([]byte, error) {
	data := b.ReportData()
	ev, err := s.dev.Evidence(ctx, data)
	if err != nil {
		return nil, fmt.Errorf("evidence for %s: %w", s.client.url, err)
	}
	if ev.Kind != kind {
		return nil, fmt.Errorf("evidence for %s: the device is %s and gave %s", s.client.url, kind, ev.Kind)
	}
	if kind == evidence.SNP {
		// A stale report would be refused as well, but by a broker that does not say why.
		if r, err := evidence.ParseSNP(ev.Report); err != nil {
			return nil, err
		} else if r.ReportData != data {
			return nil, fmt.Errorf("evidence for %s: the report holds report data %x, asked for %x", s.client.url, r.ReportData, data)
		}
	}
	primary, err := ev.JSON()
	if err != nil {
		return nil, err
	}
	body := attestation{Runtime: runtimeData{b.Nonce, b.Key}, Evidence: composite{primary, b.Additional}}
	if len(s.initdata) > 0 {
		body.InitData = &initData{"toml", string(s.initdata)}
	}
	return json.Marshal(body)
}

// get fetches one resource and opens it.
func (s *session) get(ctx context.Context, path string) ([]byte, error) {
	a, err := s.client.do(ctx, http.MethodGet, "resource/"+path, s.authority(), nil)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, s.refused(a, path)
	}
	key, err := s.key.open(a.body)
	if err != nil {
		return nil, fmt.Errorf("broker %s: resource %s: %w", s.client.url, path, err)
	}
	return key, nil
}

// authority is the cookie, or once that is gone the token.
func (s *session) authority() http.Header {
	if s.cookie != "" {
		return http.Header{"Cookie": {cookieName + "=" + s.cookie}}
	}
	return http.Header{"Authorization": {"Bearer " + s.token}}
}

// refused turns a status other than 200 into an error. RCAR refuses with 401, 403 and 404 and says why in the body;
// anything else is a broker out of order, not a refusal.
func (s *session) refused(a *answer, path string) error {
	switch a.status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return denied(s.client.url, path, a.body)
	}
	return fmt.Errorf("broker %s: status %d", s.client.url, a.status)
}

// parseChallenge reads the nonce. Members that it does not know are the broker's business.
func parseChallenge(body []byte) (nonce string, err error) {
	m, err := evidence.Object(body)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(m["nonce"], &nonce); err != nil || nonce == "" || len(nonce) > maxNonce {
		return "", fmt.Errorf("nonce: want a string of 1 to %d bytes", maxNonce)
	}
	var extra struct {
		Hash string `json:"selected-hash-algorithm"`
	}
	if json.Unmarshal(m["extra-params"], &extra) == nil && extra.Hash != "" && extra.Hash != "sha384" {
		return "", fmt.Errorf("extra-params: hash algorithm %.20q, only sha384 was offered", extra.Hash)
	}
	return nonce, nil
}

// parseToken reads the answer of attest. The token is for the broker; only its form matters here.
func parseToken(body []byte) (token string, err error) {
	m, err := evidence.Object(body)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(m["token"], &token); err != nil || token == "" || len(token) > maxToken {
		return "", fmt.Errorf("token: want a string of 1 to %d bytes", maxToken)
	}
	for _, c := range token {
		if c <= ' ' || c > '~' {
			return "", errors.New("token: holds characters that no HTTP header can carry")
		}
	}
	return token, nil
}
