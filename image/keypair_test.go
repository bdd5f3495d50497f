package image

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap"
	ocijwe "github.com/containers/ocicrypt/keywrap/jwe"
	ocipkcs7 "github.com/containers/ocicrypt/keywrap/pkcs7"
	"github.com/go-jose/go-jose/v4"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// pairs are key pairs for all tests: RSA keys take long to make.
var pairs = sync.OnceValue(func() map[string]crypto.Signer {
	all := map[string]crypto.Signer{}
	for name, c := range map[string]elliptic.Curve{"P-224": elliptic.P224(), "P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()} {
		all[name], _ = ecdsa.GenerateKey(c, rand.Reader)
	}
	all["RSA 2048"], _ = rsa.GenerateKey(rand.Reader, 2048)
	all["RSA 3072"], _ = rsa.GenerateKey(rand.Reader, 3072)
	all["RSA 1024"], _ = rsa.GenerateKey(rand.Reader, 1024)
	_, all["Ed25519"], _ = ed25519.GenerateKey(rand.Reader)
	return all
})

// used are the pairs that are encrypted to.
var used = []string{"P-256", "P-384", "P-521", "RSA 2048", "RSA 3072"}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func privatePEM(k crypto.Signer) []byte {
	return pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(k)))
}

func publicPEM(k crypto.Signer) []byte {
	return pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(k.Public())))
}

// forms are all that a private key may be stored as.
func forms(k crypto.Signer) map[string][]byte {
	all := map[string][]byte{
		"PKCS #8 PEM": privatePEM(k),
		"PKCS #8 DER": must(x509.MarshalPKCS8PrivateKey(k)),
		"JWK":         must(jose.JSONWebKey{Key: k}.MarshalJSON()),
	}
	switch k := k.(type) {
	case *rsa.PrivateKey:
		all["PKCS #1 DER"] = x509.MarshalPKCS1PrivateKey(k)
		all["PKCS #1 PEM"] = pemOf("RSA PRIVATE KEY", all["PKCS #1 DER"])
	case *ecdsa.PrivateKey:
		all["SEC 1 DER"] = must(x509.MarshalECPrivateKey(k))
		all["SEC 1 PEM of openssl"] = append(pemOf("EC PARAMETERS", []byte{6, 0}), pemOf("EC PRIVATE KEY", all["SEC 1 DER"])...)
	}
	return all
}

func certificate(k crypto.Signer) []byte {
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "guest"}, NotAfter: time.Now().Add(time.Hour)}
	return must(x509.CreateCertificate(rand.Reader, c, c, k.Public(), k))
}

