package evidence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Of TPM 2.0 Library, Part 2: TPMS_ATTEST (§10.12.12) and what is in it. Numbers are big-endian.
const (
	tpmGenerated  = 0xFF544347
	tpmAttestQuot = 0x8018 // TPM_ST_ATTEST_QUOTE
	tpmSHA256     = 0x000B
	tpmClock      = 8 + 4 + 4 + 1 + 8 // TPMS_CLOCK_INFO, then the firmware's version
	maxTPMName    = 68                // an algorithm and the longest digest
	maxTPMData    = 66
	maxTPMAttest  = 512
	tpmSignature  = 256 // of an RSA key of 2048 bits, bytes
)

// A TPMAttest is what a TPM signed: PCRs 0 to 23 of its SHA-256 bank.
type TPMAttest struct {
	ExtraData []byte   // the qualifying data, at most 66 bytes; on Azure 48
	PCRDigest [32]byte // SHA-256 of the PCRs one after the other
}

// ParseTPMAttest reads a TPMS_ATTEST that is a quote over PCRs 0 to 23 of the SHA-256 bank and nothing else: a quote over
// fewer would leave PCRs that nobody vouches for.
func ParseTPMAttest(message []byte) (TPMAttest, error) {
	a, err := parseTPMAttest(message)
	if err != nil {
		return TPMAttest{}, fmt.Errorf("TPM quote: %w", err)
	}
	return a, nil
}

func parseTPMAttest(message []byte) (a TPMAttest, err error) {
	if len(message) > maxTPMAttest {
		return a, fmt.Errorf("%d bytes, at most %d", len(message), maxTPMAttest)
	}
	r := &tpmReader{b: message}
	if magic, typ := r.number(4), r.number(2); magic != tpmGenerated || typ != tpmAttestQuot {
		return a, fmt.Errorf("magic %#x of type %#x, want %#x of type %#x", magic, typ, tpmGenerated, tpmAttestQuot)
	}
	r.sized(maxTPMName)
	a.ExtraData = bytes.Clone(r.sized(maxTPMData))
	r.take(tpmClock)
	banks, alg, selected := r.number(4), r.number(2), r.take(int(r.number(1)))
	digest := r.sized(len(a.PCRDigest))
	switch {
	case r.short:
		return a, errors.New("ends in the middle, or a part of it is too long")
	case len(r.b) > 0:
		return a, fmt.Errorf("%d bytes behind its end", len(r.b))
	case banks != 1 || alg != tpmSHA256 || !bytes.Equal(selected, []byte{0xFF, 0xFF, 0xFF}):
		return a, fmt.Errorf("of %d banks, the first of algorithm %#x with PCRs %x; want PCRs ffffff of SHA-256 (%#x)", banks, alg, selected, tpmSHA256)
	case len(digest) != len(a.PCRDigest):
		return a, fmt.Errorf("digest of %d bytes, want %d", len(digest), len(a.PCRDigest))
	}
	a.PCRDigest = [32]byte(digest)
	return a, nil
}

// A tpmReader gives nothing more once it was asked for more than there is.
type tpmReader struct {
	b     []byte
	short bool
}

func (r *tpmReader) take(n int) []byte {
	if r.short || n > len(r.b) {
		r.short = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

// number reads 1, 2 or 4 bytes.
func (r *tpmReader) number(size int) uint32 {
	var b [4]byte
	copy(b[4-size:], r.take(size))
	return binary.BigEndian.Uint32(b[:])
}

// sized reads a TPM2B: its length as u16, then at most limit bytes.
func (r *tpmReader) sized(limit int) []byte {
	n := int(r.number(2))
	if n > limit {
		r.short = true
	}
	return r.take(n)
}
