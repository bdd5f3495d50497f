package vtpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// The layout of the paravisor's report (wire/SPEC.md §2.3), bytes.
const (
	hardwareAt  = 0x20
	hardwareLen = 1184
	requestAt   = 0x4c0
	varAt       = 0x4d4
	tdReportLen = 1024
)

// errOtherKind says that a report is whole, and of a TEE that this package does not know.
var errOtherKind = errors.New("HCL report of an unknown TEE")

// hclReport is what the paravisor says of itself and of the vTPM.
type hclReport struct {
	kind     evidence.Kind
	hardware []byte // SNP report or TDREPORT, over the SHA-256 of varData
	varData  []byte
	ak       *rsa.PublicKey
	userData []byte // what NV index 0x01400002 held when it was made
}

// parseHCL reads a report; bytes behind its variable data are no part of it.
func parseHCL(b []byte) (hclReport, error) {
	if len(b) < varAt || string(b[:4]) != "HCLA" {
		return hclReport{}, fmt.Errorf("HCL report: %d bytes that do not begin as one", len(b))
	}
	u32 := func(i int) uint32 { return binary.LittleEndian.Uint32(b[requestAt+4*i:]) }
	r := hclReport{hardware: b[hardwareAt:][:hardwareLen]}
	switch typ := u32(2); typ {
	case 2:
		r.kind = evidence.AzSNPvTPM
	case 4:
		r.kind, r.hardware = evidence.AzTDXvTPM, r.hardware[:tdReportLen]
	default:
		return hclReport{}, fmt.Errorf("%w: type %d, want 2 (SNP) or 4 (TDX)", errOtherKind, typ)
	}
	if typ := u32(3); typ != 1 {
		return hclReport{}, fmt.Errorf("HCL report: hash type %d, want 1 (SHA-256)", typ)
	}
	n := u32(4)
	if uint64(n) > uint64(len(b)-varAt) {
		return hclReport{}, fmt.Errorf("HCL report: %d bytes of variable data, %d are there", n, len(b)-varAt)
	}
	r.varData = b[varAt:][:n]
	return r, r.readVar()
}

func (r *hclReport) readVar() error {
	var v struct {
		Keys []struct {
			Kid, Kty, N, E string
		} `json:"keys"`
		UserData string `json:"user-data"`
	}
	if err := json.Unmarshal(r.varData, &v); err != nil {
		return fmt.Errorf("HCL variable data: %w", err)
	}
	var err error
	if r.userData, err = hex.DecodeString(v.UserData); err != nil {
		return fmt.Errorf("HCL user-data: %w", err)
	}
	for _, k := range v.Keys {
		if k.Kid != "HCLAkPub" {
			continue
		}
		n, err := base64.RawURLEncoding.DecodeString(k.N)
		e, err2 := base64.RawURLEncoding.DecodeString(k.E)
		if err := errors.Join(err, err2); err != nil {
			return fmt.Errorf("HCLAkPub: %w", err)
		}
		if k.Kty != "RSA" || len(n) != 256 || len(e) == 0 || len(e) > 4 || r.ak != nil {
			return errors.New("HCLAkPub: want one RSA key of 2048 bits")
		}
		r.ak = &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	}
	if r.ak == nil {
		return errors.New("HCL variable data: no key HCLAkPub")
	}
	return nil
}

// vouchedBy is an error unless data, the report data of the hardware, is over the variable data.
func (r *hclReport) vouchedBy(data [64]byte) error {
	if sum := sha256.Sum256(r.varData); !bytes.Equal(data[:32], sum[:]) {
		return errors.New("HCL report: the hardware's report is over other variable data")
	}
	return nil
}
