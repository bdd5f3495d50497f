// Package paravisor plays the part of an Azure confidential VM's paravisor, for tests: it provisions a TPM, keeps the report
// in it fresh, and answers as the metadata service does.
package paravisor

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Where a paravisor keeps things (wire/SPEC.md §2.3).
const (
	NVReport   = tpm2.TPMHandle(0x01400001)
	NVUserData = tpm2.TPMHandle(0x01400002)
	AK         = tpm2.TPMHandle(0x81000003)
)

// nvSize is that of the report's index, bytes: the most that libtpms takes.
const nvSize = 2048

// Options say what the paravisor runs on.
type Options struct {
	Kind evidence.Kind // AzSNPvTPM or AzTDXvTPM
	// Hardware makes the report of the hardware: 1184 bytes of SNP, or 1024 of TDREPORT.
	Hardware func(reportData [64]byte) ([]byte, error)
}

// HCLReport builds what NV index 0x01400001 holds.
func HCLReport(o Options, ak *rsa.PublicKey, userData []byte) ([]byte, error) {
	vars, err := json.Marshal(map[string]any{
		"keys": []map[string]any{{
			"kid": "HCLAkPub", "kty": "RSA", "key_ops": []string{"sign"},
			"n": base64.RawURLEncoding.EncodeToString(ak.N.Bytes()), "e": "AQAB",
		}},
		"user-data": hex.EncodeToString(append(bytes.Clone(userData), make([]byte, max(0, 64-len(userData)))...)),
	})
	if err != nil {
		return nil, err
	}
	var data [64]byte
	sum := sha256.Sum256(vars)
	copy(data[:], sum[:])
	hw, err := o.Hardware(data)
	if err != nil {
		return nil, err
	}
	typ := uint32(2)
	if o.Kind == evidence.AzTDXvTPM {
		typ = 4
	}
	if len(hw) > 1184 {
		return nil, fmt.Errorf("hardware report: %d bytes, limit 1184", len(hw))
	}
	b := make([]byte, 0x4c0)
	copy(b, "HCLA")
	binary.LittleEndian.PutUint32(b[4:], 2)
	copy(b[0x20:], hw)
	for _, v := range []uint32{uint32(20 + len(vars)), 1, typ, 1, uint32(len(vars))} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(b, vars...), nil
}

// A Paravisor is a TPM that refreshes its report when user-data is written through it.
type Paravisor struct {
	tpm transport.TPM
	o   Options
	ak  *rsa.PublicKey

	mu    sync.Mutex
	Stale int // that many writes of user-data are not followed by a refresh
}

var owner = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}

// Provision makes the key and the report in a TPM that has neither.
func Provision(tpm transport.TPM, o Options) (*Paravisor, error) {
	scheme := tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})
	key, err := tpm2.CreatePrimary{
		PrimaryHandle: owner,
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, Restricted: true, FixedTPM: true, FixedParent: true,
				SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
				Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: scheme}, KeyBits: 2048}),
		}),
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("make the key: %w", err)
	}
	defer tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(tpm)
	pub, err := key.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	parms, err := pub.Parameters.RSADetail()
	if err != nil {
		return nil, err
	}
	unique, err := pub.Unique.RSA()
	if err != nil {
		return nil, err
	}
	ak, err := tpm2.RSAPub(parms, unique)
	if err != nil {
		return nil, err
	}
	_, err = tpm2.EvictControl{Auth: owner, ObjectHandle: &tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name},
		PersistentHandle: AK}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("keep the key: %w", err)
	}
	_, err = tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: NVReport, NameAlg: tpm2.TPMAlgSHA256, DataSize: nvSize,
		Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true, NT: tpm2.TPMNTOrdinary},
	})}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("make the report's index: %w", err)
	}
	p := &Paravisor{tpm: tpm, o: o, ak: ak}
	return p, p.Refresh(nil)
}

// Refresh writes a new report with that user-data.
func (p *Paravisor) Refresh(userData []byte) error {
	b, err := HCLReport(p.o, p.ak, userData)
	if err != nil {
		return err
	}
	return p.Write(b)
}

// Write puts any bytes where the report is, zeros behind them: tests of garbage want that.
func (p *Paravisor) Write(b []byte) error {
	if len(b) > nvSize {
		return fmt.Errorf("HCL report: %d bytes, limit %d", len(b), nvSize)
	}
	b = append(bytes.Clone(b), make([]byte, nvSize-len(b))...)
	index, err := named(p.tpm, NVReport)
	if err != nil {
		return err
	}
	for at := 0; at < nvSize; at += 512 {
		_, err := tpm2.NVWrite{AuthHandle: owner, NVIndex: index, Offset: uint16(at),
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: b[at:][:512]}}.Execute(p.tpm)
		if err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

func named(tpm transport.TPM, h tpm2.TPMHandle) (tpm2.NamedHandle, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: h}.Execute(tpm)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	return tpm2.NamedHandle{Handle: h, Name: rsp.NVName}, nil
}

// Send passes a guest's command on.
func (p *Paravisor) Send(command []byte) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answer, err := p.tpm.Send(command)
	if err != nil || len(command) < 18 || len(answer) < 10 || binary.BigEndian.Uint32(answer[6:]) != 0 ||
		binary.BigEndian.Uint32(command[6:]) != uint32(tpm2.TPMCCNVWrite) ||
		binary.BigEndian.Uint32(command[14:]) != uint32(NVUserData) {
		return answer, err
	}
	if p.Stale > 0 {
		p.Stale--
		return answer, nil
	}
	index, err := named(p.tpm, NVUserData)
	if err != nil {
		return nil, err
	}
	rsp, err := tpm2.NVRead{AuthHandle: owner, NVIndex: index, Size: 48}.Execute(p.tpm)
	if err != nil {
		return nil, err
	}
	return answer, p.Refresh(rsp.Data.Buffer)
}

// IMDS answers as Azure's metadata service does.
type IMDS struct {
	VCEK  []byte                              // DER
	Quote func(report []byte) ([]byte, error) // signs a TDREPORT of 1024 bytes
}

func (m *IMDS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Metadata") != "true" {
		http.Error(w, "no Metadata header", http.StatusBadRequest)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /metadata/THIM/amd/certification":
		cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.VCEK})
		json.NewEncoder(w).Encode(map[string]string{"vcekCert": string(cert), "certificateChain": ""})
	case "POST /acc/tdquote":
		m.quote(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (m *IMDS) quote(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Report string `json:"report"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	report, err := base64.RawURLEncoding.DecodeString(body.Report)
	if err != nil || len(report) != 1024 {
		http.Error(w, "want 1024 bytes of TDREPORT", http.StatusBadRequest)
		return
	}
	quote, err := m.Quote(report)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(map[string]string{"quote": base64.RawURLEncoding.EncodeToString(quote)})
}
