package psp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// PEM types of what the files of a chip hold behind its key. Answers of Intel's have none of their own.
const (
	crlBlock        = "X509 CRL"
	certBlock       = "CERTIFICATE"
	tcbInfoBlock    = "SIMULATED TCB INFO"
	qeIdentityBlock = "SIMULATED QE IDENTITY"
)

// Collateral is what AMD or Intel would say of the chip, for a receipt with evidence of the kind. It is nil for a chip that an
// older version of this program made.
func (p *PSP) Collateral(kind evidence.Kind) *result.Collateral {
	switch {
	case kind == evidence.SNP && p.crl != nil:
		return &result.Collateral{AMD: &result.AMDCollateral{Certificates: [][]byte{p.vcek.Raw, p.ask.Raw, p.ark.Raw}, CRL: p.crl}}
	case kind == evidence.AzSNPvTPM && p.crl != nil:
		return &result.Collateral{AMD: &result.AMDCollateral{Certificates: [][]byte{p.ask.Raw, p.ark.Raw}, CRL: p.crl}}
	case (kind == evidence.TDX || kind == evidence.AzTDXvTPM) && p.tdx.collateral != nil:
		return &result.Collateral{Intel: p.tdx.collateral}
	}
	return nil
}

// emptyCRL revokes nothing, for as long as the chip lasts.
func emptyCRL(issuer *x509.Certificate, key crypto.Signer, sigAlgo x509.SignatureAlgorithm) ([]byte, error) {
	l := &x509.RevocationList{
		SignatureAlgorithm: sigAlgo, Number: big.NewInt(1), ThisUpdate: issuer.NotBefore, NextUpdate: issuer.NotBefore.AddDate(25, 0, 0),
	}
	return x509.CreateRevocationList(rand.Reader, l, issuer, key)
}

// splitBlocks reads the PEM blocks behind the private key, by their type.
func splitBlocks(b []byte) map[string][][]byte {
	blocks, behind := map[string][][]byte{}, false
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if behind {
			blocks[block.Type] = append(blocks[block.Type], block.Bytes)
		}
		behind = behind || block.Type == "PRIVATE KEY"
	}
	return blocks
}

// intelAnswers are what Intel's provisioning service says of the simulated platform, all of it good, signed by a key that is
// thrown away. They last as long as the certificates.
func intelAnswers(from time.Time, signer *ecdsa.PrivateKey) (tcbInfo, qeIdentity []byte, err error) {
	zeros := func(n int) string { return hex.EncodeToString(make([]byte, n)) }
	parts := func(svns []byte) (out []map[string]int) {
		for _, n := range svns {
			out = append(out, map[string]int{"svn": int(n)})
		}
		return out
	}
	good := func(tcb any) map[string]any {
		return map[string]any{"tcb": tcb, "tcbDate": from.UTC().Format(time.RFC3339), "tcbStatus": "UpToDate"}
	}
	until := from.AddDate(25, 0, 0).UTC().Format(time.RFC3339)
	module := map[string]any{"mrsigner": zeros(48), "attributes": zeros(8), "attributesMask": strings.Repeat("ff", 8)}
	identity := map[string]any{
		"id": fmt.Sprintf("TDX_%02x", teeTCBSVN[1]), "mrsigner": zeros(48), "attributes": zeros(8), "attributesMask": strings.Repeat("ff", 8),
		"tcbLevels": []any{good(map[string]int{"isvsvn": int(teeTCBSVN[0])})},
	}
	if tcbInfo, err = answer(signer, "tcbInfo", map[string]any{
		"id": "TDX", "version": 3, "issueDate": from.UTC().Format(time.RFC3339), "nextUpdate": until,
		"fmspc": hex.EncodeToString(fmspc), "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 1,
		"tdxModule": module, "tdxModuleIdentities": []any{identity},
		"tcbLevels": []any{good(map[string]any{"sgxtcbcomponents": parts(cpuSVN[:]), "pcesvn": pceSVN, "tdxtcbcomponents": parts(teeTCBSVN[:])})},
	}); err != nil {
		return nil, nil, err
	}
	enclave := sha256.Sum256([]byte(enclaveName))
	qeIdentity, err = answer(signer, "enclaveIdentity", map[string]any{
		"id": "TD_QE", "version": 2, "issueDate": from.UTC().Format(time.RFC3339), "nextUpdate": until, "tcbEvaluationDataNumber": 1,
		"miscselect": zeros(4), "miscselectMask": strings.Repeat("ff", 4), "attributes": zeros(16), "attributesMask": zeros(16),
		"mrsigner": hex.EncodeToString(enclave[:]), "isvprodid": 2,
		"tcbLevels": []any{good(map[string]int{"isvsvn": 5})},
	})
	return tcbInfo, qeIdentity, err
}

func answer(signer *ecdsa.PrivateKey, member string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	signature, err := signP256(signer, body)
	return fmt.Appendf(nil, `{"%s":%s,"signature":"%x"}`, member, body, signature), err
}

// parseCollateral reads what a file holds behind its key; nil where an older version made it.
func (c *tdxChain) parseCollateral(b []byte) *result.IntelCollateral {
	m := splitBlocks(b)
	if len(m[crlBlock]) != 2 || len(m[certBlock]) != 1 || len(m[tcbInfoBlock]) != 1 || len(m[qeIdentityBlock]) != 1 {
		return nil
	}
	issuers := slices.Concat(pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: m[certBlock][0]}), certPEM(c.root))
	return &result.IntelCollateral{
		TCBInfo: m[tcbInfoBlock][0], QEIdentity: m[qeIdentityBlock][0], Issuers: issuers, RootCRL: m[crlBlock][0], PCKCRL: m[crlBlock][1],
	}
}
