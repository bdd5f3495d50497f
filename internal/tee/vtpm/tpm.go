package vtpm

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// What the paravisor keeps in the TPM (wire/SPEC.md §2.3).
const (
	nvReport   = 0x01400001
	nvUserData = 0x01400002
	akHandle   = 0x81000003
)

const (
	maxReport  = 16 << 10 // of the HCL report, bytes
	nvChunk    = 512      // bytes a command; TPMs take at least that
	userData   = 48       // bytes: what fits into TPM2B_DATA on Azure
	quoteTries = 5        // until no PCR changes between quote and reading
)

// Attributes of an NV index (TPM 2.0 Library, Part 2, TPMA_NV).
const ownerWriteRead = 1<<1 | 1<<17

var errNoIndex = errors.New("the TPM has no such NV index")

// A chip is a TPM whose owner has the empty password.
type chip struct{ Transport }

// size looks an NV index up: its size, bytes. The error is errNoIndex if there is none.
func (c chip) size(index uint32) (int, error) {
	a, err := (&command{code: ccNVReadPublic}).handles(index).do(c)
	if noHandle(err) {
		return 0, fmt.Errorf("%w: 0x%08x", errNoIndex, index)
	}
	if err != nil {
		return 0, fmt.Errorf("NV index 0x%08x: %w", index, err)
	}
	public := answer{b: a.sized()}
	a.sized() // its name
	got := public.u32()
	public.u16() // algorithm of the name
	public.u32() // attributes
	public.sized()
	size := public.u16()
	if err := errors.Join(a.end(), public.end()); err != nil {
		return 0, fmt.Errorf("NV index 0x%08x: %w", index, err)
	}
	if got != index {
		return 0, fmt.Errorf("NV index 0x%08x: the TPM describes 0x%08x", index, got)
	}
	return int(size), nil
}

// report reads the HCL report as it is now.
func (c chip) report() ([]byte, error) {
	size, err := c.size(nvReport)
	if err != nil {
		return nil, err
	}
	if size > maxReport {
		return nil, fmt.Errorf("NV index 0x%08x: %d bytes, limit %d", nvReport, size, maxReport)
	}
	b := make([]byte, 0, size)
	for len(b) < size {
		got, err := c.read(min(nvChunk, size-len(b)), len(b))
		if err != nil {
			return nil, err
		}
		b = append(b, got...)
	}
	return b, nil
}

// setUserData tells the paravisor what its next report is to carry: 48 bytes.
func (c chip) setUserData(data []byte) error {
	size, err := c.size(nvUserData)
	if err == nil && size != userData {
		if err := c.undefine(); err != nil {
			return err
		}
	} else if err != nil && !errors.Is(err, errNoIndex) {
		return err
	}
	if size != userData {
		if err := c.define(); err != nil {
			return err
		}
	}
	return c.write(data)
}

func (c chip) define() error {
	public := (&command{}).u32(nvUserData).u16(algSHA256).u32(ownerWriteRead).sized(nil).u16(userData).param
	if _, err := (&command{code: ccNVDefineSpace, auth: true}).handles(rhOwner).sized(nil).sized(public).do(c); err != nil {
		return fmt.Errorf("create NV index 0x%08x: %w", nvUserData, err)
	}
	return nil
}

func (c chip) undefine() error {
	if _, err := (&command{code: ccNVUndefineSpace, auth: true}).handles(rhOwner, nvUserData).do(c); err != nil {
		return fmt.Errorf("delete NV index 0x%08x: %w", nvUserData, err)
	}
	return nil
}

func (c chip) write(data []byte) error {
	if _, err := (&command{code: ccNVWrite, auth: true}).handles(rhOwner, nvUserData).sized(data).u16(0).do(c); err != nil {
		return fmt.Errorf("write NV index 0x%08x: %w", nvUserData, err)
	}
	return nil
}

// read gives n bytes of the report, from an offset on.
func (c chip) read(n, from int) ([]byte, error) {
	a, err := (&command{code: ccNVRead, auth: true}).handles(rhOwner, nvReport).u16(uint16(n), uint16(from)).do(c)
	if err != nil {
		return nil, fmt.Errorf("read NV index 0x%08x: %w", nvReport, err)
	}
	got := a.sized()
	if a.end() != nil || len(got) != n {
		return nil, fmt.Errorf("read NV index 0x%08x: %d bytes, asked for %d", nvReport, len(got), n)
	}
	return got, nil
}

// pcr reads one PCR of the SHA-256 bank.
func (c chip) pcr(slot uint) (v [32]byte, err error) {
	a, err := (&command{code: ccPCRRead}).pcrs(slot).do(c)
	if err != nil {
		return v, fmt.Errorf("read PCR %d: %w", slot, err)
	}
	a.u32() // counts changes
	want := (&command{}).pcrs(slot).param
	selected := a.take(len(want))
	values, digest := a.u32(), a.sized()
	if a.end() != nil || !bytes.Equal(selected, want) || values != 1 || len(digest) != len(v) {
		return v, fmt.Errorf("read PCR %d: the TPM gives %d values of %x, want one of %x: it may have no SHA-256 bank", slot, values, selected, want)
	}
	return [32]byte(digest), nil
}

func (c chip) extend(slot uint, digest [32]byte) error {
	_, err := (&command{code: ccPCRExtend, auth: true}).handles(uint32(slot)).u32(1).u16(algSHA256).raw(digest[:]).do(c)
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
	for range quoteTries {
		q, err := c.signed(data, all)
		if err != nil {
			return nil, fmt.Errorf("TPM quote by key 0x%08x: %w", akHandle, err)
		}
		digest, err := asked(q, data, ak)
		if err != nil {
			return nil, fmt.Errorf("TPM quote: %w", err)
		}
		h := sha256.New()
		for i := range q.PCRs {
			if q.PCRs[i], err = c.pcr(uint(i)); err != nil {
				return nil, err
			}
			h.Write(q.PCRs[i][:])
		}
		if bytes.Equal(h.Sum(nil), digest[:]) {
			return q, nil
		}
	}
	return nil, fmt.Errorf("TPM quote: PCRs changed under each of %d tries", quoteTries)
}

func (c chip) signed(data []byte, slots []uint) (*evidence.TPMQuote, error) {
	a, err := (&command{code: ccQuote, auth: true}).handles(akHandle).sized(data).u16(algRSASSA, algSHA256).pcrs(slots...).do(c)
	if err != nil {
		return nil, err
	}
	message := a.sized()
	scheme := a.take(4)
	signature := a.sized()
	if err := a.end(); err != nil {
		return nil, err
	}
	if want := binary.BigEndian.AppendUint16([]byte{0, algRSASSA}, algSHA256); !bytes.Equal(scheme, want) {
		return nil, fmt.Errorf("signed by algorithm %x, want %x", scheme, want)
	}
	return &evidence.TPMQuote{Signature: signature, Message: message}, nil
}

// asked says that a quote is signed by ak and carries data, and gives the digest of the PCRs that it is over.
func asked(q *evidence.TPMQuote, data []byte, ak *rsa.PublicKey) (digest [32]byte, err error) {
	sum := sha256.Sum256(q.Message)
	if err := rsa.VerifyPKCS1v15(ak, crypto.SHA256, sum[:], q.Signature); err != nil {
		return digest, fmt.Errorf("not signed by the HCLAkPub of the HCL report: %w", err)
	}
	attest, err := evidence.ParseTPMAttest(q.Message)
	if err != nil {
		return digest, err
	}
	if !bytes.Equal(attest.ExtraData, data) {
		return digest, errors.New("it carries other data than was asked for")
	}
	return attest.PCRDigest, nil
}
