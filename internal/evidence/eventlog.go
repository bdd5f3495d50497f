package evidence

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Bounds of a TCG2 event log (TCG PC Client Platform Firmware Profile §10.2). A GKE guest's log has 60 KiB.
const (
	maxEventLog  = 1 << 20 // bytes
	maxLogEvents = 8192
	maxDigests   = 8
)

const (
	evNoAction = 3
	evEventTag = 6
	algSHA384  = 0x0C
)

// A LogEvent is one measurement as a CC event log records it.
type LogEvent struct {
	MR     int      // 1 to 4 is RTMR0 to RTMR3; 0 is MRTD, which no event extends
	Type   uint32   // TCG event type
	Digest [48]byte // SHA-384
	Data   []byte
}

// ends says that the log is over here: firmware fills the rest of its buffer with 00 or FF. CoCo looks at eight bytes.
func ends(rest []byte) bool {
	if len(rest) < 8 {
		return len(bytes.Trim(rest, "\x00")) == 0 || len(bytes.Trim(rest, "\xff")) == 0
	}
	head := rest[:8]
	return len(bytes.Trim(head, "\x00")) == 0 || len(bytes.Trim(head, "\xff")) == 0
}

// CutEventLog makes what evidence carries out of what the CCEL table shows: the events, then eight FF bytes
// (wire/SPEC.md §2.2). A log whose events cannot be followed to an end is an error.
func CutEventLog(b []byte) ([]byte, error) {
	n, err := walkLog(b, func(LogEvent) {})
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(b[:n]), bytes.Repeat([]byte{0xff}, 8)...), nil
}

// ParseEventLog reads a TCG2 log of at most 1 MiB and 8192 events, each with a SHA-384 digest. The header, which is
// no measurement, is not among the events.
func ParseEventLog(b []byte) ([]LogEvent, error) {
	var events []LogEvent
	_, err := walkLog(b, func(e LogEvent) { events = append(events, e) })
	return events, err
}

// walkLog visits the events and tells where they end.
func walkLog(b []byte, visit func(LogEvent)) (end int, err error) {
	if len(b) > maxEventLog {
		return 0, fmt.Errorf("event log: %d bytes, at most %d", len(b), maxEventLog)
	}
	r := &logReader{b: b}
	sizes, err := r.header()
	if err != nil {
		return 0, fmt.Errorf("event log: header: %w", err)
	}
	for n := 0; !ends(r.b[r.at:]); n++ {
		if n == maxLogEvents {
			return 0, fmt.Errorf("event log: more than %d events", maxLogEvents)
		}
		e, err := r.event(sizes)
		if err != nil {
			return 0, fmt.Errorf("event log: event %d at byte %d: %w", n, r.at, err)
		}
		visit(e)
	}
	return r.at, nil
}

type logReader struct {
	b  []byte
	at int
}

var errShort = errors.New("ends in the middle")

func (r *logReader) take(n uint32) ([]byte, error) {
	if uint64(n) > uint64(len(r.b)-r.at) {
		return nil, errShort
	}
	out := r.b[r.at : r.at+int(n)]
	r.at += int(n)
	return out, nil
}

func (r *logReader) u32() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r *logReader) u16() (uint16, error) {
	b, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(b), nil
}

// header reads the "Spec ID Event03", which is in the old form with a SHA-1 digest, and gives the digest sizes.
func (r *logReader) header() (map[uint16]int, error) {
	if _, err := r.u32(); err != nil { // MR or PCR index: 0 or 1, firmware differs
		return nil, err
	}
	kind, err := r.u32()
	if err != nil {
		return nil, err
	}
	if kind != evNoAction {
		return nil, fmt.Errorf("event type %#x, want EV_NO_ACTION", kind)
	}
	if _, err := r.take(20); err != nil {
		return nil, err
	}
	n, err := r.u32()
	if err != nil {
		return nil, err
	}
	data, err := r.take(n)
	if err != nil {
		return nil, err
	}
	sizes := map[uint16]int{algSHA384: sha512.Size384}
	// CoCo's guests write a header without the signature where there is no CCEL; the digests then speak for themselves.
	if len(data) < 28 || string(data[:16]) != "Spec ID Event03\x00" {
		return sizes, nil
	}
	algs := &logReader{b: data, at: 24}
	count, err := algs.u32()
	if err != nil {
		return nil, err
	}
	if count > maxDigests {
		return nil, fmt.Errorf("%d digest algorithms, at most %d", count, maxDigests)
	}
	for range count {
		alg, err1 := algs.u16()
		size, err2 := algs.u16()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		if size > 64 || alg == algSHA384 && size != sha512.Size384 {
			return nil, fmt.Errorf("digest algorithm %#x has %d bytes", alg, size)
		}
		sizes[alg] = int(size)
	}
	return sizes, nil
}

