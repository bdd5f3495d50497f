package bench

import (
	_ "embed"
	"encoding/binary"
	"fmt"
	"time"
)

// bootCode is testdata/first.s, assembled.
//
//go:embed testdata/first.bin
var bootCode []byte

// BootProgram is a static ELF program for x86-64 of some 400 bytes, to be the workload of a boot that is timed. It writes to its
// standard output what the clocks showed at its first instruction, and if it has an argument also how long three loops took.
func BootProgram() []byte {
	const base, header = 0x400000, 64 + 56 // of the file and of its one segment
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...) // 64-bit, little-endian, version 1, System V
	b = le.AppendUint16(b, 2)                                      // ET_EXEC
	b = le.AppendUint16(b, 62)                                     // EM_X86_64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+header) // entry
	b = le.AppendUint64(b, 64)          // program headers, and no section headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, n := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, n)
	}
	size := uint64(header + len(bootCode))
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable and executable
	for _, n := range []uint64{0, base, base, size, size, 4096} {
		b = le.AppendUint64(b, n)
	}
	return append(b, bootCode...)
}

// Stamps are what BootProgram wrote.
type Stamps struct {
	First time.Duration // CLOCK_BOOTTIME at its first instruction
	CPU   time.Duration // that its process had used by then: before, it was the sandbox's stub
	Loops Loops         // zero without an argument
}

// Loops are processor times of work that is the same on every machine.
type Loops struct {
	Arithmetic time.Duration `json:"arithmetic_ns"` // 2^24 rounds of xorshift*
	Calls      time.Duration `json:"calls_ns"`      // 2^16 system calls that do nothing
	Pages      time.Duration `json:"pages_ns"`      // 2^12 pages touched for the first time
}

// ParseStamps reads what BootProgram wrote.
func ParseStamps(b []byte) (s Stamps, err error) {
	if len(b) != 2*16 && len(b) != 5*16 {
		return s, fmt.Errorf("the program that is timed wrote %d bytes, want %d or %d", len(b), 2*16, 5*16)
	}
	var at []time.Duration
	for ; len(b) > 0; b = b[16:] {
		at = append(at, time.Duration(binary.LittleEndian.Uint64(b))*time.Second+time.Duration(binary.LittleEndian.Uint64(b[8:])))
	}
	s.First, s.CPU = at[0], at[1]
	if len(at) > 2 {
		s.Loops = Loops{at[2] - at[1], at[3] - at[2], at[4] - at[3]}
	}
	return s, nil
}

// Ratios say how many times as long l takes as other.
func (l Loops) Ratios(other Loops) (arithmetic, calls, pages float64) {
	return ratio(l.Arithmetic, other.Arithmetic), ratio(l.Calls, other.Calls), ratio(l.Pages, other.Pages)
}

func ratio(a, b time.Duration) float64 {
	if b <= 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// MedianLoops takes each loop's lower median by itself.
func MedianLoops(all []Loops) Loops {
	of := func(get func(Loops) time.Duration) time.Duration {
		var times []time.Duration
		for _, l := range all {
			times = append(times, get(l))
		}
		return Median(times)
	}
	return Loops{
		of(func(l Loops) time.Duration { return l.Arithmetic }), of(func(l Loops) time.Duration { return l.Calls }),
		of(func(l Loops) time.Duration { return l.Pages }),
	}
}
