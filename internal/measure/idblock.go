package measure

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// DefaultPolicy of an SNP guest: SMT allowed (bit 16), bit 17 as it must be; no debugging, no migration agent.
const DefaultPolicy = 0x30000

// An IDBlock says what a launch must measure to: the secure processor refuses any other, and puts the digests of both keys
// into every report (AMD SEV-SNP ABI §8.18, Table 75).
type IDBlock struct {
	Measurement       evidence.Measurement
	FamilyID, ImageID [16]byte
	GuestSVN          uint32
	Policy            uint64
}

const (
	idBlockSize = 96
	idAuthSize  = 4096
	idKeySize   = 0x404 // a public key: curve, x, y, zeros
	idP384      = 2     // the curve
	idECDSA384  = 1     // the algorithm: ECDSA P-384 with SHA-384
	idNumber    = 72    // bytes of a coordinate or half a signature, little-endian
)

// Bytes is the block as the processor takes it: QEMU's id-block=, in base64.
func (b IDBlock) Bytes() []byte {
	out := make([]byte, 0, idBlockSize)
	out = append(out, b.Measurement[:]...)
	out = append(out, b.FamilyID[:]...)
	out = append(out, b.ImageID[:]...)
	le := binary.LittleEndian
	out = le.AppendUint32(out, 1) // version
	out = le.AppendUint32(out, b.GuestSVN)
	return le.AppendUint64(out, b.Policy)
}

// An IDAuth is a signed IDBlock: QEMU's id-auth=, in base64, and what a report then says.
type IDAuth struct {
	Auth         []byte // ID authentication information, 4096 bytes (AMD SEV-SNP ABI, Table 76)
	IDKeyDigest  [48]byte
	AuthorDigest [48]byte // zero without an author key
}

// Sign signs the block with the id key, and the id key with the author's, both of P-384; author may be nil.
func (b IDBlock) Sign(id, author *ecdsa.PrivateKey) (IDAuth, error) {
	out := IDAuth{Auth: make([]byte, idAuthSize)}
	key, err := idKey(id)
	if err != nil {
		return IDAuth{}, fmt.Errorf("id key: %w", err)
	}
	signed, err := idSign(id, b.Bytes())
	if err != nil {
		return IDAuth{}, fmt.Errorf("id key: %w", err)
	}
	le := binary.LittleEndian
	le.PutUint32(out.Auth, idECDSA384)
	copy(out.Auth[0x40:], signed)
	copy(out.Auth[0x240:], key)
	out.IDKeyDigest = sha512.Sum384(key)
	if author == nil {
		return out, nil
	}
	authorKey, err := idKey(author)
	if err != nil {
		return IDAuth{}, fmt.Errorf("author key: %w", err)
	}
	if signed, err = idSign(author, key); err != nil {
		return IDAuth{}, fmt.Errorf("author key: %w", err)
	}
	le.PutUint32(out.Auth[4:], idECDSA384)
	copy(out.Auth[0x680:], signed)
	copy(out.Auth[0x880:], authorKey)
	out.AuthorDigest = sha512.Sum384(authorKey)
	return out, nil
}

// idKey is a public key in the processor's form, 0x404 bytes.
func idKey(k *ecdsa.PrivateKey) ([]byte, error) {
	if k.Curve != elliptic.P384() {
		return nil, fmt.Errorf("it is of curve %s, want P-384: openssl ecparam -name secp384r1 -genkey -noout", k.Curve.Params().Name)
	}
	point, err := k.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return nil, err
	}
	out := make([]byte, idKeySize)
	binary.LittleEndian.PutUint32(out, idP384)
	putLittle(out[4:], new(big.Int).SetBytes(point[1:49]))
	putLittle(out[4+idNumber:], new(big.Int).SetBytes(point[49:]))
	return out, nil
}

// idSign gives r and s, 512 bytes with the zeros behind.
func idSign(k *ecdsa.PrivateKey, data []byte) ([]byte, error) {
	sum := sha512.Sum384(data)
	r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 512)
	putLittle(out, r)
	putLittle(out[idNumber:], s)
	return out, nil
}

func putLittle(dst []byte, n *big.Int) {
	b := n.Bytes()
	for i := range b {
		dst[i] = b[len(b)-1-i]
	}
}

// ParseIDKey reads a private key of P-384 in PEM, of SEC 1 or PKCS #8.
func ParseIDKey(b []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("want a private key in PEM, as openssl ecparam -name secp384r1 -genkey -noout makes one")
	}
	k, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("neither an EC PRIVATE KEY of SEC 1 nor one of PKCS #8")
		}
		var ok bool
		if k, ok = any.(*ecdsa.PrivateKey); !ok {
			return nil, errors.New("no elliptic curve key")
		}
	}
	if _, err := idKey(k); err != nil {
		return nil, err
	}
	return k, nil
}
