package openpgp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// The algorithms that sign, RFC 9580 §9.1.
const (
	algRSA         = 1
	algRSASignOnly = 3
	algECDSA       = 19
	algEdDSA       = 22 // Ed25519 before RFC 9580
	algEd25519     = 27
)

// Keys are public keys that signatures are held against. Only ReadKeys makes them.
type Keys struct{ entities []*entity }

// publicKey is one key packet.
type publicKey struct {
	body        []byte
	created     time.Time
	algorithm   byte
	public      any // nil: not one that signs
	fingerprint [20]byte
}

// entity is a primary key and what belongs to it.
type entity struct {
	primary *publicKey
	revoked bool
	self    []*signature // that speak for the primary key
	subkeys []*subkey
}

type subkey struct {
	key     *publicKey
	revoked bool
	bound   []*signature
}

// signer is a key that may have signed, with the signatures that say how long it is valid: its own and its primary's.
type signer struct {
	key   *publicKey
	valid []validity
}

type validity struct {
	key *publicKey
	by  *signature
}

// ReadKeys reads public keys, armoured or not, at most MaxKeys bytes. An error says why none can be used.
func ReadKeys(b []byte) (*Keys, error) {
	k, err := readKeys(b)
	if err != nil {
		return nil, fmt.Errorf("OpenPGP keys: %w", err)
	}
	return k, nil
}

func readKeys(b []byte) (*Keys, error) {
	if len(b) > MaxKeys {
		return nil, fmt.Errorf("%d bytes, at most %d", len(b), MaxKeys)
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN ")) {
		var err error
		if b, err = unarmor(b); err != nil {
			return nil, err
		}
	}
	all, err := packets(b)
	if err != nil {
		return nil, err
	}
	k := &Keys{}
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].tag != tagPublicKey {
			n++
		}
		e, err := readEntity(all[:n])
		if err != nil {
			return nil, err
		}
		k.entities, all = append(k.entities, e), all[n:]
	}
	if len(k.entities) == 0 {
		return nil, errors.New("there are none")
	}
	return k, nil
}

// readEntity reads a transferable public key, RFC 9580 §10.1. A signature that is another's, or that cannot be read,
// says nothing; but any revocation of a key counts: the ring is its owner's, and need not be right to be heeded.
func readEntity(all []packet) (*entity, error) {
	if all[0].tag != tagPublicKey {
		return nil, fmt.Errorf("packet of type %d, want a public key", all[0].tag)
	}
	primary, err := readKey(all[0].body)
	if err != nil {
		return nil, err
	}
	e := &entity{primary: primary}
	var sub *subkey
	var user []byte // what a certification is over besides the key
	var certs []*signature
	withdrawn := false
	flush := func() {
		if !withdrawn {
			e.self = append(e.self, certs...)
		}
		certs, withdrawn = nil, false
	}
	for _, p := range all[1:] {
		switch p.tag {
		case tagUserID, tagUserAttribute:
			flush()
			head := byte(0xb4)
			if p.tag == tagUserAttribute {
				head = 0xd1
			}
			user = append(binary.BigEndian.AppendUint32([]byte{head}, uint32(len(p.body))), p.body...)
			sub = nil
		case tagPublicSubkey:
			flush()
			k, err := readKey(p.body)
			if err != nil {
				return nil, err
			}
			sub, user = &subkey{key: k}, nil
			e.subkeys = append(e.subkeys, sub)
		case tagSignature:
			if len(p.body) > 1 {
				e.revoked = e.revoked || p.body[1] == sigKeyRevoked
				if sub != nil && p.body[1] == sigSubkeyRevoked {
					sub.revoked = true
				}
			}
			s, err := readSignature(p.body)
			if err != nil {
				continue
			}
			switch {
			case s.kind == sigDirect && sub == nil && user == nil && s.verify(primary, primary.hashed()) == nil:
				e.self = append(e.self, s)
			case s.kind == sigBinding && sub != nil && s.binds(primary, sub.key):
				sub.bound = append(sub.bound, s)
			case user != nil && s.kind&^3 == sigCertification && s.verify(primary, primary.hashed(), user) == nil:
				certs = append(certs, s)
			case user != nil && s.kind == sigUserRevoked && s.verify(primary, primary.hashed(), user) == nil:
				withdrawn = true
			}
		case tagTrust, tagMarker, tagPadding:
		default:
			return nil, fmt.Errorf("packet of type %d, want public keys and what belongs to them", p.tag)
		}
	}
	flush()
	return e, nil
}

// binds reports whether a binding holds, and where it lets the subkey sign, whether the subkey agrees.
func (s *signature) binds(primary, sub *publicKey) bool {
	if s.verify(primary, primary.hashed(), sub.hashed()) != nil {
		return false
	}
	if s.flags < 0 || s.flags&flagSign == 0 {
		return true // never used, but it supersedes an older one
	}
	cross, err := readSignature(s.embedded)
	return err == nil && cross.kind == sigCross && cross.verify(sub, primary.hashed(), sub.hashed()) == nil
}

// newest is the signature that counts: the last made, and of several the one that gives least.
func newest(all []*signature) *signature {
	var best *signature
	for _, s := range all {
		if best == nil || s.created.After(best.created) ||
			s.created.Equal(best.created) && s.keyExpires != 0 && (best.keyExpires == 0 || s.keyExpires < best.keyExpires) {
			best = s
		}
	}
	return best
}

