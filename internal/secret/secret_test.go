package secret

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

var b64 = base64.RawURLEncoding

// owner signs what tests seal.
type owner struct {
	priv *ecdsa.PrivateKey
	jwk  string
}

func newOwner(t testing.TB) *owner {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := priv.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return &owner{priv, fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, b64.EncodeToString(point[1:33]), b64.EncodeToString(point[33:]))}
}

func (o *owner) seal(t testing.TB, header, payload string) string {
	signed := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(payload))
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, o.priv, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return "sealed." + signed + "." + b64.EncodeToString(sig)
}

func (o *owner) key(string) ([]byte, error) { return []byte(o.jwk), nil }

const (
	goodHeader  = `{"alg":"ES256","kid":"kbs:///default/signing-key/s"}`
	goodPayload = `{"version":"0.1.0","type":"vault","name":"kbs:///a/b/c","provider":"kbs","provider_settings":{},"annotations":{}}`
)

func TestVector(t *testing.T) {
	b, err := os.ReadFile("../../../shared/wire/vectors/kbs/sealed-secret.json")
	if err != nil {
		t.Skip("no wire vectors beside the checkout")
	}
	var v struct {
		Sealed string          `json:"sealed"`
		Name   string          `json:"resolves_to"`
		JWK    json.RawMessage `json:"verification_jwk"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if path, err := Signer(v.Sealed); err != nil || path != "default/signing-key/sealed-secret" {
		t.Errorf("signer %q, %v", path, err)
	}
	var asked string
	path, err := Parse(v.Sealed, func(p string) ([]byte, error) { asked = p; return v.JWK, nil })
	if err != nil || "kbs:///"+path != v.Name || asked != "default/signing-key/sealed-secret" {
		t.Errorf("%q, %v, after asking for %q", path, err, asked)
	}
	changed := strings.Replace(v.Sealed, "eyJ2ZXJzaW9uIjoiMC4xLjAi", "eyJ2ZXJzaW9uIjogIjAuMS4w", 1)
	for name, s := range map[string]string{"one changed": changed, "one of another signature": v.Sealed[:len(v.Sealed)-8] + "AAAAAAAA"} {
		if _, err := Parse(s, func(string) ([]byte, error) { return v.JWK, nil }); err == nil || s == v.Sealed {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestParse(t *testing.T) {
	o := newOwner(t)
	for _, header := range []string{goodHeader, `{"kid":"kbs:///default/signing-key/s","typ":"JWT","alg":"ES256"}`} {
		s := o.seal(t, header, goodPayload)
		if path, err := Parse(s, o.key); err != nil || path != "a/b/c" || !Sealed(s) {
			t.Errorf("%s: %q, %v", header, path, err)
		}
	}
	if Sealed("value") || Sealed("Sealed.x") {
		t.Error("a plain value is taken for a sealed one")
	}
}

func TestParseRefuses(t *testing.T) {
	o, other := newOwner(t), newOwner(t)
	payload := func(old, new string) string {
		changed := strings.Replace(goodPayload, old, new, 1)
		if changed == goodPayload {
			t.Fatalf("%q is not in the payload", old)
		}
		return o.seal(t, goodHeader, changed)
	}
	header := func(h string) string { return o.seal(t, h, goodPayload) }
	good := o.seal(t, goodHeader, goodPayload)
	short := o.seal(t, goodHeader, goodPayload)
	short = short[:strings.LastIndexByte(short, '.')+1] + b64.EncodeToString(make([]byte, 63))
	zero := good[:strings.LastIndexByte(good, '.')+1] + b64.EncodeToString(make([]byte, 64))
	for name, c := range map[string]struct{ sealed, want string }{
		"a plain value":             {"hunter2", `does not begin with "sealed."`},
		"nothing":                   {"sealed.", "has 1 parts"},
		"the old fake":              {"sealed.fakejwsheader." + b64.EncodeToString([]byte(goodPayload)) + ".fakesignature", "old form without a signature"},
		"half the old fake":         {strings.Replace(good, ".", ".fakejwsheader.", 1), "has 4 parts"},
		"two parts":                 {"sealed.a.b", "has 2 parts"},
		"padding":                   {good + "==", "signature is not base64url"},
		"a line break":              {good[:len(good)-4] + "\n" + good[len(good)-4:], "signature is not base64url"},
		"no algorithm":              {header(`{"kid":"kbs:///a/b/c"}`), `header: member "alg": missing`},
		"no algorithm at all":       {header(`{"alg":"none","kid":"kbs:///a/b/c"}`), `alg is "none"`},
		"a shared key":              {header(`{"alg":"HS256","kid":"kbs:///a/b/c"}`), `alg is "HS256"`},
		"another curve":             {header(`{"alg":"ES384","kid":"kbs:///a/b/c"}`), `alg is "ES384"`},
		"no kid":                    {header(`{"alg":"ES256"}`), `member "kid": missing`},
		"a kid that is a file":      {header(`{"alg":"ES256","kid":"../key"}`), "kid: \"../key\": want kbs:///"},
		"a kid with a host":         {header(`{"alg":"ES256","kid":"kbs://evil.example/a/b/c"}`), "want kbs:///repository"},
		"a kid that goes up":        {header(`{"alg":"ES256","kid":"kbs:///a/../c"}`), "want kbs:///repository"},
		"a kid of a plugin":         {header(`{"alg":"ES256","kid":"kbs+pkcs11:///a/b/c"}`), "want kbs:///repository"},
		"its own key":               {header(`{"alg":"ES256","kid":"kbs:///a/b/c","jwk":{}}`), `member "jwk": unknown`},
		"an unencoded payload":      {header(`{"alg":"ES256","kid":"kbs:///a/b/c","b64":false,"crit":["b64"]}`), "unknown"},
		"a kid twice":               {header(`{"alg":"ES256","kid":"kbs:///a/b/c","kid":"kbs:///d/e/f"}`), "twice"},
		"a short signature":         {short, "signature has 63 bytes"},
		"a signature of zeros":      {zero, "its signature is not of the key"},
		"another's signature":       {other.seal(t, goodHeader, goodPayload), "its signature is not of the key"},
		"an envelope":               {payload(`"vault"`, `"envelope"`), "is an envelope"},
		"another type":              {payload(`"vault"`, `"box"`), `type is "box", want vault`},
		"no type":                   {payload(`"type":"vault",`, ""), "type is missing"},
		"another version":           {payload(`0.1.0`, `0.2.0`), `version is "0.2.0"`},
		"no version":                {payload(`"version":"0.1.0",`, ""), `member "version": missing`},
		"another provider":          {payload(`"provider":"kbs"`, `"provider":"aliyun"`), `provider is "aliyun"`},
		"no provider":               {payload(`"provider":"kbs",`, ""), `member "provider": missing`},
		"no settings":               {payload(`"provider_settings":{},`, ""), "payload: provider_settings"},
		"settings that are none":    {payload(`"provider_settings":{}`, `"provider_settings":7`), "payload: provider_settings"},
		"no annotations":            {payload(`,"annotations":{}`, ""), "payload: annotations"},
		"no name":                   {payload(`"name":"kbs:///a/b/c",`, ""), `member "name": missing`},
		"a name with a host":        {payload("kbs:///a/b/c", "kbs://evil.example/a/b/c"), "name: \"kbs://evil.example/a/b/c\": want kbs:///"},
		"a name of two parts":       {payload("kbs:///a/b/c", "kbs:///a/b"), "want kbs:///repository"},
		"an unknown member":         {payload(`"annotations":{}`, `"annotations":{},"x":"y"`), `member "x": unknown`},
		"a member twice":            {payload(`"annotations":{}`, `"annotations":{},"name":"kbs:///d/e/f"`), "twice"},
		"a payload that is no JSON": {o.seal(t, goodHeader, "x"), "payload:"},
		"more bytes than it may be": {good + strings.Repeat("A", MaxSize), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := Parse(c.sealed, o.key)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%q, %v: want %q", path, err, c.want)
			}
		})
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	o := newOwner(t)
	good := o.seal(t, goodHeader, goodPayload)
	swap := func(old, new string) string { return strings.Replace(o.jwk, old, new, 1) }
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		jwk  string
		err  error
		want string
	}{
		"none":             {"", gone, "key kbs:///default/signing-key/s: gone"},
		"PEM":              {"-----BEGIN PUBLIC KEY-----", nil, "JWK: JSON object"},
		"a private key":    {swap(`"kty"`, `"d":"AAAA","kty"`), nil, "is a private key"},
		"another curve":    {swap("P-256", "P-384"), nil, `crv "P-384"`},
		"another use":      {swap(`"kty"`, `"use":"enc","kty"`), nil, `use "enc"`},
		"another purpose":  {swap(`"kty"`, `"alg":"ECDH-ES","kty"`), nil, `alg "ECDH-ES"`},
		"a short x":        {swap(`"x":"`, `"x":"AA","kid":"`), nil, "x is not the base64url of 32 bytes"},
		"no point":         {swap(`"y":"`, `"y":"`+b64.EncodeToString(make([]byte, 32))+`","kid":"`), nil, "no point of P-256"},
		"a key set":        {`{"keys":[]}`, nil, "JWK:"},
		"an unknown thing": {swap(`"kty"`, `"x5c":"","kty"`), nil, `"x5c": unknown`},
		"too large":        {strings.Repeat(" ", maxKey) + o.jwk, nil, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(good, func(string) ([]byte, error) { return []byte(c.jwk), c.err })
			if err == nil || !strings.Contains(err.Error(), c.want) || c.err != nil && !errors.Is(err, c.err) {
				t.Fatalf("%v: want %q", err, c.want)
			}
		})
	}
}

// FuzzSealed holds that nothing is taken whose bytes are not the owner's.
func FuzzSealed(f *testing.F) {
	o := newOwner(f)
	good := o.seal(f, goodHeader, goodPayload)
	f.Add(good)
	f.Add("sealed.fakejwsheader.e30.fakesignature")
	f.Add("sealed.e30.e30." + b64.EncodeToString(make([]byte, 64)))
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := Signer(s); err != nil {
			if _, err := Parse(s, o.key); err == nil {
				t.Fatalf("%q: Parse takes what Signer refuses", s)
			}
		}
		if path, err := Parse(s, o.key); err == nil && (path != "a/b/c" || s[:strings.LastIndexByte(s, '.')] != good[:strings.LastIndexByte(good, '.')]) {
			t.Fatalf("%q is taken for %q", s, path)
		}
	})
}
