package kbs

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func TestRecordedJWEs(t *testing.T) {
	var vectors []struct {
		Name    string
		Private string          `json:"private_key_pkcs8"`
		JWE     json.RawMessage `json:"resource_jwe"`
		Plain   string          `json:"resource_plaintext_hex"`

		Nonce      string             `json:"nonce"`
		Additional string             `json:"additional_evidence"`
		Key        evidence.PublicKey `json:"tee_pubkey"`
		Primary    string             `json:"primary_report_data_64"`
		Device     string             `json:"device_sha384"`
	}
	if err := json.Unmarshal(shared(t, "rcar.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			b := evidence.Binding{Nonce: v.Nonce, Key: v.Key, Additional: v.Additional}
			for i, g := range generations {
				want := v.Primary
				if i > 0 {
					want = v.Device + strings.Repeat("00", 16)
				}
				if got := g.reportData(b); hex.EncodeToString(got[:]) != want {
					t.Errorf("protocol %s: report data %x, want %s", g.version, got, want)
				}
			}
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
			_, pub, err := newKeyPair("", &generations[0])
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
	for keyType := range keyTypes {
		k, _, err := newKeyPair(keyType, &generations[0])
		if err != nil {
			t.Fatal(err)
		}
		k.zero()
		isZero(t, k)
	}
	keyPair{}.zero()
}

func isZero(t *testing.T, k keyPair) {
	t.Helper()
	var all []*big.Int
	if k.ec != nil {
		all = append(all, k.ec.D) //lint:ignore SA1019 the words themselves are what is looked at
	}
	if k.rsa != nil {
		all = append(append(all, k.rsa.Primes...), k.rsa.D, k.rsa.Precomputed.Dp, k.rsa.Precomputed.Dq, k.rsa.Precomputed.Qinv)
	}
	if len(all) == 0 {
		t.Error("no key")
	}
	for _, n := range all {
		for _, w := range n.Bits() {
			if w != 0 {
				t.Fatal("a private number is still there")
			}
		}
	}
}

func oldKey(t testing.TB) keyPair {
	k, _, err := newKeyPair("", generationOf("0.1.1"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOldJWEs(t *testing.T) {
	k, other := oldKey(t), oldKey(t)
	flip := func(name string, at int) func(map[string]string) {
		return func(m map[string]string) {
			b, err := base64.RawURLEncoding.DecodeString(m[name])
			if err != nil {
				t.Fatal(err)
			}
			b[(at+len(b))%len(b)] ^= 1
			m[name] = base64.RawURLEncoding.EncodeToString(b)
		}
	}
	set := func(name, value string) func(map[string]string) {
		return func(m map[string]string) { m[name] = value }
	}
	wrap := func(plain []byte) func(map[string]string) {
		b, err := rsa.EncryptPKCS1v15(rand.Reader, &k.rsa.PublicKey, plain) //lint:ignore SA1019 what old brokers do
		if err != nil {
			t.Fatal(err)
		}
		return set("encrypted_key", base64.RawURLEncoding.EncodeToString(b))
	}
	not := errNotOurs.Error()
	for name, c := range map[string]struct {
		change func(map[string]string)
		want   string
	}{
		"none":                  {nil, ""},
		"a header with a space": {set("protected", `{"alg": "RSA1_5", "enc": "A256GCM"}`), ""},
		"the key":               {flip("encrypted_key", 100), not},
		"a key of bad padding":  {set("encrypted_key", base64.RawURLEncoding.EncodeToString(append([]byte{0}, make([]byte, 255)...))), not},
		"a key of another size": {wrap(make([]byte, 16)), not},
		"a key of no size":      {wrap(nil), not},
		"another key":           {wrap(make([]byte, 32)), not},
		"the iv":                {flip("iv", 0), not},
		"the ciphertext":        {flip("ciphertext", 0), not},
		"the tag":               {flip("ciphertext", -1), not},
		"a short ciphertext":    {set("ciphertext", "AAAA"), not},
		"no ciphertext":         {set("ciphertext", ""), not},
		"a short key":           {set("encrypted_key", "AAAA"), "encrypted_key, iv and tag of 3, 12 and 0 bytes"},
		"a short iv":            {set("iv", "AAAA"), "encrypted_key, iv and tag of 256, 3 and 0 bytes"},
		"a tag of its own":      {set("tag", "AAAA"), "encrypted_key, iv and tag"},
		"padded base64":         {set("iv", "AAAAAAAAAAAAAAAAAA=="), "JWE iv"},
		"another algorithm":     {set("protected", `{"alg":"RSA-OAEP","enc":"A256GCM"}`), "want RSA1_5"},
		"another cipher":        {set("protected", `{"alg":"RSA1_5","enc":"A128GCM"}`), "with A256GCM"},
		"a header in base64":    {set("protected", "eyJhbGciOiJSU0ExXzUiLCJlbmMiOiJBMjU2R0NNIn0"), "protected header"},
		"a further header":      {set("protected", `{"alg":"RSA1_5","enc":"A256GCM","zip":"DEF"}`), "zip"},
		"a further member":      {set("aad", ""), "aad"},
		"a missing member":      {func(m map[string]string) { delete(m, "tag") }, "tag"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := k.open([]byte(sealOld(t, &k.rsa.PublicKey, []byte("secret"), c.change)), true)
			if c.want == "" && (err != nil || string(got) != "secret") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%q, error %v, want %q", got, err, c.want)
			}
		})
	}
	if _, err := other.open([]byte(sealOld(t, &k.rsa.PublicKey, []byte("secret"), nil)), true); err != errNotOurs {
		t.Errorf("with another key: %v", err)
	}
	for _, plain := range [][]byte{nil, make([]byte, maxResource+1)} {
		if _, err := k.open([]byte(sealOld(t, &k.rsa.PublicKey, plain, nil)), true); err == nil {
			t.Errorf("%d bytes are taken", len(plain))
		}
	}
	// Neither form passes for the other.
	if _, err := k.open([]byte(sealOld(t, &k.rsa.PublicKey, []byte("secret"), nil)), false); err == nil {
		t.Error("the old form is taken from a newer broker")
	}
	b := trustee{t: t, version: "0.2.0", key: map[string]string{}}
	_, pub, err := newKeyPair("RSA-OAEP-256", &generations[0])
	if err != nil {
		t.Fatal(err)
	}
	b.key = pub
	if _, err := k.open([]byte(b.seal([]byte("secret"))), true); err == nil {
		t.Error("the new form is taken from an old broker")
	}
}

func FuzzJWE(f *testing.F) {
	var keys []keyPair
	for _, keyType := range []string{"", "ECDH-ES+A256KW-P521", "RSA-OAEP-256"} {
		k, pub, err := newKeyPair(keyType, &generations[0])
		if err != nil {
			f.Fatal(err)
		}
		b := trustee{t: f, version: "0.4.0", key: pub}
		f.Add([]byte(b.seal([]byte("secret"))))
		keys = append(keys, k)
	}
	old := oldKey(f)
	f.Add([]byte(sealOld(f, &old.rsa.PublicKey, []byte("secret"), nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, k := range keys {
			if key, err := k.open(b, false); err == nil && string(key) != "secret" {
				t.Errorf("%x was never sealed", key)
			}
		}
		if key, err := old.open(b, true); err == nil && string(key) != "secret" {
			t.Errorf("%x was never sealed", key)
		}
	})
}