// candidates are the keys that may sign for the entity, if they are valid.
func (e *entity) candidates() []signer {
	self := newest(e.self)
	if e.revoked || self == nil {
		return nil
	}
	var all []signer
	own := validity{e.primary, self}
	if self.flags < 0 || self.flags&flagSign != 0 {
		all = append(all, signer{e.primary, []validity{own}})
	}
	for _, sub := range e.subkeys {
		by := newest(sub.bound)
		if !sub.revoked && by != nil && by.flags >= 0 && by.flags&flagSign != 0 {
			all = append(all, signer{sub.key, []validity{own, {sub.key, by}}})
		}
	}
	return all
}

// mayHaveSigned judges the dates: those in the signatures, and the clock's, which in a guest is the host's.
func (c signer) mayHaveSigned(s *signature, now time.Time) error {
	if s.created.After(now.Add(maxSkew)) {
		return fmt.Errorf("made on %s, which is after the clock's %s", day(s.created), day(now))
	}
	if s.expires != 0 && !now.Before(s.created.Add(s.expires)) {
		return fmt.Errorf("expired on %s", day(s.created.Add(s.expires)))
	}
	for _, v := range c.valid {
		if s.created.Before(v.key.created) {
			return fmt.Errorf("made on %s, before the key %X", day(s.created), v.key.fingerprint[12:])
		}
		if v.by.expires != 0 && !now.Before(v.by.created.Add(v.by.expires)) {
			return fmt.Errorf("made by key %X, whose self-signature expired", v.key.fingerprint[12:])
		}
		if end := v.key.created.Add(v.by.keyExpires); v.by.keyExpires != 0 && !now.Before(end) {
			return fmt.Errorf("made by key %X, which expired on %s", v.key.fingerprint[12:], day(end))
		}
	}
	return nil
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// hashed is how a key is fed to a hash.
func (k *publicKey) hashed() []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0x99}, uint16(len(k.body))), k.body...)
}

var curves = []struct {
	oid   []byte
	curve elliptic.Curve
}{
	{[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}, elliptic.P256()},
	{[]byte{0x2b, 0x81, 4, 0, 0x22}, elliptic.P384()},
	{[]byte{0x2b, 0x81, 4, 0, 0x23}, elliptic.P521()},
}

var oidEd25519 = []byte{0x2b, 6, 1, 4, 1, 0xda, 0x47, 0x0f, 1}

// readKey reads a key packet. One that cannot sign here is kept without its key: it may be for encryption.
func readKey(b []byte) (*publicKey, error) {
	if len(b) < 6 || len(b) > 0xffff {
		return nil, errShort
	}
	if b[0] != 4 {
		return nil, fmt.Errorf("a key is of version %d, want 4", b[0])
	}
	k := &publicKey{body: b, created: time.Unix(int64(binary.BigEndian.Uint32(b[1:])), 0), algorithm: b[5]}
	k.fingerprint = sha1.Sum(k.hashed()) // a name, by RFC 9580 §5.5.4.2
	r := &reader{b: b[6:]}
	switch k.algorithm {
	case algRSA, algRSASignOnly:
		n, e := new(big.Int).SetBytes(r.mpi(2048)), new(big.Int).SetBytes(r.mpi(4))
		if r.done() && n.BitLen() >= 2048 && n.Bit(0) == 1 && e.Bit(0) == 1 && e.BitLen() > 1 && e.BitLen() < 32 {
			k.public = &rsa.PublicKey{N: n, E: int(e.Int64())}
		}
	case algECDSA, algEdDSA:
		length := r.bytes(1)
		if length == nil {
			break
		}
		oid := r.bytes(int(length[0]))
		for _, c := range curves {
			if k.algorithm != algECDSA || !bytes.Equal(c.oid, oid) {
				continue
			}
			point := r.mpi(1 + 2*((c.curve.Params().BitSize+7)/8))
			if pub, err := ecdsa.ParseUncompressedPublicKey(c.curve, point); err == nil && r.done() {
				k.public = pub
			}
		}
		if k.algorithm == algEdDSA && bytes.Equal(oid, oidEd25519) {
			if point := r.mpi(33); r.done() && point[0] == 0x40 {
				k.public = ed25519.PublicKey(point[1:])
			}
		}
	case algEd25519:
		if pub := r.bytes(ed25519.PublicKeySize); r.done() {
			k.public = ed25519.PublicKey(pub)
		}
	}
	return k, nil
}

// unarmor reads blocks of public keys, RFC 9580 §6. The sum at the end is no protection, and is skipped.
func unarmor(b []byte) ([]byte, error) {
	const begin, end = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
	var all, text []byte
	inside, body := false, false
	for line := range bytes.Lines(b) {
		switch line := string(bytes.TrimSpace(line)); {
		case !inside && line == "":
		case !inside && line == begin:
			inside, body, text = true, false, nil
		case !inside:
			return nil, fmt.Errorf("line %.60q is outside of a block of public keys", line)
		case line == end:
			raw, err := base64.StdEncoding.DecodeString(string(text))
			if err != nil {
				return nil, errors.New("the armour is not base64")
			}
			all, inside = append(all, raw...), false
		case line == "":
			body = true
		case body && line[0] != '=':
			text = append(text, line...)
		}
	}
	if inside {
		return nil, errors.New("the armour has no end")
	}
	return all, nil
}
