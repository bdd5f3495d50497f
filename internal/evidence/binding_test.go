package evidence

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
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
