package openpgp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// The kinds of signatures that are read, RFC 9580 §5.2.1.
const (
	sigBinary        = 0x00
	sigCertification = 0x10 // to 0x13
	sigBinding       = 0x18
	sigCross         = 0x19
	sigDirect        = 0x1f
	sigKeyRevoked    = 0x20
	sigSubkeyRevoked = 0x28
	sigUserRevoked   = 0x30
)

// hashes by their number, RFC 9580 §9.5. SHA-1 and what is older is not among them.
var hashes = map[byte]crypto.Hash{8: crypto.SHA256, 9: crypto.SHA384, 10: crypto.SHA512}

// signature is one of version 4. Its subpackets are those that are hashed: nobody vouches for the others.
type signature struct {
	kind, algorithm, hashID byte

	hashed   []byte // what is hashed after the data
	material []byte // of the algorithm

	created    time.Time
	expires    time.Duration // after created; 0: never
	keyExpires time.Duration // after the key was created; 0: never
	flags      int           // what the key may be used for; -1: not said
	embedded   []byte        // of a binding: the subkey's own signature
}

const flagSign = 0x02

func readSignature(b []byte) (*signature, error) {
	if len(b) < 6 {
		return nil, errShort
	}
	if b[0] != 4 {
		return nil, fmt.Errorf("has a signature of version %d, want 4", b[0])
	}
	s := &signature{kind: b[1], algorithm: b[2], hashID: b[3], flags: -1}
	end := 6 + int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < end+2 {
		return nil, errShort
	}
	s.hashed = b[:end]
	if err := s.subpackets(b[6:end], true); err != nil {
		return nil, err
	}
	if s.created.IsZero() {
		return nil, errors.New("has a signature without a date")
	}
	rest := end + 2 + int(binary.BigEndian.Uint16(b[end:]))
	if len(b) < rest+2 {
		return nil, errShort
	}
	if err := s.subpackets(b[end+2:rest], false); err != nil {
		return nil, err
	}
	s.material = b[rest+2:] // after two bytes of the hash, which say nothing that the hash does not
	return s, nil
}

// harmless are subpackets that may be critical and that nothing here depends on.
var harmless = map[byte]bool{4: true, 7: true, 11: true, 16: true, 21: true, 22: true, 23: true, 25: true, 28: true, 30: true, 33: true, 34: true, 39: true}

func (s *signature) subpackets(b []byte, hashed bool) error {
	for len(b) > 0 {
		n, head := int(b[0]), 1
		switch {
		case n >= 192 && n < 255 && len(b) >= 2:
			n, head = (n-192)<<8+int(b[1])+192, 2
		case n == 255 && len(b) >= 5:
			n, head = int(binary.BigEndian.Uint32(b[1:])), 5
		}
		if n == 0 || n > len(b)-head {
			return errors.New("has a subpacket that is cut short")
		}
		kind, body := b[head], b[head+1:head+n]
		b = b[head+n:]
		critical := kind&0x80 != 0
		kind &= 0x7f
		if kind == 32 && s.embedded == nil { // signed itself, and may stand in either place
			s.embedded = body
			continue
		}
		if !hashed {
			continue
		}
		switch {
		case (kind == 2 || kind == 3 || kind == 9) && len(body) == 4:
			seconds := int64(binary.BigEndian.Uint32(body))
			switch kind {
			case 2:
				s.created = time.Unix(seconds, 0)
			case 3:
				s.expires = time.Duration(seconds) * time.Second
			case 9:
				s.keyExpires = time.Duration(seconds) * time.Second
			}
		case kind == 27 && len(body) > 0:
			s.flags = int(body[0])
		case kind == 2, kind == 3, kind == 9, kind == 27, critical && !harmless[kind]:
			return fmt.Errorf("has a subpacket of type %d that cannot be understood", kind)
		}
	}
	return nil
}

// verify holds the signature against what it is over.
func (s *signature) verify(k *publicKey, over ...[]byte) error {
	hash, ok := hashes[s.hashID]
	if !ok {
		return fmt.Errorf("uses hash %d; want SHA-256, SHA-384 or SHA-512", s.hashID)
	}
	h := hash.New()
	for _, b := range over {
		h.Write(b)
	}
	h.Write(s.hashed)
	h.Write(binary.BigEndian.AppendUint32([]byte{4, 0xff}, uint32(len(s.hashed))))
	digest := h.Sum(nil)

	if s.algorithm != k.algorithm {
		return fmt.Errorf("uses algorithm %d and the key is for %d", s.algorithm, k.algorithm)
	}
	good := false
	m := &reader{b: s.material}
	switch pub := k.public.(type) {
	case *rsa.PublicKey:
		raw := m.mpi(pub.Size())
		good = m.done() && rsa.VerifyPKCS1v15(pub, hash, digest, raw) == nil
	case *ecdsa.PublicKey:
		size := (pub.Params().BitSize + 7) / 8
		x, y := m.mpi(size), m.mpi(size)
		good = m.done() && ecdsa.Verify(pub, digest, new(big.Int).SetBytes(x), new(big.Int).SetBytes(y))
	case ed25519.PublicKey:
		var raw []byte
		if s.algorithm == algEd25519 {
			raw = m.bytes(ed25519.SignatureSize)
		} else {
			raw = append(m.mpi(32), m.mpi(32)...)
		}
		good = m.done() && ed25519.Verify(pub, digest, raw)
	default:
		return fmt.Errorf("is of key %X, whose algorithm %d is none that signs here", k.fingerprint[12:], k.algorithm)
	}
	if !good {
		return fmt.Errorf("is not good under key %X", k.fingerprint[12:])
	}
	return nil
}

// reader reads numbers; one that is not there is nil, and then nothing is done.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) done() bool { return !r.failed && len(r.b) == 0 }

func (r *reader) bytes(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed = true
		return nil
	}
	var b []byte
	b, r.b = r.b[:n], r.b[n:]
	return b
}

// mpi reads a multiprecision integer, RFC 9580 §3.2, and fills it up to size bytes.
func (r *reader) mpi(size int) []byte {
	head := r.bytes(2)
	if head == nil {
		return nil
	}
	b := r.bytes((int(binary.BigEndian.Uint16(head)) + 7) / 8)
	if len(b) > size {
		r.failed = true
	}
	if r.failed {
		return nil
	}
	return append(make([]byte, size-len(b), size), b...)
}
