package evidence

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of a GHCB certificate table. Linux hands out at most 16 KiB.
const (
	maxCertTable   = 64 << 10
	maxCertEntries = 64
	certHeaderSize = 24 // GUID, le32 offset, le32 length
)

// A Cert is one entry of a GHCB certificate table: its type as Trustee names it (ARK, ASK, VCEK, VLEK, CRL), and DER.
type Cert struct {
	Type string
	DER  []byte
}

// certGUIDs are in the order in which their text form is read, which is the order in the table.
var certGUIDs = map[string][16]byte{
	"ARK":  {0xc0, 0xb4, 0x06, 0xa4, 0xa8, 0x03, 0x49, 0x52, 0x97, 0x43, 0x3f, 0xb6, 0x01, 0x4c, 0xd0, 0xae},
	"ASK":  {0x4a, 0xb7, 0xb3, 0x79, 0xbb, 0xac, 0x4f, 0xe4, 0xa0, 0x2f, 0x05, 0xae, 0xf3, 0x27, 0xc7, 0x82},
	"VCEK": {0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd},
	"VLEK": {0xa8, 0x07, 0x4b, 0xc2, 0xa2, 0x5a, 0x48, 0x3e, 0xaa, 0xe6, 0x39, 0xc0, 0x45, 0xa0, 0xb8, 0xa1},
	"CRL":  {0x92, 0xf8, 0x1b, 0xc3, 0x58, 0x11, 0x4d, 0x3d, 0x97, 0xff, 0xd1, 0x9f, 0x88, 0xdc, 0x67, 0xea},
}

// ParseCerts reads a GHCB certificate table, at most 64 KiB and 64 entries; an empty one has none. Entries of
// unknown GUID are dropped: libraries and clouds add their own, and brokers reject what they do not know.
func ParseCerts(table []byte) ([]Cert, error) {
	if len(table) == 0 {
		return nil, nil
	}
	if len(table) > maxCertTable {
		return nil, fmt.Errorf("certificate table: %d bytes, at most %d", len(table), maxCertTable)
	}
	var certs []Cert
	seen := map[string]bool{}
	for i := range maxCertEntries + 1 {
		if len(table) < (i+1)*certHeaderSize {
			return nil, errors.New("certificate table: no terminating entry")
		}
		head := [certHeaderSize]byte(table[i*certHeaderSize:])
		if head == [certHeaderSize]byte{} {
			return certs, nil
		}
		name := certType([16]byte(head[:16]))
		if name == "" {
			continue
		}
		off, size := uint64(binary.LittleEndian.Uint32(head[16:])), uint64(binary.LittleEndian.Uint32(head[20:]))
		if off+size > uint64(len(table)) || off < uint64(i+1)*certHeaderSize {
			return nil, fmt.Errorf("certificate table: %s lies at %d to %d in %d bytes", name, off, off+size, len(table))
		}
		if size == 0 {
			continue
		}
		if seen[name] {
			return nil, fmt.Errorf("certificate table: %s twice", name)
		}
		seen[name] = true
		certs = append(certs, Cert{name, table[off : off+size : off+size]})
	}
	return nil, fmt.Errorf("certificate table: more than %d entries", maxCertEntries)
}

// MarshalCerts encodes a GHCB certificate table; no certificates give no bytes.
func MarshalCerts(certs []Cert) ([]byte, error) {
	if len(certs) == 0 {
		return nil, nil
	}
	table := make([]byte, (len(certs)+1)*certHeaderSize)
	for i, c := range certs {
		guid, ok := certGUIDs[c.Type]
		if !ok {
			return nil, fmt.Errorf("certificate type %q: unknown", c.Type)
		}
		head := table[i*certHeaderSize:]
		copy(head, guid[:])
		binary.LittleEndian.PutUint32(head[16:], uint32(len(table)))
		binary.LittleEndian.PutUint32(head[20:], uint32(len(c.DER)))
		table = append(table, c.DER...)
	}
	if len(table) > maxCertTable {
		return nil, fmt.Errorf("certificate table: %d bytes, at most %d", len(table), maxCertTable)
	}
	return table, nil
}

func certType(guid [16]byte) string {
	for name, g := range certGUIDs {
		if g == guid {
			return name
		}
	}
	return ""
}
