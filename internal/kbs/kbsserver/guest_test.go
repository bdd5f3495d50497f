package kbsserver_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/psp"
)

// byHand is a guest that is written from the protocol's text, of any generation and with any fault.
type byHand struct {
	rig      *rig
	url      string
	version  string
	tee      string
	private  any
	public   evidence.PublicKey
	cookie   *http.Cookie
	nonce    string
	initdata []byte
	token    string
}

var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func (r *rig) byHand(t testing.TB, url, version, key string) *byHand {
	t.Helper()
	g := &byHand{rig: r, url: url + "/kbs/v0/", version: version, tee: "snp"}
	alg := evidence.ECDH
	var public any
	var err error
	switch key {
	case "P-256", "P-521":
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-521": elliptic.P521()}[key]
		var k *ecdsa.PrivateKey
		if k, err = ecdsa.GenerateKey(curve, rand.Reader); err == nil {
			g.private, public = k, &k.PublicKey
		}
	default:
		alg = key
		var k *rsa.PrivateKey
		if k, err = rsaKey(); err == nil {
			g.private, public = k, &k.PublicKey
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if g.public, err = evidence.NewKey(public, alg); err != nil {
		t.Fatal(err)
	}
	return g
}

// refused is what a broker says.
type refused struct{ Type, Detail string }

func (g *byHand) do(t testing.TB, method, path string, body []byte, bearer string) ([]byte, *refused, []*http.Cookie) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if g.cookie != nil {
		req.AddCookie(g.cookie)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode == http.StatusOK {
		return b, nil, resp.Cookies()
	}
	var e refused
	if err := json.Unmarshal(b, &e); err != nil {
		t.Fatalf("%s %s: status %d, %q", method, path, resp.StatusCode, b)
	}
	return nil, &e, nil
}

func (g *byHand) auth(t testing.TB) *refused {
	t.Helper()
	body := `{"version":"` + g.version + `","tee":"` + g.tee + `","extra-params":""}`
	b, ref, cookies := g.do(t, "POST", "auth", []byte(body), "")
	if ref != nil {
		return ref
	}
	var c struct{ Nonce string }
	if err := json.Unmarshal(b, &c); err != nil || len(cookies) != 1 {
		t.Fatalf("challenge %s: %v", b, err)
	}
	g.nonce, g.cookie = c.Nonce, cookies[0]
	return nil
}

// body is what attest takes, with evidence over what this generation hashes.
func (g *byHand) body(t testing.TB) []byte {
	t.Helper()
	b := evidence.Binding{Nonce: g.nonce, Key: g.public}
	data := b.ReportDataV2()
	if g.version == "0.4.0" {
		data = b.ReportData()
	}
	ev := evidence.Evidence{Kind: evidence.Sample, Report: data[:]}
	switch g.tee {
	case "tdx":
		quote, err := g.rig.chip.Quote(psp.Launch{Measurement: measurement, HostData: sha256.Sum256(initdata)}, data)
		if err != nil {
			t.Fatal(err)
		}
		ev = evidence.Evidence{Kind: evidence.TDX, Report: quote}
	case "snp":
		var err error
		if ev, err = g.rig.guest.Evidence(t.Context(), data); err != nil {
			t.Fatal(err)
		}
	}
	primary, err := ev.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var body any
	switch g.version {
	case "0.4.0":
		m := map[string]any{
			"runtime-data": map[string]any{"nonce": g.nonce, "tee-pubkey": g.public},
			"tee-evidence": map[string]any{"primary_evidence": primary, "additional_evidence": ""},
		}
		if g.initdata != nil {
			m["init-data"] = map[string]string{"format": "toml", "body": string(g.initdata)}
		}
		body = m
	case "0.1.0":
		body = map[string]any{"tee-pubkey": g.public, "tee-evidence": string(primary)}
	default:
		body = map[string]any{"tee-pubkey": g.public, "tee-evidence": primary}
	}
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (g *byHand) attest(t testing.TB, body []byte) *refused {
	t.Helper()
	b, ref, _ := g.do(t, "POST", "attest", body, "")
	if ref != nil {
		return ref
	}
	var c struct{ Token string }
	if err := json.Unmarshal(b, &c); err != nil || strings.Count(c.Token, ".") != 2 {
		t.Fatalf("attest answers %s: %v", b, err)
	}
	g.token = c.Token
	return nil
}

// get fetches a resource and opens it, by the rules of this generation.
func (g *byHand) get(t testing.TB, path, bearer string) ([]byte, *refused) {
	t.Helper()
	b, ref, _ := g.do(t, "GET", "resource/"+path, nil, bearer)
	if ref != nil {
		return nil, ref
	}
	if strings.HasPrefix(g.version, "0.1.") {
		return openOldJWE(t, b, g.private.(*rsa.PrivateKey)), nil
	}
	algs := []jose.KeyAlgorithm{jose.ECDH_ES_A256KW, jose.RSA_OAEP_256}
	jwe, err := jose.ParseEncryptedJSON(string(b), algs, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := jwe.Decrypt(g.private)
	if err != nil {
		t.Fatal(err)
	}
	return plain, nil
}

// openOldJWE opens what no library opens: §1.7, servers of 0.1.x.
func openOldJWE(t testing.TB, body []byte, key *rsa.PrivateKey) []byte {
	t.Helper()
	var j map[string]string
	if err := json.Unmarshal(body, &j); err != nil || j["protected"] != `{"alg":"RSA1_5","enc":"A256GCM"}` || j["tag"] != "" || len(j) != 5 {
		t.Fatalf("JWE %s: %v", body, err)
	}
	part := func(name string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(j[name])
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	cek, err := rsa.DecryptPKCS1v15(nil, key, part("encrypted_key")) //lint:ignore SA1019 what servers of 0.1.x use
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := gcm.Open(nil, part("iv"), part("ciphertext"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
