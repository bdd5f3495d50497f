package kbsserver

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func newKey(t testing.TB, kind string) (private any, jwk evidence.PublicKey) {
	t.Helper()
	var public any
	alg := evidence.ECDH
	ec := func(c elliptic.Curve) {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private, public = k, &k.PublicKey
	}
	switch kind {
	case "P-256":
		ec(elliptic.P256())
	case "P-521":
		ec(elliptic.P521())
	default:
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		private, public, alg = k, &k.PublicKey, kind
	}
	jwk, err := evidence.NewKey(public, alg)
	if err != nil {
		t.Fatal(err)
	}
	return private, jwk
}

func TestJWEOpensWithGoJose(t *testing.T) {
	for _, c := range []struct {
		kind   string
		rounds int // many on P-256: a coordinate with a leading zero comes once in 128
		alg    jose.KeyAlgorithm
		header string
	}{
		{"P-256", 400, jose.ECDH_ES_A256KW, `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}}`},
		{"P-521", 40, jose.ECDH_ES_A256KW, `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-521","kty":"EC","x":"%s","y":"%s"}}`},
		{evidence.RSAOAEP, 4, jose.RSA_OAEP_256, `{"alg":"RSA-OAEP-256","enc":"A256GCM"}`},
		{evidence.RSA15, 4, jose.RSA1_5, `{"alg":"RSA1_5","enc":"A256GCM"}`},
	} {
		t.Run(c.kind, func(t *testing.T) {
			priv, jwk := newKey(t, c.kind)
			for i := range c.rounds {
				plain := bytes.Repeat([]byte{byte(i)}, 1+i)
				jwe, err := encrypt(plain, jwk, false)
				if err != nil {
					t.Fatal(err)
				}
				body, err := json.Marshal(jwe)
				if err != nil {
					t.Fatal(err)
				}
				parsed, err := jose.ParseEncryptedJSON(string(body), []jose.KeyAlgorithm{c.alg}, []jose.ContentEncryption{jose.A256GCM})
				if err != nil {
					t.Fatal(err)
				}
				got, err := parsed.Decrypt(priv)
				if err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("%x, want %x: %v", got, plain, err)
				}
				var members map[string]string
				if err := json.Unmarshal(body, &members); err != nil || len(members) != 5 {
					t.Fatalf("%d members, %v", len(members), err)
				}
				header, err := base64.RawURLEncoding.DecodeString(jwe.Protected)
				if err != nil {
					t.Fatal(err)
				}
				var h struct{ EPK map[string]string }
				if err := json.Unmarshal(header, &h); err != nil {
					t.Fatal(err)
				}
				want := c.header
				if h.EPK != nil {
					want = fmt.Sprintf(want, h.EPK["x"], h.EPK["y"])
				}
				if string(header) != want || len(h.EPK["x"]) != len(jwk["x"]) || len(h.EPK["y"]) != len(jwk["y"]) {
					t.Fatalf("header %s, want %s", header, want)
				}
			}
		})
	}
}

// Protocol 0.1.x: no library opens this any more, so it is opened step by step (§1.7).
func TestOldJWE(t *testing.T) {
	priv, jwk := newKey(t, evidence.RSA15)
	jwe, err := encrypt([]byte("plain"), jwk, true)
	if err != nil {
		t.Fatal(err)
	}
	if jwe.Protected != `{"alg":"RSA1_5","enc":"A256GCM"}` || jwe.Tag != "" {
		t.Errorf("protected %s, tag %q", jwe.Protected, jwe.Tag)
	}
	got, err := openOld(jwe, priv.(*rsa.PrivateKey))
	if err != nil || string(got) != "plain" {
		t.Errorf("%q, %v", got, err)
	}
}

func openOld(jwe *flatJWE, priv *rsa.PrivateKey) ([]byte, error) {
	var parts [3][]byte
	for i, text := range []string{jwe.EncryptedKey, jwe.IV, jwe.Ciphertext} {
		var err error
		if parts[i], err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, err
		}
	}
	cek, err := rsa.DecryptPKCS1v15(nil, priv, parts[0]) //lint:ignore SA1019 what is tested
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, parts[1], parts[2], nil)
}

// The recorded JWE comes with its content key, so that the way to it can be gone again step by step.
func TestKeyWrapMatchesTheRecordedJWE(t *testing.T) {
	var vectors []struct {
		Name    string
		CEK     string  `json:"cek_hex"`
		Private string  `json:"private_key_pkcs8"`
		JWE     flatJWE `json:"resource_jwe"`
	}
	if err := json.Unmarshal(shared(t, "rcar.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	v := vectors[0]
	block, _ := pem.Decode([]byte(v.Private))
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil || v.Name != "ec-P-256" {
		t.Fatal(v.Name, err)
	}
	header, err := base64.RawURLEncoding.DecodeString(v.JWE.Protected)
	if err != nil {
		t.Fatal(err)
	}
	var h jweHeader
	if err := json.Unmarshal(header, &h); err != nil {
		t.Fatal(err)
	}
	if again, err := json.Marshal(h); err != nil || !bytes.Equal(again, header) {
		t.Errorf("header %s, recorded %s", again, header)
	}
	epk, err := evidence.PublicKey{"kty": h.EPK.Kty, "crv": h.EPK.Crv, "alg": "ECDH-ES+A256KW", "x": h.EPK.X, "y": h.EPK.Y}.P256()
	if err != nil {
		t.Fatal(err)
	}
	priv, err := parsed.(*ecdsa.PrivateKey).ECDH()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := epk.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	z, err := priv.ECDH(pub)
	if err != nil {
		t.Fatal(err)
	}
	cek, err := hex.DecodeString(v.CEK)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := wrapKey(deriveKEK(z), cek)
	if err != nil || base64.RawURLEncoding.EncodeToString(wrapped) != v.JWE.EncryptedKey {
		t.Errorf("encrypted key %x, want %s: %v", wrapped, v.JWE.EncryptedKey, err)
	}
}

// RFC 3394 §4.6: 256 bits of key data under a 256-bit KEK.
func TestKeyWrapRFC(t *testing.T) {
	kek, _ := hex.DecodeString("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")
	key, _ := hex.DecodeString("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
	got, err := wrapKey(kek, key)
	if want := "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"; err != nil || hex.EncodeToString(got) != want {
		t.Errorf("%x, want %s: %v", got, want, err)
	}
	if _, err := wrapKey(kek, key[:9]); err == nil {
		t.Error("9 bytes are wrapped")
	}
}