var options = []byte(`{"symkey":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `","digest":"sha256:` + strings.Repeat("a", 64) +
	`","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`)

// annotations are those of a layer with these recipients.
func annotations(annotation string, items ...[]byte) map[string]string {
	var text []string
	for _, b := range items {
		text = append(text, base64.StdEncoding.EncodeToString(b))
	}
	pub := fmt.Sprintf(`{"cipher":%q,"hmac":%q,"cipheroptions":{}}`, layerCipher, base64.StdEncoding.EncodeToString(make([]byte, macSize)))
	return map[string]string{annotation: strings.Join(text, ","), annotationOpts: base64.StdEncoding.EncodeToString([]byte(pub))}
}

// opens tells whether a private key opens a layer that has these annotations.
func opens(an map[string]string, key []byte) error {
	s, err := parseSealing(an)
	if err != nil {
		return err
	}
	_, err = s.unwrap(Keys{"default/key/pair": bytes.Clone(key)})
	return err
}

func wrapped(t *testing.T, w keywrap.KeyWrapper, parameter string, keys ...[]byte) []byte {
	t.Helper()
	b, err := w.WrapKeys(&config.EncryptConfig{Parameters: map[string][][]byte{parameter: keys}}, options)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestJWEOfOcicrypt: what ocicrypt has wrapped opens with the private key in every form, and with no other key.
func TestJWEOfOcicrypt(t *testing.T) {
	var public [][]byte
	for _, name := range used {
		k := pairs()[name]
		public = append(public, publicPEM(k))
		an := annotations(annotationJWE, wrapped(t, ocijwe.NewKeyWrapper(), "pubkeys", publicPEM(k)))
		for form, b := range forms(k) {
			if err := opens(an, b); err != nil {
				t.Errorf("%s as %s: %v", name, form, err)
			}
			if err := CheckIdentity(b); err != nil {
				t.Errorf("%s as %s: %v", name, form, err)
			}
		}
		for _, other := range used {
			if err := opens(an, privatePEM(pairs()[other])); (err == nil) != (other == name) || err != nil && !errors.Is(err, ErrKey) {
				t.Errorf("one for %s and the key of %s: %v", name, other, err)
			}
		}
	}
	all := annotations(annotationJWE, wrapped(t, ocijwe.NewKeyWrapper(), "pubkeys", public...))
	for _, name := range used {
		if err := opens(all, privatePEM(pairs()[name])); err != nil {
			t.Errorf("one for all, and the key of %s: %v", name, err)
		}
	}
	for _, alg := range jweKeys {
		k := pairs()["P-384"]
		if strings.HasPrefix(string(alg), "RSA") {
			k = pairs()["RSA 2048"]
		}
		jwk := must(jose.JSONWebKey{Key: k.Public(), Algorithm: string(alg)}.MarshalJSON())
		if err := opens(annotations(annotationJWE, wrapped(t, ocijwe.NewKeyWrapper(), "pubkeys", jwk)), privatePEM(k)); err != nil {
			t.Errorf("%s of ocicrypt: %v", alg, err)
		}
		ours, err := ForPublicKey(jwk)
		if err != nil {
			t.Fatal(err)
		}
		b := must(ours.wrap(options))
		if err := opens(annotations(annotationJWE, b), privatePEM(k)); err != nil || !strings.Contains(decoded(b), `"`+string(alg)+`"`) {
			t.Errorf("%s of ours: %v, %s", alg, err, decoded(b))
		}
	}
	for _, enc := range jweContent {
		k := pairs()["P-256"]
		e := must(jose.NewEncrypter(enc, jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: k.Public()}, nil))
		if err := opens(annotations(annotationJWE, []byte(must(e.Encrypt(options)).FullSerialize())), privatePEM(k)); err != nil {
			t.Errorf("%s: %v", enc, err)
		}
	}
}

// decoded is a JWE with its protected header readable.
func decoded(jwe []byte) string {
	var m jweMessage
	json.Unmarshal(jwe, &m)
	h, _ := base64.RawURLEncoding.DecodeString(m.Protected)
	return string(h) + string(jwe)
}

// TestOcicryptReadsOurs: JWE and PKCS #7, by ocicrypt's own code.
func TestOcicryptReadsOurs(t *testing.T) {
	for _, name := range used {
		k := pairs()[name]
		for form, pub := range map[string][]byte{"PEM": publicPEM(k), "DER": must(x509.MarshalPKIXPublicKey(k.Public())), "JWK": must(jose.JSONWebKey{Key: k.Public()}.MarshalJSON())} {
			to, err := ForPublicKey(pub)
			if err != nil {
				t.Fatal(err)
			}
			dc := &config.DecryptConfig{Parameters: map[string][][]byte{"privkeys": {privatePEM(k)}, "privkeys-passwords": {nil}}}
			if got, err := ocijwe.NewKeyWrapper().UnwrapKey(dc, must(to.wrap(options))); err != nil || !bytes.Equal(got, options) {
				t.Errorf("JWE for %s as %s: %q, %v", name, form, got, err)
			}
		}
	}
	for _, name := range []string{"RSA 2048", "RSA 3072"} {
		k := pairs()[name]
		cert := certificate(k)
		to, err := ForCertificate(pemOf("CERTIFICATE", cert))
		if err != nil {
			t.Fatal(err)
		}
		dc := &config.DecryptConfig{Parameters: map[string][][]byte{"privkeys": {privatePEM(k)}, "privkeys-passwords": {nil}, "x509s": {cert}}}
		if got, err := ocipkcs7.NewKeyWrapper().UnwrapKey(dc, must(to.wrap(options))); err != nil || !bytes.Equal(got, options) {
			t.Errorf("PKCS #7 for %s: %q, %v", name, got, err)
		}
	}
}

// TestPKCS7OfOcicrypt as TestJWEOfOcicrypt.
func TestPKCS7OfOcicrypt(t *testing.T) {
	small, large := pairs()["RSA 2048"], pairs()["RSA 3072"]
	for name, certs := range map[string][][]byte{"the first": {certificate(large), certificate(small)}, "the last": {certificate(small), certificate(large)}, "the only one": {certificate(large)}} {
		an := annotations(annotationPKCS7, wrapped(t, ocipkcs7.NewKeyWrapper(), "x509s", certs...))
		for form, b := range forms(large) {
			if err := opens(an, b); err != nil {
				t.Errorf("%s of %d, as %s: %v", name, len(certs), form, err)
			}
		}
		if err := opens(an, privatePEM(small)); (err == nil) != (len(certs) == 2) {
			t.Errorf("%s of %d, another key: %v", name, len(certs), err)
		}
		if err := opens(an, privatePEM(pairs()["P-256"])); !errors.Is(err, ErrKey) {
			t.Errorf("%s of %d, an EC key: %v", name, len(certs), err)
		}
	}
}

// TestAllKindsOfRecipients: one image, and each of those that it is for opens it.
func TestAllKindsOfRecipients(t *testing.T) {
	s := newShelf(t)
	src := mustLoad(t, s.image(t, "plain", twoLayers(t)...))
	a, b := NewKey(), NewKey()
	ec, rsa2, other := pairs()["P-256"], pairs()["RSA 2048"], pairs()["P-384"]
	to := []Recipient{
		must(ForKey(a, "kbs:///default/key/a", EncryptOptions{})), must(ForKey(b, "kbs:///default/key/b", EncryptOptions{PacketV2: true})),
		must(ForPublicKey(publicPEM(ec))), must(ForPublicKey(publicPEM(rsa2))), must(ForCertificate(certificate(rsa2))),
	}
	img, err := EncryptFor(t.Context(), src, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	uri := s.store(t, "sealed", img, nil)
	for name, keys := range map[string]func() Keys{
		"the first key":  func() Keys { return Keys{"default/key/a": bytes.Clone(a)} },
		"the second key": func() Keys { return Keys{"default/key/b": bytes.Clone(b)} },
		"the EC key":     func() Keys { return Keys{"x/y/z": privatePEM(ec)} },
		"the RSA key":    func() Keys { return Keys{"x/y/z": privatePEM(rsa2)} },
		"one key of many": func() Keys {
			return Keys{"x/y/w": privatePEM(other), "x/y/z": privatePEM(rsa2), "x/y/v": bytes.Clone(a)}
		},
	} {
		if _, err := unpack(t, uri, keys(), Limits{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		keys Keys
		want string
	}{
		"another pair":        {Keys{"x/y/z": privatePEM(other)}, "x/y/z: the private key opens no recipient"},
		"another packet key":  {Keys{"x/y/z": NewKey()}, "x/y/z: has 32 bytes"},
		"a key under its id":  {Keys{"default/key/a": bytes.Clone(b)}, "default/key/a: the key does not open the packet"},
		"something else":      {Keys{"x/y/z": []byte("hello")}, "x/y/z: is no private key"},
		"nothing":             {nil, "no private key was given"},
		"a public key":        {Keys{"x/y/z": publicPEM(ec)}, "is no private key"},
		"a public JWK":        {Keys{"x/y/z": must(jose.JSONWebKey{Key: ec.Public()}.MarshalJSON())}, "no JWK of a private key"},
		"an RSA key too weak": {Keys{"x/y/z": privatePEM(pairs()["RSA 1024"])}, "1024 bits; want 2048 to 8192"},
		"another curve":       {Keys{"x/y/z": privatePEM(pairs()["P-224"])}, "P-224; want P-256"},
		"a signing key":       {Keys{"x/y/z": privatePEM(pairs()["Ed25519"])}, "neither RSA nor EC"},
		"a passphrase":        {Keys{"x/y/z": pemOf("ENCRYPTED PRIVATE KEY", []byte{1})}, "has a passphrase"},
	} {
		if _, err := unpack(t, uri, c.keys, Limits{}); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := EncryptFor(t.Context(), src, nil, nil); !errors.Is(err, ErrKey) {
		t.Errorf("for nobody: %v", err)
	}
	if _, err := EncryptFor(t.Context(), src, make([]Recipient, maxRecipients+1), nil); !errors.Is(err, ErrKey) {
		t.Errorf("for too many: %v", err)
	}
}

// TestRecipientsThatAreNone: what cannot be encrypted to is said at once.
func TestRecipientsThatAreNone(t *testing.T) {
	jwk := func(alg string, k any) []byte { return must(jose.JSONWebKey{Key: k, Algorithm: alg}.MarshalJSON()) }
	for name, c := range map[string]struct {
		make func([]byte) (Recipient, error)
		b    []byte
		want string
	}{
		"a private JWK":             {ForPublicKey, jwk("", pairs()["P-256"]), "no JWK of a public key"},
		"a weak RSA key":            {ForPublicKey, publicPEM(pairs()["RSA 1024"]), "1024 bits"},
		"a curve that nobody reads": {ForPublicKey, publicPEM(pairs()["P-224"]), "P-224"},
		"a signing key":             {ForPublicKey, publicPEM(pairs()["Ed25519"]), "ed25519"},
		"RSA with PKCS #1 v1.5":     {ForPublicKey, jwk("RSA1_5", pairs()["RSA 2048"].Public()), "RSA1_5"},
		"direct agreement":          {ForPublicKey, jwk("ECDH-ES", pairs()["P-256"].Public()), "ECDH-ES"},
		"an EC key for RSA":         {ForPublicKey, jwk("RSA-OAEP", pairs()["P-256"].Public()), "RSA-OAEP"},
		"text":                      {ForPublicKey, []byte("hello"), "want RSA or EC"},
		"an EC certificate":         {ForCertificate, certificate(pairs()["P-256"]), "for EC use JWE"},
		"no certificate":            {ForCertificate, publicPEM(pairs()["P-256"]), "certificate: "},
	} {
		if _, err := c.make(c.b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestOtherProviders: a key provider's name is its user's choice; CoCo's packets under another one open, and another
// provider's packets do no harm.
func TestOtherProviders(t *testing.T) {
	kek := NewKey()
	p := must(wrapper{kek: kek, kid: "kbs:///default/key/k"}.wrap(options))
	sample := must(wrapper{kek: kek, kid: "kbs:///default/test-key/1"}.wrap(options))
	foreign := []byte(`{"key_url":"https://keys.example/1"}`)
	for name, c := range map[string]struct {
		more map[string]string
		want error
	}{
		"under another name":                    {annotations(annotationProvider+"coco", p), nil},
		"beside another provider's":             {merge(annotations(annotationProvider+"a-first", foreign), annotations(annotationKeys, p)), nil},
		"beside a JWE for somebody":             {merge(annotations(annotationKeys, p), annotations(annotationJWE, must(must(ForPublicKey(publicPEM(pairs()["P-384"]))).wrap(options)))), nil},
		"beside a JWE that is none":             {merge(annotations(annotationKeys, p), annotations(annotationJWE, []byte("x"))), nil},
		"another provider's alone":              {annotations(annotationProvider+"other", foreign), ErrKey},
		"for PGP alone":                         {annotations(annotationPrefix+"keys.pgp", []byte("x")), ErrKey},
		"the sample key under another name":     {merge(annotations(annotationKeys, p), annotations(annotationProvider+"coco", sample)), ErrSampleKey},
		"more than the annotations may have":    {merge(annotations(annotationKeys, p), annotations(annotationProvider+"x", make([]byte, maxAnnotation))), ErrTooBig},
		"more recipients than there may be":     {annotations(annotationKeys, make17(p)...), ErrTooBig},
		"and in annotations taken all together": {merge(annotations(annotationKeys, make17(p)[:9]...), annotations(annotationProvider+"x", make17(p)[:9]...)), ErrTooBig},
	} {
		s, err := parseSealing(c.more)
		if err == nil {
			_, err = s.unwrap(Keys{"default/key/k": bytes.Clone(kek)})
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func merge(all ...map[string]string) map[string]string {
	m := map[string]string{}
	for _, a := range all {
		for k, v := range a {
			m[k] = v
		}
	}
	return m
}

// TestWants: which key to ask for, by what the image says and what the manifest grants.
func TestWants(t *testing.T) {
	packets := func(paths ...string) Layer {
		var items [][]byte
		for _, p := range paths {
			items = append(items, must(wrapper{kek: make([]byte, 32), kid: "kbs:///" + p}.wrap(options)))
		}
		return Layer{Encrypted: true, enc: must(parseSealing(annotations(annotationKeys, items...)))}
	}
	pair := Layer{Encrypted: true, enc: must(parseSealing(annotations(annotationJWE, must(must(ForPublicKey(publicPEM(pairs()["P-256"]))).wrap(options)))))}
	both := Layer{Encrypted: true, enc: &sealing{packets: packets("a/b/c").enc.packets, unnamed: pair.enc.unnamed}}
	for name, c := range map[string]struct {
		layers  []Layer
		granted string
		want    string
		err     string
	}{
		"nothing is encrypted":                        {[]Layer{{}}, "", "", ""},
		"the image says":                              {[]Layer{packets("a/b/c", "d/e/f"), {}, packets("a/b/d")}, "", "a/b/c a/b/d", ""},
		"the first recipient is granted":              {[]Layer{packets("a/b/c", "d/e/f")}, "a/b/c", "a/b/c", ""},
		"the second recipient is granted":             {[]Layer{packets("a/b/c", "d/e/f"), packets("d/e/f")}, "d/e/f", "d/e/f", ""},
		"another one is granted":                      {[]Layer{packets("a/b/c", "d/e/f")}, "x/y/z", "", `asks for key "a/b/c" and the manifest grants it "x/y/z"`},
		"one layer is for another":                    {[]Layer{packets("a/b/c"), packets("d/e/f")}, "a/b/c", "", `layer 1: no usable key: the image asks for key "d/e/f"`},
		"a pair, and a private key is granted":        {[]Layer{pair}, "x/y/z", "x/y/z", ""},
		"a pair, and nothing is granted":              {[]Layer{pair}, "", "", "kbs_resource_path"},
		"a pair beside a packet, and it is for that":  {[]Layer{both}, "x/y/z", "x/y/z", ""},
		"a pair beside a packet, and nothing granted": {[]Layer{both}, "", "a/b/c", ""},
		"a pair in one layer and a packet in another": {[]Layer{pair, packets("a/b/c")}, "x/y/z", "", "layer 1"},
	} {
		got, err := (&Image{Layers: c.layers}).Wants(c.granted)
		if strings.Join(got, " ") != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v; want %q, %q", name, got, err, c.want, c.err)
		}
	}
}

// TestStaleRecipients: a plain image that carries recipients of some other encryption gets none of them along.
func TestStaleRecipients(t *testing.T) {
	s := newShelf(t)
	src := mustLoad(t, s.store(t, "stale", mustLoad(t, s.image(t, "plain", twoLayers(t)...)), func(m *v1.Manifest, _ [][]byte) {
		m.Layers[0].Annotations = map[string]string{annotationJWE: "eHg=", "org.example.kept": "1"}
	}))
	img := must(EncryptFor(t.Context(), src, []Recipient{must(ForPublicKey(publicPEM(pairs()["P-256"])))}, nil))
	an := must(img.Manifest()).Layers[0].Annotations
	if len(an) != 3 || an["org.example.kept"] != "1" || strings.Contains(an[annotationJWE], ",") {
		t.Errorf("%v", an)
	}
}
