package image

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	ocijwe "github.com/containers/ocicrypt/keywrap/jwe"
	ocipkcs7 "github.com/containers/ocicrypt/keywrap/pkcs7"
	"github.com/go-jose/go-jose/v4"
)

// TestStrangeJWE: each is refused before the library or a key sees it.
func TestStrangeJWE(t *testing.T) {
	good := wrapped(t, ocijwe.NewKeyWrapper(), "pubkeys", publicPEM(pairs()["P-256"]))
	edit := func(f func(top, header map[string]any)) []byte {
		var top, header map[string]any
		json.Unmarshal(good, &top)
		json.Unmarshal(must(base64.RawURLEncoding.DecodeString(top["protected"].(string))), &header)
		f(top, header)
		top["protected"] = base64.RawURLEncoding.EncodeToString(must(json.Marshal(header)))
		return must(json.Marshal(top))
	}
	header := func(name string, v any) []byte { return edit(func(_, h map[string]any) { h[name] = v }) }
	if err := opens(annotations(annotationJWE, edit(func(_, _ map[string]any) {})), privatePEM(pairs()["P-256"])); err == nil {
		t.Error("the same header written otherwise is authenticated all the same")
	}
	compact := must(must(jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: pairs()["P-256"].Public()}, nil)).Encrypt(options))
	for name, b := range map[string][]byte{
		"compression":               header("zip", "DEF"),
		"critical extensions":       header("crit", []string{"x"}),
		"a key of its own":          header("jwk", map[string]any{"kty": "oct", "k": "AA"}),
		"certificates":              header("x5c", []string{"AA=="}),
		"direct encryption":         header("alg", "dir"),
		"a password":                header("alg", "PBES2-HS256+A128KW"),
		"RSA with PKCS #1 v1.5":     header("alg", "RSA1_5"),
		"an unknown content cipher": header("enc", "A256CTR"),
		"additional data":           edit(func(m, _ map[string]any) { m["aad"] = "AA" }),
		"an unprotected header":     edit(func(m, _ map[string]any) { m["unprotected"] = map[string]any{"kid": "x"} }),
		"both forms": edit(func(m, _ map[string]any) {
			m["recipients"], m["header"] = []any{map[string]any{"encrypted_key": "AA"}}, map[string]any{}
		}),
		"seventeen recipients":       edit(func(m, _ map[string]any) { m["recipients"] = make([]map[string]any, 17); delete(m, "encrypted_key") }),
		"a header that is no base64": edit(func(m, _ map[string]any) {})[1:],
		"something behind it":        append(bytes.Clone(good), "{}"...),
		"the compact form":           []byte(must(compact.CompactSerialize())),
		"too much":                   append(bytes.Clone(good), make([]byte, maxJWE)...),
	} {
		if err := opens(annotations(annotationJWE, b), privatePEM(pairs()["P-256"])); !errors.Is(err, ErrFormat) && !errors.Is(err, ErrTooBig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	nine := make([][]byte, 9)
	for i := range nine {
		nine[i] = wrapped(t, ocijwe.NewKeyWrapper(), "pubkeys", publicPEM(pairs()["P-256"]), publicPEM(pairs()["P-384"]))
	}
	if err := opens(annotations(annotationJWE, nine...), privatePEM(pairs()["P-256"])); !errors.Is(err, ErrTooBig) {
		t.Errorf("eighteen recipients in nine messages: %v", err)
	}
}

// TestStrangePKCS7: each is refused before a key sees it.
func TestStrangePKCS7(t *testing.T) {
	k := pairs()["RSA 2048"]
	good := wrapped(t, ocipkcs7.NewKeyWrapper(), "x509s", certificate(k))
	edit := func(f func(*pkcs7Message)) []byte {
		var m pkcs7Message
		if rest, err := asn1.Unmarshal(good, &m); err != nil || len(rest) > 0 {
			t.Fatal(err)
		}
		f(&m)
		return must(asn1.Marshal(m))
	}
	if b := edit(func(*pkcs7Message) {}); !bytes.Equal(b, good) {
		t.Error("what ocicrypt writes is not what is written here")
	}
	old := edit(func(m *pkcs7Message) {
		d := &m.Content.Content.Data
		d.FullBytes, d.Bytes, d.IsCompound = nil, must(asn1.Marshal(d.Bytes)), true
	})
	if err := opens(annotations(annotationPKCS7, old), privatePEM(k)); err != nil {
		t.Errorf("as ocicrypt 1.0 wrote it: %v", err)
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"signed data": {edit(func(m *pkcs7Message) { m.Type = oidData }), "want enveloped data"},
		"AES-CBC": {edit(func(m *pkcs7Message) {
			m.Content.Content.Alg.Algorithm = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
		}), "authenticate"},
		"RSA-OAEP": {edit(func(m *pkcs7Message) {
			m.Content.Recipients[0].Alg.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
		}), "PKCS #1 v1.5"},
		"no recipients":       {edit(func(m *pkcs7Message) { m.Content.Recipients = nil }), "no recipients"},
		"too many recipients": {edit(func(m *pkcs7Message) { m.Content.Recipients = make17(m.Content.Recipients[0]) }), "17 recipients"},
		"a short tag": {edit(func(m *pkcs7Message) {
			m.Content.Content.Alg.Parameters.Bytes = must(asn1.Marshal(gcmParameters{make([]byte, 12), 4}))
			m.Content.Content.Alg.Parameters.FullBytes = nil
		}), "tag of 16"},
		"something behind it":   {append(bytes.Clone(good), 0), "after its end"},
		"cut short":             {good[:len(good)-1], "PKCS #7"},
		"too much":              {make([]byte, maxPKCS7+1), "at most"},
		"an altered ciphertext": {edit(func(m *pkcs7Message) { m.Content.Content.Data.Bytes[0] ^= 1; m.Content.Content.Data.FullBytes = nil }), "opens no recipient"},
		"an altered key":        {edit(func(m *pkcs7Message) { m.Content.Recipients[0].Key[9] ^= 1 }), "opens no recipient"},
		"a key of another size": {edit(func(m *pkcs7Message) { m.Content.Recipients[0].Key = []byte{1} }), "opens no recipient"},
	} {
		if err := opens(annotations(annotationPKCS7, c.b), privatePEM(k)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func make17[T any](v T) []T { // one more than there may be
	all := make([]T, 17)
	for i := range all {
		all[i] = v
	}
	return all
}

func FuzzJWE(f *testing.F) {
	f.Add([]byte(`{"protected":"eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00ifQ","encrypted_key":"AA","iv":"AA","ciphertext":"AA","tag":"AA"}`))
	f.Add([]byte(`{"protected":"eyJlbmMiOiJBMjU2R0NNIn0","recipients":[{"header":{"alg":"RSA-OAEP"},"encrypted_key":"AA"}],"iv":"AA","ciphertext":"AA","tag":"AA"}`))
	for _, name := range used {
		f.Add(must(must(ForPublicKey(publicPEM(pairs()[name]))).wrap(options)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseJWE(b)
		if err != nil {
			return
		}
		if n := k.recipients(); n < 1 || n > maxRecipients {
			t.Errorf("%d recipients", n)
		}
		for _, name := range []string{"P-256", "RSA 2048"} {
			if plain, err := k.open(must(parseIdentity(privatePEM(pairs()[name])))); err == nil && !bytes.Equal(plain, options) {
				t.Errorf("opens to %q", plain)
			}
		}
	})
}

func FuzzPKCS7(f *testing.F) {
	f.Add(must(must(ForCertificate(certificate(pairs()["RSA 2048"]))).wrap(options)))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parsePKCS7(b)
		if err != nil {
			return
		}
		if n := k.recipients(); n < 1 || n > maxRecipients {
			t.Errorf("%d recipients", n)
		}
		if plain, err := k.open(must(parseIdentity(privatePEM(pairs()["RSA 2048"])))); err == nil && !bytes.Equal(plain, options) {
			t.Errorf("opens to %q", plain)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	for _, name := range used {
		for _, b := range forms(pairs()[name]) {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := parseIdentity(b); err == nil && (id.rsa == nil) == (id.ec == nil) {
			t.Errorf("%+v", id)
		}
		ForPublicKey(b)
		ForCertificate(b)
	})
}
