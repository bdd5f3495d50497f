package measure

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"testing"
)

const (
	testIDKey = `-----BEGIN EC PRIVATE KEY-----
MIGkAgEBBDDd3NjrPduToA3Y2bU8u+m+wL+icE6wZOiAm5FopHJjHx2a67ZcqhcX
mB/DBwn4WsKgBwYFK4EEACKhZANiAASyD9Ghwr0rZRg6duI5CsgF9tjl4q9yXlqO
k8+H7AKfnUXrMmsEuSvrcU4U+phviposlKC4qzDMdjUmdZRIdokelU/271gmpiMb
ptbX9uv7aM4zDh5ZOU77cICIPdxpNks=
-----END EC PRIVATE KEY-----
`
	testAuthorKey = `-----BEGIN EC PRIVATE KEY-----
MIGkAgEBBDCUTgpZn6Wt6RvhJHG3PzPIEkyl1x8+0G3gltnqH63ibdpY+Y99M2tr
34JhaKgSdJOgBwYFK4EEACKhZANiAAQGgR/GJAm/LZrlHAdCMlTYk8bCP78WSvM4
Ow+BOmJ+YWjZBnp/S9l5kFiMGEESEKAytCCiJlbScdz9TiVmjHL9WLtfaFH+Ry+d
Fg+ICxTfTDYjBolizeTWCOc3NC2pEsk=
-----END EC PRIVATE KEY-----
`
)

// little reads a number as the processor has it.
func little(b []byte) *big.Int {
	b = slices.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

// verify checks both signatures as the processor does.
func (a IDAuth) verify(b IDBlock) error {
	check := func(key, signature, data []byte) error {
		point := append([]byte{4}, little(key[4:76]).FillBytes(make([]byte, 48))...)
		k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), append(point, little(key[76:148]).FillBytes(make([]byte, 48))...))
		if err != nil {
			return err
		}
		sum := sha512.Sum384(data)
		if !ecdsa.Verify(k, sum[:], little(signature[:72]), little(signature[72:144])) {
			return errors.New("a signature does not hold")
		}
		return nil
	}
	id := a.Auth[0x240 : 0x240+idKeySize]
	return errors.Join(check(id, a.Auth[0x40:], b.Bytes()), check(a.Auth[0x880:], a.Auth[0x680:], id))
}

func TestParseIDKey(t *testing.T) {
	marshal := func(curve elliptic.Curve) []byte {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	if _, err := ParseIDKey(marshal(elliptic.P384())); err != nil {
		t.Errorf("PKCS #8: %v", err)
	}
	for name, b := range map[string][]byte{"nothing": nil, "of another curve": marshal(elliptic.P256()), "no key": []byte("-----BEGIN X-----\nAAAA\n-----END X-----\n")} {
		if _, err := ParseIDKey(b); err == nil {
			t.Errorf("a key that is %s was taken", name)
		}
	}
}
