package evidence

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
)

// Where things lie in an HCL report, bytes (wire/SPEC.md §2.3). A real one has 2600, zeros at its end.
const (
	hclHardware = 0x20
	hclRequest  = 0x4C0 // five u32: size of this and the variable data, version, TEE, hash, size of the variable data
	hclVarData  = 0x4D4
	maxHCL      = 16 << 10
	maxHCLKeys  = 16
	tdReport    = 1024 // TDREPORT; the area holds 1184 bytes, as an SNP report has
)

// An HCLReport is what the paravisor of an Azure confidential VM says of the vTPM. The SHA-256 of VarData is in the first
// half of the report data that the hardware signed; ParseHCL does not check that.
type HCLReport struct {
	Kind     Kind           // AzSNPvTPM or AzTDXvTPM
	Hardware []byte         // SNP report of 1184 bytes, or TDREPORT of 1024
	VarData  []byte         // JSON
	AK       *rsa.PublicKey // HCLAkPub, 2048 bits: signs the quotes of the vTPM
	UserData []byte         // what NV index 0x01400002 held, at most 64 bytes; nil in reports of old paravisors
}

// ParseHCL reads a report of at most 16 KiB. Bytes behind its variable data are no part of it: the NV index has one size.
func ParseHCL(b []byte) (HCLReport, error) {
	if len(b) < hclVarData || len(b) > maxHCL || string(b[:4]) != "HCLA" {
		return HCLReport{}, fmt.Errorf("HCL report: %d bytes that begin with %q; want %d to %d, HCLA first",
			len(b), b[:min(4, len(b))], hclVarData, maxHCL)
	}
	var request [5]uint32
	for i := range request {
		request[i] = binary.LittleEndian.Uint32(b[hclRequest+4*i:])
	}
	size, version, kind, hash, n := request[0], request[1], request[2], request[3], request[4]
	h := HCLReport{Hardware: b[hclHardware:hclRequest]}
	switch kind {
	case 2:
		h.Kind = AzSNPvTPM
	case 4:
		h.Kind, h.Hardware = AzTDXvTPM, h.Hardware[:tdReport]
	default:
		return HCLReport{}, fmt.Errorf("HCL report: of type %d, want 2 (SNP) or 4 (TDX)", kind)
	}
	if version != 1 || hash != 1 {
		return HCLReport{}, fmt.Errorf("HCL report: data of version %d with hash type %d, want 1 and 1 (SHA-256)", version, hash)
	}
	if uint64(n) > uint64(len(b)-hclVarData) || size != n+hclVarData-hclRequest {
		return HCLReport{}, fmt.Errorf("HCL report: %d bytes of variable data, %d with their header, and %d are there",
			n, size, len(b)-hclVarData)
	}
	h.VarData = b[hclVarData:][:n]
	if err := h.readVarData(); err != nil {
		return HCLReport{}, fmt.Errorf("HCL report: %w", err)
	}
	return h, nil
}

// Padded says that nothing but zeros is behind the variable data of the report that h was read from.
func (h *HCLReport) Padded(report []byte) bool {
	return len(bytes.TrimLeft(report[hclVarData+len(h.VarData):], "\x00")) == 0
}

// readVarData takes the key and the user data. Other members are the paravisor's own affair, and new ones come.
func (h *HCLReport) readVarData() error {
	m, err := Object(h.VarData)
	if err != nil {
		return fmt.Errorf("variable data: %w", err)
	}
	var keys []json.RawMessage
	if err := json.Unmarshal(m["keys"], &keys); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	if len(keys) > maxHCLKeys {
		return fmt.Errorf("keys: %d, at most %d", len(keys), maxHCLKeys)
	}
	for i, raw := range keys {
		k, err := Object(raw)
		if err != nil {
			return fmt.Errorf("keys[%d]: %w", i, err)
		}
		if text(k["kid"]) != "HCLAkPub" {
			continue
		}
		if h.AK != nil {
			return errors.New("HCLAkPub: twice")
		}
		if h.AK, err = attestationKey(k); err != nil {
			return fmt.Errorf("HCLAkPub: %w", err)
		}
	}
	if h.AK == nil {
		return errors.New("no key HCLAkPub")
	}
	if m["user-data"] == nil {
		return nil
	}
	if h.UserData, err = hex.DecodeString(text(m["user-data"])); err != nil {
		return fmt.Errorf("user-data: %w", err)
	}
	if n := len(h.UserData); n == 0 || n > 64 {
		return fmt.Errorf("user-data: %d bytes, want 1 to 64", n)
	}
	return nil
}

// carries says that the report was made after data was written, so that the hardware vouches for data itself and not
// only for the key that signs it.
func (h *HCLReport) carries(data []byte) bool {
	return len(data) == azureData && bytes.HasPrefix(h.UserData, data)
}

func attestationKey(jwk map[string]json.RawMessage) (*rsa.PublicKey, error) {
	n, err1 := decode64(base64.RawURLEncoding, text(jwk["n"]))
	e, err2 := decode64(base64.RawURLEncoding, text(jwk["e"]))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if kty := text(jwk["kty"]); kty != "RSA" || len(n) != tpmSignature || n[0]&0x80 == 0 {
		return nil, fmt.Errorf("kty %.10q with a modulus of %d bytes, want RSA of %d bits", kty, len(n), 8*tpmSignature)
	}
	exp, err := exponent(e)
	if err != nil {
		return nil, err
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: exp}, nil
}

// text is a JSON string, or "" for anything else.
func text(raw json.RawMessage) (s string) {
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
