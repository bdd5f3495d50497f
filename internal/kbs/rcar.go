package kbs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

const (
	cookieName = "kbs-session-id"
	maxNonce   = 1 << 10
	maxCookie  = 1 << 10
	maxToken   = 256 << 10
)

var errClosed = errors.New("key broker client: closed")

// session is one conversation with one broker.
type session struct {
	http     *transport
	dev      tee.Device
	initdata []byte
	keyType  string
	encode   func(ev evidence.Evidence, old bool) (json.RawMessage, error)
	busy     lock // guards what follows
	closed   bool

	// What the broker taught this session about itself. Each changes once and for all handshakes.
	gen      *generation
	fellBack bool
	oldNames bool // Azure's kinds are spelled without dashes
	noParams bool // extra-params is ""
	oldForm  bool // Azure's evidence goes in the form that needs no refreshed HCL report

	key    keyPair
	cookie string
	token  string // bound to the key
	sent   facts
}

// fetch gets every path, after a handshake where there is no token yet. When the broker has forgotten the session, the
// token is tried in place of the cookie, and then one new handshake; a second loss is an error, so that two brokers
// cannot keep a guest busy.
func (s *session) fetch(ctx context.Context, paths []string, put func(path string, key []byte)) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	defer s.busy.release()
	if s.token == "" {
		if err := s.attest(ctx); err != nil {
			return err
		}
	}
	again := true
	for _, path := range paths {
		key, err := s.get(ctx, path)
		for lost(err) && (s.cookie != "" || again) {
			if s.cookie != "" {
				s.cookie = ""
			} else {
				again = false
				if err := s.attest(ctx); err != nil {
					return err
				}
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

// begin takes the session for the caller, who releases it.
func (s *session) begin(ctx context.Context) error {
	if err := s.busy.take(ctx); err != nil {
		return fmt.Errorf("broker %s: %w", s.http.url, err)
	}
	if s.closed {
		s.busy.release()
		return errClosed
	}
	return nil
}

// lost says that the broker knows neither session nor token: the only refusals that attesting again can cure (§1.8).
func lost(err error) bool {
	d, ok := errors.AsType[*DeniedError](err)
	return ok && d.Path != "" && (d.Variant == "TokenNotFound" || d.Variant == "TokenVerifierError")
}

func (s *session) giveToken(ctx context.Context, now time.Time) (token string, keyPEM []byte, err error) {
	if err := s.begin(ctx); err != nil {
		return "", nil, err
	}
	defer s.busy.release()
	if s.token == "" || expired(s.token, now) {
		if err := s.attest(ctx); err != nil {
			return "", nil, err
		}
	}
	if keyPEM, err = s.key.pem(); err != nil {
		return "", nil, err
	}
	return s.token, keyPEM, nil
}

// expired believes a token about its own end. Nothing is trusted by that: a broker judges its tokens itself.
func expired(token string, now time.Time) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	var claims struct {
		Exp float64 `json:"exp"`
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	return err == nil && json.Unmarshal(b, &claims) == nil && claims.Exp > 0 && float64(now.Unix()) >= claims.Exp
}

func (s *session) close() {
	s.busy <- struct{}{}
	defer s.busy.release()
	s.closed = true
	s.forget()
	s.http.close()
}

func (s *session) forget() {
	s.key.zero()
	s.key, s.cookie, s.token, s.sent = keyPair{}, "", "", facts{}
}

// attest does the handshake with a new key pair. Success says only that the broker took the evidence, not that it
// likes it: the policy speaks at each resource (§1.6).
//
// Azure's evidence comes in two forms, and a broker that knows only the older one says no more than that it refuses
// (§2.3): a refusal of the newer is answered with one more handshake.
func (s *session) attest(ctx context.Context) error {
	err := s.handshake(ctx)
	if d, ok := errors.AsType[*DeniedError](err); ok && d.at == atAttest && d.refusesEvidence() && isAzure(s.dev.Kind()) && !s.gen.plain && !s.oldForm {
		s.oldForm = true
		if err = s.handshake(ctx); err != nil {
			s.oldForm = false
		}
	}
	return err
}

func (s *session) handshake(ctx context.Context) error {
	s.forget()
	kind := s.dev.Kind()
	s.sent.kind = kind
	nonce, err := s.auth(ctx, kind)
	s.sent.gen = s.gen
	if err != nil {
		return err
	}
	var pub evidence.PublicKey
	if s.key, pub, err = newKeyPair(s.keyType, s.gen); err != nil {
		return fmt.Errorf("broker %s: %w", s.http.url, err)
	}
	body, err := s.attestation(ctx, kind, evidence.Binding{Nonce: nonce, Key: pub})
	if err != nil {
		return err
	}
	a, err := s.http.do(ctx, http.MethodPost, atAttest, s.authority(), body)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		return s.refused(a, atAttest, "")
	}
	if err := s.follow(a); err != nil {
		return failed(s.http.url, atAttest, err)
	}
	if s.token, err = parseToken(a.body); err != nil {
		return failed(s.http.url, atAttest, malformed{err})
	}
	return nil
}

// auth asks for a challenge, again where the broker says that it would understand another request.
func (s *session) auth(ctx context.Context, kind evidence.Kind) (nonce string, err error) {
	for {
		r := request{s.gen.version, string(kind), ""}
		if !s.gen.plain && !s.noParams {
			r.Extra = extraParams{[]string{"sha384"}}
		}
		if s.oldNames || s.gen.plain && isAzure(kind) {
			r.TEE = oldNames[kind]
		}
		body, err := json.Marshal(r)
		if err != nil {
			return "", err
		}
		a, err := s.http.do(ctx, http.MethodPost, atAuth, nil, body)
		if err != nil {
			return "", err
		}
		if a.status != http.StatusOK {
			s.sent.gen = s.gen
			if s.adapt(a, kind) {
				continue
			}
			return "", s.refused(a, atAuth, "")
		}
		if nonce, err = parseChallenge(a.body); err != nil {
			return "", failed(s.http.url, atAuth, malformed{fmt.Errorf("challenge: %w", err)})
		}
		if err := s.follow(a); err != nil {
			return "", failed(s.http.url, atAuth, err)
		}
		if s.cookie == "" {
			return "", failed(s.http.url, atAuth, malformed{fmt.Errorf("challenge: no %s cookie", cookieName)})
		}
		return nonce, nil
	}
}

// adapt changes what this session says in auth if the refusal is a sign that another request is wanted. Every change is
// made at most once in the life of a session, so that a broker cannot lead it in circles.
func (s *session) adapt(a *answer, kind evidence.Kind) bool {
	detail := denied(s.http.url, "", a.body).Detail
	if a.status == http.StatusUnauthorized {
		if g := generationOf(expected(detail)); g != nil && g != s.gen && !s.fellBack {
			s.gen, s.fellBack = g, true
			return true
		}
	}
	if !unreadable(a.status, detail, a.body) {
		return false
	}
	switch {
	case isAzure(kind) && !s.oldNames && !s.gen.plain:
		s.oldNames = true
	case !s.noParams && !s.gen.plain:
		s.noParams = true
	default:
		return false
	}
	return true
}

// follow takes the session id out of an answer. A broker may change or withdraw it at any time: it is the broker's own
// mark, and nothing that this side relies on. Where it is gone the token serves.
func (s *session) follow(a *answer) error {
	for _, c := range a.cookies {
		switch {
		case c.Name != cookieName:
		case len(c.Value) > maxCookie:
			return malformed{fmt.Errorf("%s cookie: %d bytes, at most %d", cookieName, len(c.Value), maxCookie)}
		case c.MaxAge < 0:
			s.cookie = ""
		default:
			s.cookie = c.Value
		}
	}
	return nil
}

// attestation asks the hardware to sign the binding and writes the body of attest.
func (s *session) attestation(ctx context.Context, kind evidence.Kind, b evidence.Binding) ([]byte, error) {
	data := s.gen.reportData(b)
	ev, err := s.dev.Evidence(ctx, data)
	if err != nil {
		return nil, fmt.Errorf("evidence for %s: %w", s.http.url, err)
	}
	if ev.Kind != kind {
		return nil, fmt.Errorf("evidence for %s: the device is %s and gave %s", s.http.url, kind, ev.Kind)
	}
	// Stale evidence would be refused as well, but by a broker that does not say why.
	if got, ok, err := reportDataOf(ev); err != nil {
		return nil, fmt.Errorf("evidence for %s: %w", s.http.url, err)
	} else if ok && got != data {
		return nil, fmt.Errorf("evidence for %s: it holds report data %x, asked for %x", s.http.url, got, data)
	}
	old := s.oldForm || s.gen.plain
	primary, err := s.encode(ev, old)
	if err != nil {
		return nil, fmt.Errorf("evidence for %s: %w", s.http.url, err)
	}
	s.sent.of(ev, old, len(s.initdata) > 0 && !s.gen.plain)
	return s.gen.attestation(b, primary, s.initdata)
}

// reportDataOf reads what evidence says it was asked with, for the kinds whose own bytes say it.
func reportDataOf(ev evidence.Evidence) (data [64]byte, ok bool, err error) {
	switch ev.Kind {
	case evidence.SNP:
		r, err := evidence.ParseSNP(ev.Report)
		return r.ReportData, true, err
	case evidence.TDX:
		q, err := evidence.ParseTDX(ev.Report)
		return q.Report.ReportData, true, err
	}
	return data, false, nil
}

// encode writes evidence as the broker takes it: in its newest form, or in the one that brokers before protocol 0.4.0
// know, where the kind has another.
func encode(ev evidence.Evidence, old bool) (json.RawMessage, error) {
	if old {
		return ev.Legacy()
	}
	return ev.JSON()
}

// get fetches one resource and opens it.
func (s *session) get(ctx context.Context, path string) ([]byte, error) {
	a, err := s.http.do(ctx, http.MethodGet, "resource/"+path, s.authority(), nil)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, s.refused(a, atResource, path)
	}
	if err := s.follow(a); err != nil {
		return nil, failed(s.http.url, "resource/"+path, err)
	}
	key, err := s.key.open(a.body, s.gen.oldJWE)
	if err != nil {
		return nil, failed(s.http.url, "resource/"+path, malformed{err})
	}
	return key, nil
}

// authority is the cookie, or once that is gone the token.
func (s *session) authority() http.Header {
	if s.cookie == "" && s.token != "" {
		return http.Header{"Authorization": {"Bearer " + s.token}}
	}
	return http.Header{"Cookie": {cookieName + "=" + s.cookie}}
}

// refused turns a status other than 200 into an error. RCAR refuses with 401, 403 and 404 and says why in the body;
// anything else is a broker out of order, not a refusal.
func (s *session) refused(a *answer, at, path string) error {
	switch a.status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		d := denied(s.http.url, path, a.body)
		d.at = at
		d.Cause, d.Next = d.explain(s.sent)
		return d
	}
	if path != "" {
		at += "/" + path
	}
	return failed(s.http.url, at, statusError(a.status))
}
