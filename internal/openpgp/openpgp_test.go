package openpgp

import (
	"bytes"
	"crypto"
	"io"
	"strings"
	"testing"
	"time"

	library "github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgp "github.com/ProtonMail/go-crypto/openpgp/packet"
)

const said = `{"critical":{"type":"atomic container signature"}}`

func entityOf(t testing.TB, c *pgp.Config, change ...func(*library.Entity) error) *library.Entity {
	t.Helper()
	e, err := library.NewEntity("test", "", "test@example.org", c)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		if err := f(e); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func public(t testing.TB, e *library.Entity) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func message(t testing.TB, e *library.Entity, c *pgp.Config) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := library.Sign(&b, e, nil, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, said); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAgainstTheLibrary: what it signs verifies here, except by keys that this package does not know.
func TestAgainstTheLibrary(t *testing.T) {
	for name, c := range map[string]struct {
		config pgp.Config
		want   string
	}{
		"RSA":                    {pgp.Config{Algorithm: pgp.PubKeyAlgoRSA, RSABits: 2048}, ""},
		"EdDSA":                  {pgp.Config{Algorithm: pgp.PubKeyAlgoEdDSA, Curve: pgp.Curve25519}, ""},
		"Ed25519":                {pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519}, ""},
		"P-256":                  {pgp.Config{Algorithm: pgp.PubKeyAlgoECDSA, Curve: pgp.CurveNistP256}, ""},
		"P-384, SHA-384":         {pgp.Config{Algorithm: pgp.PubKeyAlgoECDSA, Curve: pgp.CurveNistP384, DefaultHash: crypto.SHA384}, ""},
		"P-521, SHA-512":         {pgp.Config{Algorithm: pgp.PubKeyAlgoECDSA, Curve: pgp.CurveNistP521, DefaultHash: crypto.SHA512}, ""},
		"secp256k1":              {pgp.Config{Algorithm: pgp.PubKeyAlgoECDSA, Curve: pgp.CurveSecP256k1}, "none of these"},
		"Ed448":                  {pgp.Config{Algorithm: pgp.PubKeyAlgoEd448}, "none of these"},
		"SHA3-256":               {pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519, DefaultHash: crypto.SHA3_256}, "none of these"},
		"a key of version 6":     {pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519, V6Keys: true}, "of version 6"},
		"a signature of seconds": {pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519, SigLifetimeSecs: 1, Time: func() time.Time { return time.Now().Add(-time.Minute) }}, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			e := entityOf(t, &c.config)
			keys, err := ReadKeys(public(t, e))
			var content []byte
			if err == nil {
				content, _, err = keys.Verify(message(t, e, &c.config), time.Now())
			}
			if c.want == "" && (err != nil || string(content) != said) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%q, %v, want %q", content, err, c.want)
			}
		})
	}
}

