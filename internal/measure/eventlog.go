package measure

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of a TPM's event log (TCG PC Client Platform Firmware Profile §10.2).
const (
	maxLog        = 1 << 20 // bytes
	maxLogEvents  = 8192
	maxLogDigests = 8
)

// Algorithm identifiers of TPM 2.0.
const (
	algSHA1   = 0x0004
	algSHA256 = 0x000B
	algSHA384 = 0x000C
	algSHA512 = 0x000D
)

// A LogEvent is one entry of a TPM's event log.
type LogEvent struct {
	PCR     int
	Type    uint32
	Digests Digests
	Data    []byte
}

// ParseLog reads the log that Linux shows as binary_bios_measurements: crypto-agile, at most 1 MiB and 8192 events, each
// with a SHA-256 digest. The header is not among the events; those that extend nothing (EV_NO_ACTION) are.
func ParseLog(b []byte) ([]LogEvent, error) {
	if len(b) > maxLog {
		return nil, fmt.Errorf("event log: %d bytes, at most %d", len(b), maxLog)
	}
	r := &logReader{b: b}
	sizes, err := r.header()
	if err != nil {
		return nil, fmt.Errorf("event log: header: %w", err)
	}
	var events []LogEvent
	for len(r.b) > 0 {
		if len(events) == maxLogEvents {
			return nil, fmt.Errorf("event log: more than %d events", maxLogEvents)
		}
		e, err := r.event(sizes)
		if err != nil {
			return nil, fmt.Errorf("event log: event %d: %w", len(events), err)
		}
		events = append(events, e)
	}
	return events, nil
}

// A logReader gives zeros once it was asked for more than there is.
type logReader struct {
	b     []byte
	short bool
}

func (r *logReader) take(n uint32) []byte {
	if r.short || uint64(n) > uint64(len(r.b)) {
		r.short = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *logReader) number(size uint32) uint32 {
	var b [4]byte
	copy(b[:], r.take(size))
	return binary.LittleEndian.Uint32(b[:])
}

var errShortLog = errors.New("ends in the middle")

// header reads the first event, which is of the old form, and gives the sizes of digests.
func (r *logReader) header() (map[uint32]uint32, error) {
	r.number(4)
	kind := r.number(4)
	r.take(20)
	h := &logReader{b: r.take(r.number(4))}
	if r.short {
		return nil, errShortLog
	}
	if kind != evNoAction || string(h.take(16)) != "Spec ID Event03\x00" {
		return nil, errors.New("want a crypto-agile log, which begins with Spec ID Event03")
	}
	h.take(8) // platform class, version
	n := h.number(4)
	if n > maxLogDigests {
		return nil, fmt.Errorf("%d digest algorithms, at most %d", n, maxLogDigests)
	}
	sizes := map[uint32]uint32{}
	for range n {
		alg, size := h.number(2), h.number(2)
		if size == 0 || size > 64 || alg == algSHA256 && size != 32 || alg == algSHA384 && size != 48 {
			return nil, fmt.Errorf("digest algorithm %#x has %d bytes", alg, size)
		}
		sizes[alg] = size
	}
	if h.short {
		return nil, errShortLog
	}
	return sizes, nil
}

func (r *logReader) event(sizes map[uint32]uint32) (e LogEvent, err error) {
	pcr := r.number(4)
	e.Type = r.number(4)
	n := r.number(4)
	if r.short {
		return e, errShortLog
	}
	if pcr > 23 || n == 0 || n > maxLogDigests {
		return e, fmt.Errorf("PCR %d with %d digests; want 0 to 23, and 1 to %d", pcr, n, maxLogDigests)
	}
	e.PCR = int(pcr)
	seen := map[uint32]bool{}
	for range n {
		alg := r.number(2)
		size, known := sizes[alg]
		if !known || seen[alg] {
			return e, fmt.Errorf("digest algorithm %#x, which the header does not list or which comes twice", alg)
		}
		seen[alg] = true
		digest := r.take(size)
		switch alg {
		case algSHA256:
			copy(e.Digests.SHA256[:], digest)
		case algSHA384:
			copy(e.Digests.SHA384[:], digest)
		}
	}
	e.Data = r.take(r.number(4))
	if r.short {
		return e, errShortLog
	}
	if !seen[algSHA256] {
		return e, errors.New("no SHA-256 digest")
	}
	return e, nil
}
