package vtpm

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// What the paravisor keeps in the TPM (wire/SPEC.md §2.3).
const (
	nvReport   = tpm2.TPMHandle(0x01400001)
	nvUserData = tpm2.TPMHandle(0x01400002)
	akHandle   = tpm2.TPMHandle(0x81000003)
)

const (
	maxReport  = 16 << 10 // of the HCL report, bytes
	nvChunk    = 512      // bytes a command; TPMs take at least that
	userData   = 48       // bytes: what fits into TPM2B_DATA on Azure
	quoteTries = 5        // until no PCR changes between quote and reading
)

var errNoIndex = errors.New("the TPM has no such NV index")

// A chip is a TPM whose owner has the empty password.
type chip struct{ transport.TPM }

var owner = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}

// index looks an NV index up: its size, bytes. The error is errNoIndex if there is none.
func (c chip) index(h tpm2.TPMHandle) (tpm2.NamedHandle, int, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: h}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return tpm2.NamedHandle{}, 0, fmt.Errorf("%w: 0x%08x", errNoIndex, h)
	}
	if err != nil {
		return tpm2.NamedHandle{}, 0, fmt.Errorf("NV index 0x%08x: %w", h, err)
	}
	pub, err := rsp.NVPublic.Contents()
	if err != nil {
		return tpm2.NamedHandle{}, 0, fmt.Errorf("NV index 0x%08x: %w", h, err)
	}
	return tpm2.NamedHandle{Handle: h, Name: rsp.NVName}, int(pub.DataSize), nil
}

// report reads the HCL report as it is now.
func (c chip) report() ([]byte, error) {
	index, size, err := c.index(nvReport)
	if err != nil {
		return nil, err
	}
	if size > maxReport {
		return nil, fmt.Errorf("NV index 0x%08x: %d bytes, limit %d", nvReport, size, maxReport)
	}
	b := make([]byte, 0, size)
	for len(b) < size {
		n := min(nvChunk, size-len(b))
		rsp, err := tpm2.NVRead{AuthHandle: owner, NVIndex: index, Size: uint16(n), Offset: uint16(len(b))}.Execute(c)
		if err != nil {
			return nil, fmt.Errorf("read NV index 0x%08x: %w", nvReport, err)
		}
		if len(rsp.Data.Buffer) != n {
			return nil, fmt.Errorf("read NV index 0x%08x: %d bytes, asked for %d", nvReport, len(rsp.Data.Buffer), n)
		}
		b = append(b, rsp.Data.Buffer...)
	}
	return b, nil
}

// setUserData tells the paravisor what its next report is to carry: 48 bytes.
func (c chip) setUserData(data []byte) error {
	index, size, err := c.index(nvUserData)
	if err == nil && size != userData {
		if _, err := (tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: index}).Execute(c); err != nil {
			return fmt.Errorf("delete NV index 0x%08x of %d bytes: %w", nvUserData, size, err)
		}
	} else if err != nil && !errors.Is(err, errNoIndex) {
		return err
	}
	if size != userData {
		_, err := tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex:    nvUserData,
			NameAlg:    tpm2.TPMAlgSHA256,
			Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true, NT: tpm2.TPMNTOrdinary},
			DataSize:   userData,
		})}.Execute(c)
		if err != nil {
			return fmt.Errorf("create NV index 0x%08x: %w", nvUserData, err)
		}
		if index, _, err = c.index(nvUserData); err != nil {
			return err
		}
	}
	if _, err := (tpm2.NVWrite{AuthHandle: owner, NVIndex: index, Data: tpm2.TPM2BMaxNVBuffer{Buffer: data}}).Execute(c); err != nil {
		return fmt.Errorf("write NV index 0x%08x: %w", nvUserData, err)
	}
	return nil
}

// selection is slots of the SHA-256 bank.
func selection(slots ...uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      tpm2.TPMAlgSHA256,
		PCRSelect: tpm2.PCClientCompatible.PCRs(slots...),
	}}}
}

func (c chip) pcr(slot uint) (v [32]byte, err error) {
	rsp, err := tpm2.PCRRead{PCRSelectionIn: selection(slot)}.Execute(c)
	if err != nil {
		return v, fmt.Errorf("read PCR %d: %w", slot, err)
	}
	if d := rsp.PCRValues.Digests; len(d) != 1 || len(d[0].Buffer) != len(v) {
		return v, fmt.Errorf("read PCR %d: the TPM has no SHA-256 bank", slot)
	}
	return [32]byte(rsp.PCRValues.Digests[0].Buffer), nil
}

func (c chip) extend(slot uint, digest [32]byte) error {
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(slot), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(c)
	if err != nil {
		return fmt.Errorf("extend PCR %d: %w", slot, err)
	}
	return nil
}

// quote has all PCRs signed over data, and checks that ak signed what was asked for.
func (c chip) quote(data []byte, ak *rsa.PublicKey) (*evidence.TPMQuote, error) {
	all := make([]uint, 24)
	for i := range all {
		all[i] = uint(i)
	}
	key, err := tpm2.ReadPublic{ObjectHandle: akHandle}.Execute(c)
	if err != nil {
		return nil, fmt.Errorf("TPM key 0x%08x: %w", akHandle, err)
	}
	for range quoteTries {
		rsp, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: akHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: data},
			InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
			PCRSelect: selection(all...),
		}.Execute(c)
		if err != nil {
			return nil, fmt.Errorf("TPM quote by key 0x%08x: %w", akHandle, err)
		}
		q, digest, err := readQuote(rsp, data, ak)
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		for i := range q.PCRs {
			if q.PCRs[i], err = c.pcr(uint(i)); err != nil {
				return nil, err
			}
			h.Write(q.PCRs[i][:])
		}
		if bytes.Equal(h.Sum(nil), digest) {
			return q, nil
		}
	}
	return nil, fmt.Errorf("TPM quote: PCRs changed under each of %d tries", quoteTries)
}

func readQuote(rsp *tpm2.QuoteResponse, data []byte, ak *rsa.PublicKey) (*evidence.TPMQuote, []byte, error) {
	sig, err := rsp.Signature.Signature.RSASSA()
	if err != nil {
		return nil, nil, fmt.Errorf("TPM quote: signature: %w", err)
	}
	message := rsp.Quoted.Bytes()
	sum := sha256.Sum256(message)
	if err := rsa.VerifyPKCS1v15(ak, crypto.SHA256, sum[:], sig.Sig.Buffer); err != nil {
		return nil, nil, fmt.Errorf("TPM quote: not signed by the HCLAkPub of the HCL report: %w", err)
	}
	attest, err := rsp.Quoted.Contents()
	if err != nil {
		return nil, nil, fmt.Errorf("TPM quote: %w", err)
	}
	info, err := attest.Attested.Quote()
	if err != nil {
		return nil, nil, fmt.Errorf("TPM quote: %w", err)
	}
	if !bytes.Equal(attest.ExtraData.Buffer, data) {
		return nil, nil, errors.New("TPM quote: it carries other data than was asked for")
	}
	return &evidence.TPMQuote{Signature: sig.Sig.Buffer, Message: message}, info.PCRDigest.Buffer, nil
}
