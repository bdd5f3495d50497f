package verify

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// sgxArc is Intel's object identifier for the extension of a PCK certificate, and for what is in it (Intel SGX PCK
// Certificate and Certificate Revocation List Profile Specification, §1.3.5).
var sgxArc = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// A pckInfo is what Intel certified of a platform.
type pckInfo struct {
	components [16]uint8 // patch levels of the SGX TCB
	pceSVN     uint16
	pceID      [2]byte
	fmspc      [6]byte
	instance   []byte // 16 bytes; nil on platforms of one package
}

// instance is the id of the platform, for claims only.
func (p *intelPlatform) instance() []byte {
	info, err := parsePCK(p.pck)
	if err != nil {
		return nil
	}
	return info.instance
}

// parsePCK reads the extension. All of it but the instance must be there once.
func parsePCK(c *x509.Certificate) (info pckInfo, err error) {
	var ext []byte
	for _, x := range c.Extensions {
		if x.Id.Equal(sgxArc) {
			ext = x.Value
		}
	}
	top, err := sgxValues(ext, len(sgxArc))
	if err != nil {
		return info, fmt.Errorf("PCK certificate: SGX extension: %w", err)
	}
	tcb, err := sgxValues(top[2].FullBytes, len(sgxArc)+1)
	err = errors.Join(err, sgxOctets(top[3], info.pceID[:]), sgxOctets(top[4], info.fmspc[:]))
	for i := range info.components {
		n, e := sgxNumber(tcb[i+1], 255)
		info.components[i], err = uint8(n), errors.Join(err, e)
	}
	n, e := sgxNumber(tcb[17], 1<<16-1)
	info.pceSVN, err = uint16(n), errors.Join(err, e)
	if _, ok := top[6]; ok {
		info.instance = make([]byte, 16)
		err = errors.Join(err, sgxOctets(top[6], info.instance))
	}
	if err != nil {
		return pckInfo{}, fmt.Errorf("PCK certificate: SGX extension: %w", err)
	}
	return info, nil
}

// sgxValues reads a sequence of object identifiers below the arc, each with a value, by the last number of the identifier.
func sgxValues(der []byte, arc int) (map[int]asn1.RawValue, error) {
	var list []struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &list); err != nil || len(rest) > 0 {
		return nil, errors.New("not a sequence of identifiers and values")
	}
	m := map[int]asn1.RawValue{}
	for _, v := range list {
		if len(v.ID) != arc+1 || !v.ID[:len(sgxArc)].Equal(sgxArc) {
			return nil, fmt.Errorf("%s does not belong there", v.ID)
		}
		n := v.ID[arc]
		if _, twice := m[n]; twice {
			return nil, fmt.Errorf("%s twice", v.ID)
		}
		m[n] = v.Value
	}
	return m, nil
}

func sgxOctets(v asn1.RawValue, dst []byte) error {
	var b []byte
	if rest, err := asn1.Unmarshal(v.FullBytes, &b); err != nil || len(rest) > 0 || len(b) != len(dst) {
		return fmt.Errorf("want an OCTET STRING of %d bytes", len(dst))
	}
	copy(dst, b)
	return nil
}

func sgxNumber(v asn1.RawValue, limit int) (n int, err error) {
	if rest, err := asn1.Unmarshal(v.FullBytes, &n); err != nil || len(rest) > 0 || n < 0 || n > limit {
		return 0, fmt.Errorf("want an INTEGER of 0 to %d", limit)
	}
	return n, nil
}
