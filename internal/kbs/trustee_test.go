package kbs

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

const errorType = "https://github.com/confidential-containers/kbs/errors/"

func refusing(variant, detail string) http.HandlerFunc {
	b, _ := json.Marshal(map[string]string{"type": errorType + variant, "detail": detail})
	return answering(http.StatusUnauthorized, string(b))
}

// trustee is a broker of one release as the guest sees it, written from SPEC.md and not from the client's own types. Its
// evidence is that of probe.
type trustee struct {
	version string   // of the protocol
	tees    []string // names that it can read
	forms   []string // of evidence that it takes; nil: all
	before  func(w http.ResponseWriter, r *http.Request, n int) bool
	cookie  func(path string) string // Set-Cookie of an answer; "" for none
	token   string

	t    testing.TB
	mu   sync.Mutex
	asks []string // one line for each request
	id   int      // of the session
	live bool     // the session is known
	key  map[string]string
}

const testToken = "e30.e30.c2ln"

func (b *trustee) listen(t testing.TB) Broker {
	b.t = t
	if b.tees == nil {
		b.tees = []string{"snp", "tdx", "sample", "az-snp-vtpm", "az-tdx-vtpm"}
	}
	if b.token == "" {
		b.token = testToken
	}
	ts := httptest.NewServer(b)
	t.Cleanup(ts.Close)
	return Broker{URL: ts.URL, AllowHTTP: true}
}

func (b *trustee) restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.live, b.token = false, b.token+"x"
}

// asked tells the requests so far, and forgets them.
func (b *trustee) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { b.asks = nil }()
	return b.asks
}

func (b *trustee) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/kbs/v0/")
	n := len(b.asks)
	b.asks = append(b.asks, path)
	if b.before != nil && b.before(w, r, n) {
		return
	}
	if b.cookie != nil {
		if c := b.cookie(path); c != "" {
			w.Header().Add("Set-Cookie", c)
		}
	}
	known := b.live && r.Header.Get("Cookie") == fmt.Sprintf("kbs-session-id=s%d", b.id)
	switch {
	case path == "auth":
		b.auth(w, r, body)
	case path == "attest" && !known:
		refusing("AttestationError", "RCAR handshake Attest failed")(w, r)
	case path == "attest":
		b.attest(w, r, body)
	case r.Header.Get("Authorization") == "Bearer "+b.token || known:
		io.WriteString(w, b.seal(bytes.Repeat([]byte{5}, 32)))
	case r.Header.Get("Authorization") != "":
		refusing("TokenVerifierError", "Token Verifier error")(w, r)
	default:
		refusing("TokenNotFound", "Attestation Token not found")(w, r)
	}
}

func (b *trustee) auth(w http.ResponseWriter, r *http.Request, body []byte) {
	var req struct {
		Version string          `json:"version"`
		TEE     string          `json:"tee"`
		Extra   json.RawMessage `json:"extra-params"`
	}
	old := b.version == "0.1.0"
	if err := json.Unmarshal(body, &req); err != nil || req.Extra == nil {
		b.t.Errorf("auth with %s", body)
	}
	b.asks[len(b.asks)-1] += " " + req.Version + " " + req.TEE
	switch {
	case old && (!slices.Contains(b.tees, req.TEE) || req.Extra[0] != '"'):
		answering(400, "Json deserialize error: invalid type: map, expected a string at line 1 column 60")(w, r)
	case !slices.Contains(b.tees, req.TEE):
		refusing("AttestationError", "Attestation error: RCAR handshake Auth failed: deserialize Request")(w, r)
	case old && req.Version != b.version:
		refusing("FailedAuthentication", "Authentication failed: Session: KBS Client Protocol Version Mismatch: expect <=0.1.0 while the request is "+req.Version)(w, r)
	case req.Version != b.version:
		refusing("AttestationError", "KBS Client Protocol Version Mismatch: expect ="+b.version+" while the request is "+req.Version)(w, r)
	default:
		b.id++
		b.live = true
		if b.cookie == nil {
			w.Header().Set("Set-Cookie", fmt.Sprintf("kbs-session-id=s%d; Expires=Wed, 01 Jan 2100 00:00:00 GMT", b.id))
		}
		io.WriteString(w, `{"nonce":"`+testNonce+`","extra-params":""}`)
	}
}

