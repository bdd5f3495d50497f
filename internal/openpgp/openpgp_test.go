package openpgp

import (
	"bytes"
	"compress/flate"
	"crypto"
	"encoding/binary"
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

// encode writes packets with lengths of five bytes.
func encode(all []packet) []byte {
	var b []byte
	for _, p := range all {
		b = append(b, 0xc0|p.tag, 255)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(p.body))), p.body...)
	}
	return b
}

func split(t *testing.T, b []byte) []packet {
	t.Helper()
	all, err := packets(b)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestCraftedKeys: keys that no program makes.
func TestCraftedKeys(t *testing.T) {
	config := &pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519}
	addSub := func(e *library.Entity) error { return e.AddSigningSubkey(config) }
	refused := func(name string, ring, message []byte, want string) {
		t.Helper()
		k, err := ReadKeys(ring)
		if err == nil {
			_, _, err = k.Verify(message, time.Now())
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}

	victim := entityOf(t, config, addSub)
	m := message(t, victim, config)
	refused("as it was", encode(split(t, public(t, victim))), m, "")
	stolen := victim.Subkeys[len(victim.Subkeys)-1]
	cross := stolen.Sig.EmbeddedSignature
	thief := entityOf(t, config, addSub)
	taken := thief.Subkeys[len(thief.Subkeys)-1]
	taken.PublicKey, taken.Sig.EmbeddedSignature = stolen.PublicKey, cross
	if err := taken.Sig.SignKey(taken.PublicKey, thief.PrivateKey, config); err != nil {
		t.Fatal(err)
	}
	taken.Sig.EmbeddedSignature = cross
	thief.Subkeys[len(thief.Subkeys)-1] = taken
	refused("a subkey of somebody else", public(t, thief), m, "none of these")

	all := split(t, public(t, victim))
	last := all[len(all)-1]
	if last.tag != tagSignature {
		t.Fatalf("the last packet is of type %d", last.tag)
	}
	last.body[len(last.body)-1] ^= 1
	refused("a binding altered", encode(all), m, "none of these")

	old := &pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519, Time: func() time.Time { return time.Now().Add(-time.Hour) }}
	e := entityOf(t, old)
	m = message(t, e, old)
	before := split(t, public(t, e))
	_, id := e.PrimarySelfSignature()
	id.SelfSignature.FlagSign, id.SelfSignature.CreationTime = false, time.Now()
	if err := id.SelfSignature.SignUserId(id.UserId.Id, e.PrimaryKey, e.PrivateKey, config); err != nil {
		t.Fatal(err)
	}
	after := split(t, public(t, e))
	refused("the newer says no", encode([]packet{before[0], before[1], before[2], after[2]}), m, "none of these")
	refused("the newer says no, and comes first", encode([]packet{before[0], before[1], after[2], before[2]}), m, "none of these")
	refused("the older says yes", encode(before[:3]), m, "")

	seconds := uint32(60)
	id.SelfSignature.FlagSign, id.SelfSignature.CreationTime, id.SelfSignature.SigLifetimeSecs = true, time.Now().Add(-time.Hour), &seconds
	if err := id.SelfSignature.SignUserId(id.UserId.Id, e.PrimaryKey, e.PrivateKey, config); err != nil {
		t.Fatal(err)
	}
	refused("a self-signature that expired", public(t, e), m, "whose self-signature expired")
}

// TestCraftedMessages: messages that no program makes.
func TestCraftedMessages(t *testing.T) {
	config := &pgp.Config{Algorithm: pgp.PubKeyAlgoEd25519}
	e := entityOf(t, config)
	keys, err := ReadKeys(public(t, e))
	if err != nil {
		t.Fatal(err)
	}
	good := func() []packet { return split(t, message(t, e, config)) }
	pack := func(method byte, b []byte) []byte {
		var z bytes.Buffer
		w, err := flate.NewWriter(&z, 9)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return encode([]packet{{tagCompressed, append([]byte{method}, z.Bytes()...)}})
	}
	nested, otherHash, otherKind := good(), good(), good()
	nested[0].body[12] = 0
	otherHash[0].body[2] = 10
	otherKind[0].body[1] = 1
	for name, c := range map[string]struct {
		in   []byte
		want string
	}{
		"as it was":              {encode(good()), ""},
		"compressed":             {pack(1, encode(good())), ""},
		"compressed twice":       {pack(1, pack(1, encode(good()))), "is not one signature around one literal"},
		"a bomb":                 {pack(1, make([]byte, 64<<20)), "decompresses to over"},
		"no deflate":             {encode([]packet{{tagCompressed, []byte{1, 0xff, 0xff}}}), "compressed packet: "},
		"an empty compression":   {encode([]packet{{tagCompressed, nil}}), "empty"},
		"nested":                 {encode(nested), "nested"},
		"another hash announced": {encode(otherHash), "another than it announces"},
		"another kind announced": {encode(otherKind), "another than it announces"},
		"a literal more":         {encode(append(good(), good()[1])), "is not one signature"},
		"a signature more":       {encode(append(good(), good()[2])), "is not one signature"},
		"no one-pass signature":  {encode(good()[1:]), "is not one signature"},
		"a short literal":        {encode([]packet{good()[0], {tagLiteral, []byte("b\x05abc\x00")}, good()[2]}), "cut short"},
		"a literal of parts":     {append(append(encode(good()[:1]), 0xcb, 0xe0, good()[1].body[0], 0), encode(good()[2:])...), "cut short"},
		"a signature of parts":   {append(encode(good()[:2]), 0xc2, 0xe0, 4, 0), "cut short"},
		"more than it may be":    {make([]byte, MaxMessage+1), "at most"},
		"nothing":                {nil, "is not one signature"},
	} {
		content, _, err := keys.Verify(c.in, time.Now())
		if c.want == "" && (err != nil || string(content) != said) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %q, %v, want %q", name, content, err, c.want)
		}
	}
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
