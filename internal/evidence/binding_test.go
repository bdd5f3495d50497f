package evidence

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"testing"

	"github.com/gowebpki/jcs"
)

func TestBindingMatchesRecordedHandshakes(t *testing.T) {
	var vectors []struct {
		Name       string
		Nonce      string
		Additional string    `json:"additional_evidence"`
		Key        PublicKey `json:"tee_pubkey"`
		Device     string    `json:"device_canonical_json"`
		DeviceHash string    `json:"device_sha384"`
		Primary    string    `json:"primary_canonical_json"`
		ReportData string    `json:"primary_report_data_64"`
	}
	if err := json.Unmarshal(shared(t, "vectors/kbs/rcar.json"), &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) != 3 {
		t.Fatalf("%d vectors, want 3", len(vectors))
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			b := Binding{v.Nonce, v.Key, v.Additional}
			if _, _, err := v.Key.Key(); err != nil {
				t.Error(err)
			}
			if got := b.ReportDataV2(); hex.EncodeToString(got[:48]) != v.DeviceHash || [16]byte(got[48:]) != [16]byte{} {
				t.Errorf("report data of older protocols %x, want %s", got, v.DeviceHash)
			}
			if got := string(b.Canonical()); got != v.Primary {
				t.Errorf("canonical %s, want %s", got, v.Primary)
			}
			if got := string(b.DeviceCanonical()); got != v.Device {
				t.Errorf("device canonical %s, want %s", got, v.Device)
			}
			if sum := sha512.Sum384(b.DeviceCanonical()); hex.EncodeToString(sum[:]) != v.DeviceHash {
				t.Errorf("device hash %x, want %s", sum, v.DeviceHash)
			}
			if got := b.ReportData(); hex.EncodeToString(got[:]) != v.ReportData {
				t.Errorf("report data %x, want %s", got, v.ReportData)
			}
		})
	}
}

// An independent implementation of RFC 8785 must agree on whatever a broker may choose as a nonce.
func FuzzCanonical(f *testing.F) {
	f.Add("3RmTP0k2j3y5x5SDRG7a7iwO6ZTq84ENmXgxujRZdV8=", "")
	f.Add("<&>\u2028\u2029\x7f\x00\x1f\b\f\n\r\t\"\\/é€😀", `{"sampledevice":{"svn":"1","report_data":"eDx5Jno+"}}`)
	f.Fuzz(func(t *testing.T, nonce, additional string) {
		key := PublicKey{"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": nonce, "y": additional}
		raw, err := json.Marshal(map[string]any{"tee-pubkey": key, "nonce": nonce, "additional-evidence": additional})
		if err != nil {
			t.Fatal(err)
		}
		want, err := jcs.Transform(raw)
		if err != nil {
			t.Skip("the oracle does not take it")
		}
		if got := (Binding{nonce, key, additional}).Canonical(); string(got) != string(want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

func TestPublicKeyRoundTrips(t *testing.T) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewPublicKey(&priv.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := k.P256()
	if err != nil || !pub.Equal(&priv.PublicKey) {
		t.Errorf("another key: %v", err)
	}
	for name, change := range map[string]func(k PublicKey){
		"a further member":   func(k PublicKey) { k["kid"] = "1" },
		"another curve":      func(k PublicKey) { k["crv"] = "P-521" },
		"another algorithm":  func(k PublicKey) { k["alg"] = "ECDH-ES" },
		"no y":               func(k PublicKey) { delete(k, "y") },
		"a short coordinate": func(k PublicKey) { k["x"] = "AQ" },
		"padding":            func(k PublicKey) { k["x"] += "=" },
		"off the curve":      func(k PublicKey) { k["x"] = k["y"] },
	} {
		t.Run(name, func(t *testing.T) {
			bad := PublicKey{}
			for m, v := range k {
				bad[m] = v
			}
			change(bad)
			if _, err := bad.P256(); err == nil {
				t.Error("taken")
			}
		})
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewPublicKey(&p384.PublicKey); err == nil {
		t.Error("P-384 is taken")
	}
}

// TestKeysOfEveryKind: NewKey and Key are inverse, and no other form is taken.
func TestKeysOfEveryKind(t *testing.T) {
	p521, err1 := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	small, err2 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pub interface{ Equal(crypto.PublicKey) bool }
		alg string
		x   int // bytes of the first coordinate, or of the modulus
	}{{&p521.PublicKey, ECDH, 66}, {&small.PublicKey, RSAOAEP, 256}, {&small.PublicKey, RSA15, 256}} {
		k, err := NewKey(c.pub, c.alg)
		if err != nil {
			t.Fatal(err)
		}
		pub, alg, err := k.Key()
		if err != nil || alg != c.alg || !c.pub.Equal(pub) {
			t.Errorf("%s came back as %s, %v", c.alg, alg, err)
		}
		for member := range k {
			bad := maps.Clone(k)
			delete(bad, member)
			if _, _, err := bad.Key(); err == nil {
				t.Errorf("%s without %s is taken", c.alg, member)
			}
			for _, tail := range []string{"=", "\n"} { // encoding/base64 skips line breaks
				bad[member] = k[member] + tail
				if _, _, err := bad.Key(); err == nil {
					t.Errorf("%s with %q behind %s is taken", c.alg, tail, member)
				}
			}
		}
		k["kid"] = "1"
		if _, _, err := k.Key(); err == nil {
			t.Errorf("%s with a kid is taken", c.alg)
		}
	}
	for name, c := range map[string]PublicKey{
		"an even exponent":  {"kty": "RSA", "alg": RSAOAEP, "n": base64.RawURLEncoding.EncodeToString(small.N.Bytes()), "e": "AgAB" + "AA"},
		"exponent 1":        {"kty": "RSA", "alg": RSAOAEP, "n": base64.RawURLEncoding.EncodeToString(small.N.Bytes()), "e": "AQ"},
		"a short modulus":   {"kty": "RSA", "alg": RSAOAEP, "n": base64.RawURLEncoding.EncodeToString(small.N.Bytes()[:128]), "e": "AQAB"},
		"a zero in front":   {"kty": "RSA", "alg": RSAOAEP, "n": base64.RawURLEncoding.EncodeToString(append([]byte{0}, small.N.Bytes()...)), "e": "AQAB"},
		"an empty modulus":  {"kty": "RSA", "alg": RSAOAEP, "n": "", "e": "AQAB"},
		"an empty exponent": {"kty": "RSA", "alg": RSAOAEP, "n": base64.RawURLEncoding.EncodeToString(small.N.Bytes()), "e": ""},
		"an octet key":      {"kty": "oct", "alg": "A256KW", "k": "AA"},
	} {
		if _, _, err := c.Key(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := NewKey(&small.PublicKey, ECDH); err == nil {
		t.Error("an RSA key for ECDH")
	}
	if _, err := NewKey(&p521.PublicKey, RSAOAEP); err == nil {
		t.Error("an EC key for RSA")
	}
}
