package evidence

import (
	"encoding/binary"
	"fmt"
)

// Sizes of a DCAP quote, bytes (Intel SGX DCAP quote generation API, quote format; wire/SPEC.md §7).
const (
	tdxHeader   = 48
	tdxBody10   = 584      // TDREPORT of TDX 1.0
	tdxBody15   = 648      // of TDX 1.5: the same, then TEE_TCB_SVN_2 and MRSERVICETD
	maxTDXQuote = 16 << 10 // a real one has 5 KiB
)

// A TDXReport is what the TDX module says of a guest: the body of a quote. Registers are as they stand there.
type TDXReport struct {
	TEETCBSVN                                [16]byte
	MRSeam, MRSignerSeam                     [48]byte
	SeamAttributes, Attributes, XFAM         uint64
	MRTD, MRConfigID, MROwner, MROwnerConfig [48]byte
	RTMR                                     [4][48]byte
	ReportData                               [64]byte
	TEETCBSVN2                               [16]byte // TDX 1.5 only
	MRServiceTD                              [48]byte // TDX 1.5 only
}

// TDXAttributesDebug is the bit of TDXReport.Attributes by which the host can read the guest.
const TDXAttributesDebug = 1 << 0

// A TDXQuote is a report that a quoting enclave signed.
type TDXQuote struct {
	Version     int // 4 or 5
	BodyVersion int // 10 or 15: TDX 1.0 or 1.5
	QEVendorID  [16]byte
	UserData    [20]byte
	Report      TDXReport
	Signed      []byte // header and body: what the attestation key signs
	Auth        []byte // the signature data, without its length
}

// ParseTDX reads a quote of version 4 or 5 that is signed with ECDSA P-256. Bytes behind it are no part of it:
// quoting services pad, with zeros or with what was in their buffer.
func ParseTDX(quote []byte) (TDXQuote, error) {
	var q TDXQuote
	if n := len(quote); n < tdxHeader+tdxBody10+4 || n > maxTDXQuote {
		return q, fmt.Errorf("TDX quote: %d bytes, want %d to %d", n, tdxHeader+tdxBody10+4, maxTDXQuote)
	}
	q.Version = int(binary.LittleEndian.Uint16(quote))
	if k := binary.LittleEndian.Uint16(quote[2:]); k != 2 {
		return q, fmt.Errorf("TDX quote: attestation key type %d, want 2 (ECDSA P-256)", k)
	}
	if t := binary.LittleEndian.Uint32(quote[4:]); t != 0x81 {
		return q, fmt.Errorf("TDX quote: TEE type %#x, want 0x81 (TDX)", t)
	}
	copy(q.QEVendorID[:], quote[12:])
	copy(q.UserData[:], quote[28:])
	at, size := tdxHeader, tdxBody10
	switch q.Version {
	case 4:
	case 5:
		kind, n := binary.LittleEndian.Uint16(quote[at:]), binary.LittleEndian.Uint32(quote[at+2:])
		switch {
		case kind == 2 && n == tdxBody10:
		case kind == 3 && n == tdxBody15:
			size = tdxBody15
		default:
			return q, fmt.Errorf("TDX quote: body of type %d and %d bytes; known are 2 (%d bytes) and 3 (%d bytes)", kind, n, tdxBody10, tdxBody15)
		}
		at += 6
	default:
		return q, fmt.Errorf("TDX quote: version %d, want 4 or 5", q.Version)
	}
	q.BodyVersion = 10
	if size == tdxBody15 {
		q.BodyVersion = 15
	}
	if len(quote) < at+size+4 {
		return q, fmt.Errorf("TDX quote: %d bytes, the body alone ends at %d", len(quote), at+size)
	}
	q.Report.unmarshal(quote[at : at+size])
	at += size
	q.Signed = quote[:at]
	n := binary.LittleEndian.Uint32(quote[at:])
	rest := quote[at+4:]
	if uint64(n) > uint64(len(rest)) {
		return q, fmt.Errorf("TDX quote: signature data of %d bytes, %d are there", n, len(rest))
	}
	q.Auth = rest[:n]
	return q, nil
}

// each visits every byte string of the body with its offset, TDX 1.5 included.
func (r *TDXReport) each(f func(offset int, b []byte)) {
	f(0, r.TEETCBSVN[:])
	f(16, r.MRSeam[:])
	f(64, r.MRSignerSeam[:])
	f(136, r.MRTD[:])
	f(184, r.MRConfigID[:])
	f(232, r.MROwner[:])
	f(280, r.MROwnerConfig[:])
	for i := range r.RTMR {
		f(328+48*i, r.RTMR[i][:])
	}
	f(520, r.ReportData[:])
	f(584, r.TEETCBSVN2[:])
	f(600, r.MRServiceTD[:])
}

func (r *TDXReport) unmarshal(body []byte) {
	full := make([]byte, tdxBody15)
	copy(full, body)
	r.each(func(at int, b []byte) { copy(b, full[at:]) })
	r.SeamAttributes = binary.LittleEndian.Uint64(full[112:])
	r.Attributes = binary.LittleEndian.Uint64(full[120:])
	r.XFAM = binary.LittleEndian.Uint64(full[128:])
}

// Marshal writes the 584 bytes of a TDX 1.0 body.
func (r *TDXReport) Marshal() []byte {
	out := make([]byte, tdxBody15)
	r.each(func(at int, b []byte) { copy(out[at:], b) })
	binary.LittleEndian.PutUint64(out[112:], r.SeamAttributes)
	binary.LittleEndian.PutUint64(out[120:], r.Attributes)
	binary.LittleEndian.PutUint64(out[128:], r.XFAM)
	return out[:tdxBody10]
}
