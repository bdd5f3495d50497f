// Package openpgp verifies signed OpenPGP messages, as simple signing makes them, and nothing else.
//
// It reads version 4 keys and signatures (RFC 4880, RFC 9580): RSA from 2048 bits, ECDSA over P-256, P-384 and P-521, and
// Ed25519 in both its spellings, with SHA-256, SHA-384 or SHA-512. A message is one one-pass signature, one literal, one
// signature, together compressed or not. What is older, newer or rarer is refused. The library that there is for all of
// OpenPGP would be 870 KB of PID 1; the tests hold this package against it and against gpg.
package openpgp

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// The bounds of what is read, bytes.
const (
	MaxKeys    = 256 << 10 // of a keyring, armoured or not
	MaxMessage = 256 << 10 // of a message, also decompressed
)

// maxSkew is how far ahead of the clock a signature may be.
const maxSkew = time.Hour

// Verify returns the content of a signed message, and the fingerprint of the primary key, in capitals, that answers for
// the key which signed it. The key must be one that may sign, neither revoked nor expired.
// Nothing of a message that does not verify is returned.
func (k *Keys) Verify(message []byte, now time.Time) (content []byte, signer string, err error) {
	content, onePass, s, err := readMessage(message)
	if err != nil {
		return nil, "", fmt.Errorf("OpenPGP message: %w", err)
	}
	id := onePass[4:12]
	err = fmt.Errorf("made by key %X, which is none of these", id)
	for _, e := range k.entities {
		for _, c := range e.candidates() {
			if !bytes.Equal(c.key.fingerprint[12:], id) {
				continue
			}
			if err = c.mayHaveSigned(s, now); err != nil {
				continue
			}
			if err = s.verify(c.key, content); err != nil {
				continue
			}
			return content, fmt.Sprintf("%X", e.primary.fingerprint), nil
		}
	}
	return nil, "", fmt.Errorf("OpenPGP signature: %w", err)
}

// readMessage takes a message apart, RFC 9580 §10.3. Nothing in it has been verified.
func readMessage(b []byte) (content, onePass []byte, s *signature, err error) {
	if len(b) > MaxMessage {
		return nil, nil, nil, fmt.Errorf("%d bytes, at most %d", len(b), MaxMessage)
	}
	p, err := packets(b)
	if err == nil && len(p) == 1 && p[0].tag == tagCompressed {
		if b, err = inflate(p[0].body); err == nil {
			p, err = packets(b)
		}
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if len(p) != 3 || p[0].tag != tagOnePass || p[1].tag != tagLiteral || p[2].tag != tagSignature {
		return nil, nil, nil, errors.New("is not one signature around one literal")
	}
	onePass = p[0].body
	if len(onePass) != 13 || onePass[0] != 3 || onePass[12] != 1 {
		return nil, nil, nil, errors.New("has a one-pass signature of another version, or a nested one")
	}
	if s, err = readSignature(p[2].body); err != nil {
		return nil, nil, nil, err
	}
	if s.kind != sigBinary || onePass[1] != s.kind || onePass[2] != s.hashID || onePass[3] != s.algorithm {
		return nil, nil, nil, fmt.Errorf("has a signature of type %#x, or another than it announces; want one over binary data", s.kind)
	}
	l := p[1].body // format, length of the name, name, date
	if len(l) < 6 || len(l) < 6+int(l[1]) {
		return nil, nil, nil, errors.New("has a literal that is cut short")
	}
	return l[6+int(l[1]):], onePass, s, nil
}

// inflate opens a compressed packet: not at all, ZIP, or ZLIB, of which the sum is left unchecked, for there is a
// signature within.
func inflate(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("has an empty compressed packet")
	}
	switch method := b[0]; {
	case method == 0:
		return b[1:], nil
	case method == 1:
		b = b[1:]
	case method == 2 && len(b) >= 3 && b[1]&0xf == 8 && b[2]&0x20 == 0:
		b = b[3:]
	default:
		return nil, fmt.Errorf("is compressed in way %d; want ZIP or ZLIB", method)
	}
	out, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b)), MaxMessage+1))
	if err != nil {
		return nil, fmt.Errorf("compressed packet: %w", err)
	}
	if len(out) > MaxMessage {
		return nil, fmt.Errorf("decompresses to over %d bytes", MaxMessage)
	}
	return out, nil
}

// The packets that are read, RFC 9580 §5.
const (
	tagSignature     = 2
	tagOnePass       = 4
	tagPublicKey     = 6
	tagCompressed    = 8
	tagMarker        = 10
	tagLiteral       = 11
	tagTrust         = 12
	tagUserID        = 13
	tagPublicSubkey  = 14
	tagUserAttribute = 17
	tagPadding       = 21
)

type packet struct {
	tag  byte
	body []byte
}

var errShort = errors.New("has a packet that is cut short")

// packets splits b, RFC 9580 §4.2. Only data may come in parts or without a length.
func packets(b []byte) ([]packet, error) {
	var all []packet
	for len(b) > 0 {
		head := b[0]
		b = b[1:]
		if head&0x80 == 0 {
			return nil, errors.New("is not in OpenPGP packets")
		}
		p := packet{tag: head & 0x3f}
		if head&0x40 == 0 {
			p.tag >>= 2
		}
		data := p.tag == tagCompressed || p.tag == tagLiteral
		for last := false; !last; {
			n := 0
			switch size, ok := 1<<(head&3), len(b) > 0; {
			case head&0x40 == 0 && head&3 == 3: // to the end
				if !data {
					return nil, fmt.Errorf("has a packet of type %d without a length", p.tag)
				}
				n, last = len(b), true
			case head&0x40 == 0:
				if len(b) < size {
					return nil, errShort
				}
				for _, c := range b[:size] {
					n = n<<8 | int(c)
				}
				b, last = b[size:], true
			case ok && b[0] < 192:
				n, b, last = int(b[0]), b[1:], true
			case ok && b[0] < 224 && len(b) >= 2:
				n, b, last = int(b[0]-192)<<8+int(b[1])+192, b[2:], true
			case ok && b[0] == 255 && len(b) >= 5:
				n, b, last = int(binary.BigEndian.Uint32(b[1:])), b[5:], true
			case ok && 224 <= b[0] && b[0] < 255 && data:
				n, b = 1<<(b[0]&0x1f), b[1:]
			default:
				return nil, errShort
			}
			if n > len(b) {
				return nil, errShort
			}
			p.body, b = append(p.body, b[:n]...), b[n:]
		}
		all = append(all, p)
	}
	return all, nil
}