func (r *logReader) event(sizes map[uint16]int) (e LogEvent, err error) {
	mr, err := r.u32()
	if err != nil {
		return e, err
	}
	if e.Type, err = r.u32(); err != nil {
		return e, err
	}
	count, err := r.u32()
	if err != nil {
		return e, err
	}
	if mr > 4 || count == 0 || count > maxDigests {
		return e, fmt.Errorf("register %d with %d digests; want 0 to 4, and 1 to %d", mr, count, maxDigests)
	}
	e.MR = int(mr)
	found := false
	for range count {
		alg, err := r.u16()
		if err != nil {
			return e, err
		}
		size, known := sizes[alg]
		if !known {
			return e, fmt.Errorf("digest algorithm %#x, which the header does not list", alg)
		}
		d, err := r.take(uint32(size))
		if err != nil {
			return e, err
		}
		if alg == algSHA384 {
			if found {
				return e, errors.New("two SHA-384 digests")
			}
			copy(e.Digest[:], d)
			found = true
		}
	}
	if !found {
		return e, errors.New("no SHA-384 digest")
	}
	n, err := r.u32()
	if err != nil {
		return e, err
	}
	e.Data, err = r.take(n)
	return e, err
}

// Replay extends four registers, zero at first, with the events in their order: RTMR0 to RTMR3.
func Replay(events []LogEvent) (rtmr [4][48]byte) {
	for _, e := range events {
		if e.MR >= 1 && e.MR <= 4 && e.Type != evNoAction {
			rtmr[e.MR-1] = Extend384(rtmr[e.MR-1], e.Digest)
		}
	}
	return rtmr
}

// Extend384 is what an RTMR holds after it is extended: SHA-384(before ‖ digest).
func Extend384(before, digest [48]byte) [48]byte {
	return sha512.Sum384(append(before[:], digest[:]...))
}

// InitDataEvent is how PID 1 ties an initdata document to RTMR3: the log entry, and the digest that extends the
// register, which is the SHA-384 of the entry's data. The data is a tagged event as CoCo's (wire/SPEC.md §2.2): u32
// "AAEL", u32 length, "ampoule initdata " and 64 hex digits.
func InitDataEvent(digest [32]byte) (entry []byte, extend [48]byte) {
	text := "ampoule initdata " + hex.EncodeToString(digest[:])
	data := append([]byte("AAEL"), make([]byte, 4)...)
	binary.LittleEndian.PutUint32(data[4:], uint32(len(text)))
	data = append(data, text...)
	extend = sha512.Sum384(data)

	le := binary.LittleEndian
	entry = le.AppendUint32(entry, 4) // RTMR3
	entry = le.AppendUint32(entry, evEventTag)
	entry = le.AppendUint32(entry, 1)
	entry = le.AppendUint16(entry, algSHA384)
	entry = append(entry, extend[:]...)
	entry = le.AppendUint32(entry, uint32(len(data)))
	return append(entry, data...), extend
}

// AppendEvent puts an entry behind the last event of a log that CutEventLog made.
func AppendEvent(log, entry []byte) []byte {
	tail := bytes.Repeat([]byte{0xff}, 8)
	out := append(bytes.Clone(bytes.TrimSuffix(log, tail)), entry...)
	return append(out, tail...)
}
