package kbs

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func TestRecordedJWEs(t *testing.T) {
	var vectors []struct {
		Name    string
		Private string          `json:"private_key_pkcs8"`
		JWE     json.RawMessage `json:"resource_jwe"`
		Plain   string          `json:"resource_plaintext_hex"`
	}
	if err := json.Unmarshal(shared(t, "rcar.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			priv := parseKey(t, v.Private)
			alg := jose.ECDH_ES_A256KW
			if strings.HasPrefix(v.Name, "rsa") {
				if _, err := openJWE(v.JWE, priv, alg); err == nil {
					t.Error("an algorithm that was not asked for is taken")
				}
				alg = jose.RSA_OAEP_256
			}
			got, err := openJWE(v.JWE, priv, alg)
			if err != nil || hex.EncodeToString(got) != v.Plain {
				t.Errorf("%x, want %s: %v", got, v.Plain, err)
			}
			for _, member := range []string{"protected", "encrypted_key", "iv", "ciphertext", "tag"} {
				var m map[string]string
				if err := json.Unmarshal(v.JWE, &m); err != nil {
					t.Fatal(err)
				}
				b, err := base64.RawURLEncoding.DecodeString(m[member])
				if err != nil {
					t.Fatal(err)
				}
				b[len(b)/2] ^= 1
				m[member] = base64.RawURLEncoding.EncodeToString(b)
				spoiled, err := json.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := openJWE(spoiled, priv, alg); err == nil {
					t.Errorf("%s may change", member)
				}
			}
		})
	}
}

func TestBadJWEs(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(b *broker) string
		want   string
	}{
		"nothing":          {func(b *broker) string { return "" }, "JWE"},
		"garbage":          {func(b *broker) string { return "\x00\xff" }, "JWE"},
		"the key in clear": {func(b *broker) string { return strings.Repeat("k", 32) }, "JWE"},
		"a compact JWE":    {func(b *broker) string { return "a.b.c.d.e" }, "JWE"},
		"a further member": {func(b *broker) string { return strings.Replace(b.seal([]byte("k")), "{", `{"aad":"",`, 1) }, "unknown"},
		"unprotected headers": {func(b *broker) string {
			return strings.Replace(b.seal([]byte("k")), "{", `{"unprotected":{"apu":"YQ"},`, 1)
		}, "unknown"},
		"a compressed resource": {func(b *broker) string {
			return b.seal([]byte("k"), func(o *jose.EncrypterOptions) { o.Compression = jose.DEFLATE })
		}, "zip"},
		"an apu": {func(b *broker) string {
			return b.seal([]byte("k"), func(o *jose.EncrypterOptions) { o.WithHeader("apu", "YQ") })
		}, "apu"},
		"an empty resource": {func(b *broker) string { return b.seal(nil) }, "empty"},
		"64 KiB and a byte": {func(b *broker) string { return b.seal(make([]byte, 64<<10+1)) }, "at most"},
		"for another key": {func(b *broker) string {
			_, pub, err := newKeyPair()
			if err != nil {
				b.t.Fatal(err)
			}
			jwk, err := json.Marshal(pub)
			if err != nil {
				b.t.Fatal(err)
			}
			if err := b.key.UnmarshalJSON(jwk); err != nil {
				b.t.Fatal(err)
			}
			return b.seal([]byte("k"))
		}, "not for the key of this session"},
		"another algorithm": {func(b *broker) string {
			return `{"protected":"` + base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"dir","enc":"A256GCM","epk":{}}`)) +
				`","encrypted_key":"AA","iv":"AA","ciphertext":"AA","tag":"AA"}`
		}, "JWE"},
	} {
		t.Run(name, func(t *testing.T) {
			b := new(broker)
			b.resource = func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, c.answer(b)) }
			g, err := get(t, b.listen(t))
			if err == nil || g != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestKeyPairIsZeroed(t *testing.T) {
	k, _, err := newKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	k.zero()
	//lint:ignore SA1019 the words themselves are what is looked at
	for _, w := range k.priv.D.Bits() {
		if w != 0 {
			t.Error("the scalar is still there")
		}
	}
	keyPair{}.zero()
}

func FuzzJWE(f *testing.F) {
	k, _, err := newKeyPair()
	if err != nil {
		f.Fatal(err)
	}
	b := broker{t: f, key: jose.JSONWebKey{Key: &k.priv.PublicKey}}
	f.Add([]byte(b.seal([]byte("secret"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		if key, err := k.open(b); err == nil && string(key) != "secret" {
			t.Errorf("%x was never sealed", key)
		}
	})
}
