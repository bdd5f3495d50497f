package kbsserver

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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

func TestJWEOpensWithGoJose(t *testing.T) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Many rounds: a coordinate with a leading zero comes once in 128.
	for i := range 400 {
		plain := bytes.Repeat([]byte{byte(i)}, 1+i)
		jwe, err := encrypt(plain, &priv.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(jwe)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := jose.ParseEncryptedJSON(string(body), []jose.KeyAlgorithm{jose.ECDH_ES_A256KW}, []jose.ContentEncryption{jose.A256GCM})
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
		want := fmt.Sprintf(`{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}}`, h.EPK["x"], h.EPK["y"])
		if string(header) != want || len(h.EPK["x"]) != 43 || len(h.EPK["y"]) != 43 {
			t.Fatalf("header %s, want %s", header, want)
		}
	}
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