func TestKeysOfTheLibrary(t *testing.T) {
	quick := &pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519}
	ago := func(d time.Duration) *pgp.Config {
		return &pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519, Time: func() time.Time { return time.Now().Add(-d) }}
	}
	addSub := func(e *library.Entity) error { return e.AddSigningSubkey(quick) }
	for name, c := range map[string]struct {
		config *pgp.Config
		change func(*library.Entity) error
		after  func(*library.Entity) error // the message is signed
		want   string
	}{
		"a subkey": {quick, addSub, nil, ""},
		"a subkey that does not agree": {quick, addSub, func(e *library.Entity) error {
			e.Subkeys[len(e.Subkeys)-1].Sig.EmbeddedSignature = nil
			return e.Subkeys[len(e.Subkeys)-1].Sig.SignKey(e.Subkeys[len(e.Subkeys)-1].PublicKey, e.PrivateKey, quick)
		}, "none of these"},
		"a subkey bound by another": {quick, addSub, func(e *library.Entity) error {
			stranger := entityOf(t, quick, addSub)
			e.Subkeys[len(e.Subkeys)-1].Sig = stranger.Subkeys[len(stranger.Subkeys)-1].Sig
			return nil
		}, "none of these"},
		"a subkey for encryption alone": {quick, addSub, func(e *library.Entity) error {
			s := e.Subkeys[len(e.Subkeys)-1].Sig
			s.FlagSign, s.FlagEncryptStorage = false, true
			return s.SignKey(e.Subkeys[len(e.Subkeys)-1].PublicKey, e.PrivateKey, quick)
		}, "none of these"},
		"a primary key for certification alone": {quick, nil, func(e *library.Entity) error {
			for _, id := range e.Identities {
				id.SelfSignature.FlagSign = false
				return id.SelfSignature.SignUserId(id.UserId.Id, e.PrimaryKey, e.PrivateKey, quick)
			}
			return nil
		}, "none of these"},
		"a revoked key": {quick, nil, func(e *library.Entity) error { return e.RevokeKey(pgp.KeyCompromised, "", quick) }, "none of these"},
		"a revoked subkey": {quick, addSub, func(e *library.Entity) error {
			return e.RevokeSubkey(&e.Subkeys[len(e.Subkeys)-1], pgp.KeyRetired, "", quick)
		}, "none of these"},
		"a key without a self-signature": {quick, nil, func(e *library.Entity) error {
			for _, id := range e.Identities {
				id.SelfSignature, id.Signatures = nil, nil
				id.SelfSignature = entitySelf(t)
			}
			return nil
		}, "none of these"},
		"a key that expired": {&pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519, KeyLifetimeSecs: 60, Time: ago(time.Hour).Time}, nil, nil, "which expired on"},
	} {
		t.Run(name, func(t *testing.T) {
			change := c.change
			if change == nil {
				change = func(*library.Entity) error { return nil }
			}
			e := entityOf(t, c.config, change)
			m := message(t, e, c.config)
			if c.after != nil {
				if err := c.after(e); err != nil {
					t.Fatal(err)
				}
			}
			keys, err := ReadKeys(public(t, e))
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = keys.Verify(m, time.Now())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// entitySelf is a self-signature of somebody else.
func entitySelf(t *testing.T) *pgp.Signature {
	s, _ := entityOf(t, &pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519}).PrimarySelfSignature()
	return s
}

func TestArmour(t *testing.T) {
	e := entityOf(t, &pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519})
	var b bytes.Buffer
	w, err := armor.Encode(&b, library.PublicKeyType, map[string]string{"Comment": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(public(t, e)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	if k, err := ReadKeys([]byte("\n" + text + "\n\n" + strings.ReplaceAll(text, "\n", "\r\n"))); err != nil || len(k.entities) != 2 {
		t.Errorf("two blocks: %v", err)
	}
	for name, c := range map[string]struct{ in, want string }{
		"nothing":             {"", "there are none"},
		"no end":              {strings.Replace(text, "-----END", "", 1), "no end"},
		"another kind":        {strings.ReplaceAll(text, "PUBLIC KEY", "PRIVATE KEY"), "is outside of a block of public keys"},
		"something before it": {"x\n" + text, "is not in OpenPGP packets"},
		"something after it":  {text + "\nx", "is outside of a block"},
		"no base64":           {strings.Replace(text, "\n\n", "\n\n!", 1), "is not base64"},
		"too much":            {strings.Repeat("\n", MaxKeys) + text, "at most"},
		"a key cut short":     {string(public(t, e)[:20]), "cut short"},
		"a message":           {string(message(t, e, nil)), "want a public key"},
	} {
		if _, err := ReadKeys([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// FuzzVerify holds that the library takes for good whatever is taken for good here, and for the same.
func FuzzVerify(f *testing.F) {
	var rings []*Keys
	var theirs library.EntityList
	for name := range recorded {
		k, m := record(f, name)
		rings = append(rings, k)
		f.Add(m)
		for _, e := range k.entities {
			raw := append([]byte{0xc6, 0xff, 0, 0, byte(len(e.primary.body) >> 8), byte(len(e.primary.body))}, e.primary.body...)
			p, err := pgp.Read(bytes.NewReader(raw))
			if err != nil {
				f.Fatal(err)
			}
			if got := p.(*pgp.PublicKey).Fingerprint; !bytes.Equal(got, e.primary.fingerprint[:]) {
				f.Fatalf("%s is %X, and the library says %X", name, e.primary.fingerprint, got)
			}
		}
		theirs = append(theirs, libraryRing(f, name)...)
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, k := range rings {
			content, _, err := k.Verify(b, now)
			if err != nil {
				continue
			}
			md, err := library.ReadMessage(bytes.NewReader(b), theirs, nil, nil)
			if err != nil {
				t.Fatalf("the library cannot read it: %v", err)
			}
			got, err := io.ReadAll(md.UnverifiedBody)
			if err != nil || md.SignatureError != nil || !bytes.Equal(got, content) {
				t.Fatalf("%q here and %q there, %v, %v", content, got, err, md.SignatureError)
			}
		}
	})
}

// FuzzReadKeys holds that no bytes do harm, and that what is read answers for what it signed alone.
func FuzzReadKeys(f *testing.F) {
	var messages [][]byte
	for name := range recorded {
		_, m := record(f, name)
		messages = append(messages, m)
		f.Add(ringBytes(f, name))
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ReadKeys(b)
		if err != nil {
			return
		}
		for _, m := range messages {
			if content, _, err := k.Verify(m, now); err == nil && string(content) != said {
				t.Fatalf("%q", content)
			}
		}
	})
}