func (b *trustee) attest(w http.ResponseWriter, r *http.Request, body []byte) {
	var req struct {
		InitData json.RawMessage   `json:"init-data"`
		Key      map[string]string `json:"tee-pubkey"`
		Runtime  *struct {
			Nonce string            `json:"nonce"`
			Key   map[string]string `json:"tee-pubkey"`
		} `json:"runtime-data"`
		Evidence json.RawMessage `json:"tee-evidence"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		b.t.Errorf("attest with %s: %v", body, err)
		return
	}
	primary := req.Evidence
	bound := map[string]any{"nonce": testNonce, "tee-pubkey": req.Key}
	if b.version == "0.4.0" {
		var c struct {
			Primary    json.RawMessage `json:"primary_evidence"`
			Additional string          `json:"additional_evidence"`
		}
		if err := json.Unmarshal(req.Evidence, &c); err != nil || req.Runtime == nil || req.Runtime.Nonce != testNonce || req.InitData == nil {
			b.t.Errorf("attest with %s: %v", body, err)
			return
		}
		primary, req.Key = c.Primary, req.Runtime.Key
		bound = map[string]any{"nonce": testNonce, "tee-pubkey": req.Key, "additional-evidence": c.Additional}
	} else if req.InitData != nil || req.Runtime != nil {
		b.t.Errorf("protocol %s: attest with %s", b.version, body)
	}
	if b.version == "0.1.0" {
		var text string
		if err := json.Unmarshal(primary, &text); err != nil {
			b.t.Errorf("protocol 0.1.0: attest with %s: %v", body, err)
		}
		primary = []byte(text)
	}
	var ev struct {
		Form string `json:"form"`
		Data []byte `json:"report_data"`
	}
	if err := json.Unmarshal(primary, &ev); err != nil {
		b.t.Errorf("evidence %s: %v", primary, err)
	}
	b.asks[len(b.asks)-1] += " " + ev.Form + " " + req.Key["alg"] + " " + req.Key["crv"]
	var canonical bytes.Buffer
	enc := json.NewEncoder(&canonical)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(bound); err != nil {
		b.t.Error(err)
	}
	if want := sha512.Sum384(bytes.TrimSuffix(canonical.Bytes(), []byte("\n"))); !bytes.HasPrefix(ev.Data, want[:]) {
		b.t.Errorf("protocol %s: report data %x, want %x", b.version, ev.Data, want)
	}
	if b.forms != nil && !slices.Contains(b.forms, ev.Form) {
		b.live = false
		refusing("AttestationError", "RCAR handshake Attest failed")(w, r)
		return
	}
	b.key = req.Key
	fmt.Fprintf(w, `{"token":%q}`, b.token)
}

func (b *trustee) seal(plain []byte) string {
	jwk, err := json.Marshal(b.key)
	if err != nil {
		b.t.Error(err)
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(jwk); err != nil {
		b.t.Error(err)
		return ""
	}
	if strings.HasPrefix(b.version, "0.1.") {
		return sealOld(b.t, key.Key.(*rsa.PublicKey), plain, nil)
	}
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.KeyAlgorithm(key.Algorithm), Key: key.Key}, nil)
	if err != nil {
		b.t.Error(err)
		return ""
	}
	jwe, err := e.Encrypt(plain)
	if err != nil {
		b.t.Error(err)
		return ""
	}
	return jwe.FullSerialize()
}

// sealOld writes what Trustee up to v0.11 does with a resource.
func sealOld(t testing.TB, to *rsa.PublicKey, plain []byte, change func(m map[string]string)) string {
	var cek [32]byte
	var iv [12]byte
	rand.Read(cek[:])
	rand.Read(iv[:])
	wrapped, err := rsa.EncryptPKCS1v15(rand.Reader, to, cek[:]) //lint:ignore SA1019 what old brokers do
	if err != nil {
		t.Error(err)
		return ""
	}
	block, err := aes.NewCipher(cek[:])
	if err != nil {
		t.Error(err)
		return ""
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Error(err)
		return ""
	}
	b64 := base64.RawURLEncoding.EncodeToString
	m := map[string]string{"protected": `{"alg":"RSA1_5","enc":"A256GCM"}`, "encrypted_key": b64(wrapped), "iv": b64(iv[:]),
		"ciphertext": b64(gcm.Seal(nil, iv[:], plain, nil)), "tag": ""}
	if change != nil {
		change(m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// probe is a device of any kind whose evidence is what it was asked with, in one of two forms.
type probe struct{ kind evidence.Kind }

func (p probe) Kind() evidence.Kind { return p.kind }

func (p probe) Evidence(_ context.Context, data [64]byte) (evidence.Evidence, error) {
	return evidence.Evidence{Kind: p.kind, Report: data[:]}, nil
}

func probeForm(ev evidence.Evidence, old bool) (json.RawMessage, error) {
	form := "new"
	if old {
		form = "old"
	}
	return json.Marshal(map[string]any{"form": form, "report_data": ev.Report})
}

func newProbe(t testing.TB, kind evidence.Kind, brokers ...Broker) *Client {
	t.Helper()
	c, err := New(brokers, probe{kind}, []byte("init"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	for _, s := range c.sessions {
		s.encode = probeForm
	}
	return c
}
