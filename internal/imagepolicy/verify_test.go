package imagepolicy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

var (
	one     = "sha256:" + strings.Repeat("1", 64)
	another = "sha256:" + strings.Repeat("2", 64)
	index   = "sha256:" + strings.Repeat("3", 64)
)

const repository = "r.example/team/app"

// cosignPayload is byte for byte what cosign signs.
func cosignPayload(reference, digest string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, reference, digest)
}

func simplePayload(reference, digest string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"atomic container signature"},"optional":{"creator":"atomic 5","timestamp":1796000000}}`, reference, digest)
}

func public(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// sign signs as cosign does: over the hash, except with Ed25519.
func sign(t testing.TB, key crypto.Signer, hash crypto.Hash, payload []byte) Cosign {
	t.Helper()
	digest := payload
	switch hash {
	case crypto.SHA256:
		sum := sha256.Sum256(payload)
		digest = sum[:]
	case crypto.SHA384:
		sum := sha512.Sum384(payload)
		digest = sum[:]
	case crypto.SHA512:
		sum := sha512.Sum512(payload)
		digest = sum[:]
	}
	sig, err := key.Sign(rand.Reader, digest, hash)
	if err != nil {
		t.Fatal(err)
	}
	return Cosign{payload, base64.StdEncoding.EncodeToString(sig)}
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func policyOf(t testing.TB, requirements ...map[string]any) *Policy {
	t.Helper()
	b, err := json.Marshal(map[string]any{"default": []any{map[string]string{"type": "reject"}}, "transports": map[string]any{"docker": map[string]any{"r.example": requirements}}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func requires(kind string, key []byte, identity ...string) map[string]any {
	r := map[string]any{"type": kind, "keyData": base64.StdEncoding.EncodeToString(key)}
	if kind == SignedBy {
		r["keyType"] = "GPGKeys"
	}
	if len(identity) > 0 {
		id := map[string]string{"type": identity[0]}
		for i := 1; i < len(identity); i += 2 {
			id[identity[i]] = identity[i+1]
		}
		r["signedIdentity"] = id
	}
	return r
}

func noKey(string) []byte { return nil }

// is says whether err is as wanted: none for "", and otherwise a rejection with this text.
func is(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), want)) {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestKindsOfCosignKeys(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		key  crypto.Signer
		hash crypto.Hash
		want string
	}{
		"P-256":              {ecKey(t, elliptic.P256()), crypto.SHA256, ""},
		"P-384 with SHA-256": {ecKey(t, elliptic.P384()), crypto.SHA256, ""},
		"P-384 with its own": {ecKey(t, elliptic.P384()), crypto.SHA384, ""},
		"P-521 with SHA-256": {ecKey(t, elliptic.P521()), crypto.SHA256, ""},
		"P-521 with its own": {ecKey(t, elliptic.P521()), crypto.SHA512, ""},
		"P-256 with another": {ecKey(t, elliptic.P256()), crypto.SHA512, "is not good under this key"},
		"RSA of 2048 bits":   {rsaKey(t, 2048), crypto.SHA256, ""},
		"RSA with another":   {rsaKey(t, 2048), crypto.SHA512, "is not good under this key"},
		"RSA of 1024 bits":   {rsaKey(t, 1024), crypto.SHA256, "RSA of 1024 bits"},
		"Ed25519":            {ed, 0, ""},
		"P-224":              {ecKey(t, elliptic.P224()), crypto.SHA256, "on P-224"},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := Claim{Reference: repository + "@" + one, Digests: []string{one}, Cosign: []Cosign{sign(t, c.key, c.hash, cosignPayload(repository, one))}}
			p := policyOf(t, requires(SigstoreSigned, public(t, c.key)))
			is(t, p.Verify(c2, noKey, time.Now()), c.want)
		})
	}
}

func TestCosign(t *testing.T) {
	key, other := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	good := sign(t, key, crypto.SHA256, cosignPayload(repository, one))
	by := func(k crypto.Signer, payload []byte) []Cosign { return []Cosign{sign(t, k, crypto.SHA256, payload)} }
	mine, others := requires(SigstoreSigned, public(t, key)), requires(SigstoreSigned, public(t, other))
	for name, c := range map[string]struct {
		found   []Cosign
		require []map[string]any
		want    string
	}{
		"good":                        {[]Cosign{good}, []map[string]any{mine}, ""},
		"of the index":                {by(key, cosignPayload(repository, index)), []map[string]any{mine}, ""},
		"none":                        {nil, []map[string]any{mine}, "no signature was found"},
		"of another key":              {by(other, cosignPayload(repository, one)), []map[string]any{mine}, "signature 1: is not good under this key"},
		"of another image":            {by(key, cosignPayload(repository, another)), []map[string]any{mine}, "is good, and for \"" + another + "\"; the image is " + one + " or " + index},
		"of another repository":       {by(key, cosignPayload("r.example/team/other", one)), []map[string]any{mine}, `made for "r.example/team/other"`},
		"of another registry":         {by(key, cosignPayload("s.example/team/app", one)), []map[string]any{mine}, "signedIdentity"},
		"of simple signing":           {by(key, simplePayload(repository, one)), []map[string]any{mine}, "of type"},
		"one of several":              {append(by(other, cosignPayload(repository, one)), good), []map[string]any{mine}, ""},
		"one for two keys":            {[]Cosign{good}, []map[string]any{mine, others}, `transports.docker["r.example"][1] asks for sigstoreSigned`},
		"two for two keys":            {append(by(other, cosignPayload(repository, one)), good), []map[string]any{mine, others}, ""},
		"and accepted anyway":         {nil, []map[string]any{{"type": InsecureAcceptAnything}, mine}, "no signature was found"},
		"good, and rejected":          {[]Cosign{good}, []map[string]any{mine, {"type": Reject}}, "rejected"},
		"another payload":             {[]Cosign{{cosignPayload(repository, another), good.Signature}}, []map[string]any{mine}, "is not good"},
		"no base64":                   {[]Cosign{{good.Payload, "!"}}, []map[string]any{mine}, "is not base64"},
		"cut short":                   {[]Cosign{{good.Payload, good.Signature[:8]}}, []map[string]any{mine}, "is not good"},
		"a payload that is none":      {by(key, []byte(`{}`)), []map[string]any{mine}, `member "critical": missing`},
		"a payload of two digests":    {by(key, bytes.Replace(good.Payload, []byte(`"image":{`), []byte(`"image":{"docker-manifest-digest":"x",`), 1)), []map[string]any{mine}, "twice"},
		"a payload with more":         {by(key, bytes.Replace(good.Payload, []byte(`"image":`), []byte(`"more":1,"image":`), 1)), []map[string]any{mine}, "unknown"},
		"a payload of another case":   {by(key, bytes.Replace(good.Payload, []byte(`"image":`), []byte(`"Image":`), 1)), []map[string]any{mine}, "Image"},
		"too many":                    {make([]Cosign, MaxSignatures+1), []map[string]any{mine}, "65 signatures were found"},
		"another identity":            {by(key, cosignPayload("s.example/x", one)), []map[string]any{requires(SigstoreSigned, public(t, key), "exactRepository", "dockerRepository", "s.example/x")}, ""},
		"not that identity":           {[]Cosign{good}, []map[string]any{requires(SigstoreSigned, public(t, key), "exactRepository", "dockerRepository", "s.example/x")}, "signedIdentity"},
		"two keys in one":             {[]Cosign{good}, []map[string]any{requires(SigstoreSigned, append(public(t, other), public(t, key)...))}, "one PUBLIC KEY"},
		"a key that cannot be parsed": {[]Cosign{good}, []map[string]any{requires(SigstoreSigned, []byte(publicKey))}, "the key"},
	} {
		t.Run(name, func(t *testing.T) {
			is(t, policyOf(t, c.require...).Verify(Claim{repository + "@" + one, []string{one, index}, c.found, nil}, noKey, time.Now()), c.want)
		})
	}
}

// gpgKey makes a key that signs as skopeo would have gpg do it.
func gpgKey(t testing.TB) (ring []byte, signs func(payload []byte) []byte) {
	t.Helper()
	config := &packet.Config{Algorithm: packet.PubKeyAlgoEd25519}
	e, err := openpgp.NewEntity("test", "", "", config)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), func(payload []byte) []byte {
		var b bytes.Buffer
		w, err := openpgp.Sign(&b, e, nil, config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, bytes.NewReader(payload)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
}

func TestSimpleSigning(t *testing.T) {
	ring, signs := gpgKey(t)
	others, otherSigns := gpgKey(t)
	good := signs(simplePayload(repository+":v1", one))
	for name, c := range map[string]struct {
		found []byte
		key   []byte
		want  string
	}{
		"good":                  {good, ring, ""},
		"of the index":          {signs(simplePayload(repository+":v1", index)), ring, ""},
		"none":                  {nil, ring, "no signature was found"},
		"of another key":        {otherSigns(simplePayload(repository+":v1", one)), ring, "none of these"},
		"of one of two keys":    {good, append(bytes.Clone(others), ring...), ""},
		"of another image":      {signs(simplePayload(repository+":v1", another)), ring, "is good, and for \"" + another},
		"of another repository": {signs(simplePayload("r.example/team/other:v1", one)), ring, `made for "r.example/team/other:v1"`},
		"of no tag":             {signs(simplePayload(repository, one)), ring, "signedIdentity"},
		"of cosign":             {signs(cosignPayload(repository+":v1", one)), ring, "of type"},
		"altered":               {bytes.Replace(good, []byte(one), []byte(another), 1), ring, "is not good"},
		"no message":            {simplePayload(repository+":v1", one), ring, "is not in OpenPGP packets"},
		"no keys":               {good, []byte("\x99"), "OpenPGP keys"},
	} {
		t.Run(name, func(t *testing.T) {
			claim := Claim{Reference: "docker://" + repository + "@" + one, Digests: []string{one, index}}
			if c.found != nil {
				claim.Simple = [][]byte{c.found}
			}
			is(t, policyOf(t, requires(SignedBy, c.key)).Verify(claim, noKey, time.Now()), c.want)
		})
	}
}

func TestKeysByPath(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	p := policyOf(t, map[string]any{"type": SigstoreSigned, "keyPath": "kbs:///default/cosign/key"}, map[string]any{"type": SignedBy, "keyType": "GPGKeys", "keyPath": "kbs:///default/gpg/key"})
	if got := p.KeyPaths(repository + ":v1"); fmt.Sprint(got) != "[default/cosign/key default/gpg/key]" {
		t.Errorf("paths %q", got)
	}
	if cosign, simple := p.Needs(repository + ":v1"); !cosign || !simple {
		t.Errorf("needs cosign: %v, simple: %v", cosign, simple)
	}
	if got := p.KeyPaths("s.example/x"); len(got) != 0 {
		t.Errorf("paths %q of what is rejected", got)
	}
	ring, signs := gpgKey(t)
	keys := map[string][]byte{"default/cosign/key": public(t, key), "default/gpg/key": ring}
	claim := Claim{repository + ":v1", []string{one}, []Cosign{sign(t, key, crypto.SHA256, cosignPayload(repository, one))}, [][]byte{signs(simplePayload(repository+":v1", one))}}
	at := func(path string) []byte { return keys[path] }
	is(t, p.Verify(claim, at, time.Now()), "")
	delete(keys, "default/gpg/key")
	is(t, p.Verify(claim, at, time.Now()), `signedBy with the key in "kbs:///default/gpg/key": OpenPGP keys: there are none`)
	delete(keys, "default/cosign/key")
	is(t, p.Verify(claim, at, time.Now()), `sigstoreSigned with the key in "kbs:///default/cosign/key": the key is not`)
}

// TestIdentities: the rules of containers-policy.json(5). A dash in front says that it must not match.
func TestIdentities(t *testing.T) {
	id := func(kind string, more ...string) *Identity {
		i := &Identity{Type: kind}
		switch kind {
		case "exactReference":
			i.Reference = more[0]
		case "exactRepository":
			i.Repository = more[0]
		case "remapIdentity":
			i.Prefix, i.SignedPrefix = more[0], more[1]
		}
		return i
	}
	for _, c := range []struct {
		id   *Identity
		kind string
		ref  string
		all  []string
	}{
		{nil, SignedBy, "r.example/a:v1", []string{"r.example/a:v1", "R.example/a:v1", "-r.example/a:v2", "-r.example/a", "-r.example/a@" + one, "-r.example/b:v1", "-r.example/a:", "-", "-r.example", "-r.example:5000/a:v1"}},
		{nil, SignedBy, "r.example/a@" + one, []string{"r.example/a:v1", "r.example/a:v2", "r.example/a@" + one, "-r.example/a", "-r.example/b:v1"}},
		{nil, SignedBy, "docker://r.example/a:v1@" + one, []string{"r.example/a:v1", "r.example/a:v2", "-r.example/a"}},
		{nil, SignedBy, "r.example/a", []string{"-r.example/a", "-r.example/a:v1"}},
		{nil, SigstoreSigned, "r.example/a:v1", []string{"r.example/a", "r.example/a:v2", "-r.example/a/b", "-r.example/b"}},
		{nil, SigstoreSigned, "docker.io/python@" + one, []string{"index.docker.io/library/python", "docker.io/python:3", "-docker.io/team/python"}},
		{id("matchExact"), SignedBy, "r.example/a:v1", []string{"r.example/a:v1", "-r.example/a:v2", "-r.example/a"}},
		{id("matchExact"), SignedBy, "r.example/a@" + one, []string{"r.example/a@" + one, "-r.example/a:v1", "-r.example/a@" + another}},
		{id("matchExact"), SignedBy, "r.example/a", []string{"-r.example/a", "-r.example/a:latest"}},
		{id("matchRepository"), SignedBy, "r.example/a:v1", []string{"r.example/a", "r.example/a:v2", "-r.example/b"}},
		{id("exactReference", "s.example/x:1"), SignedBy, "r.example/a:v1", []string{"s.example/x:1", "-s.example/x:2", "-s.example/x", "-r.example/a:v1"}},
		{id("exactReference", "s.example/x"), SignedBy, "r.example/a:v1", []string{"-s.example/x"}},
		{id("exactRepository", "s.example/x"), SignedBy, "r.example/a:v1", []string{"s.example/x:1", "s.example/x", "-s.example/y", "-r.example/a:v1"}},
		{id("remapIdentity", "mirror.example/r", "r.example"), SignedBy, "mirror.example/r/a:v1", []string{"r.example/a:v1", "-r.example/a:v2", "-mirror.example/r/a:v1"}},
		{id("remapIdentity", "mirror.example/r", "r.example"), SignedBy, "mirror.example/rr/a:v1", []string{"mirror.example/rr/a:v1", "-r.example/r/a:v1", "-r.exampler/a:v1"}},
		{id("remapIdentity", "mirror.example/a", "r.example/b"), SignedBy, "mirror.example/a@" + one, []string{"r.example/b:v9", "-r.example/a:v9"}},
	} {
		for _, signed := range c.all {
			ref, not := strings.CutPrefix(signed, "-")
			if c.id.matches(c.kind, c.ref, ref) == not {
				t.Errorf("%+v of %s: %s stands for %s: %v", c.id, c.kind, ref, c.ref, !not)
			}
		}
	}
}

// FuzzPayload holds that what is read has one meaning: encoding/json finds the same in it.
func FuzzPayload(f *testing.F) {
	f.Add(cosignPayload(repository, one))
	f.Add(simplePayload(repository+":v1", one))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readPayload(b)
		if err != nil {
			return
		}
		var all struct {
			Critical struct {
				Type     string
				Image    map[string]string
				Identity map[string]string
			}
		}
		if err := json.Unmarshal(b, &all); err != nil {
			t.Fatal(err)
		}
		c := all.Critical
		if p != (payload{c.Type, c.Image["docker-manifest-digest"], c.Identity["docker-reference"]}) {
			t.Fatalf("%+v, and encoding/json reads %+v", p, c)
		}
		(*Identity)(nil).matches(SignedBy, p.reference, p.reference)
	})
}
