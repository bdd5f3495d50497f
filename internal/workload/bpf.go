package workload

import (
	"slices"

	"golang.org/x/sys/unix"
)

// An assembler for classic BPF over struct seccomp_data. Of the arguments, which are 64 bits wide on a little-endian
// machine, it reads the lower half: that is the half that the kernel reads of those that matter here.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

// code is instructions one after another; slices.Concat puts them together.
type code = []unix.SockFilter

func load(offset uint32) code {
	return code{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}}
}

func loadArg(n uint32) code { return load(offsetArgs + 8*n) }

// jump goes on after yes or no further instructions.
func jump(test uint16, k uint32, yes, no int) code {
	if yes > 255 || no > 255 {
		panic("seccomp: a jump over more than 255 instructions") // every filter is the same one, and a test makes it
	}
	return code{{Code: unix.BPF_JMP | unix.BPF_K | test, Jt: uint8(yes), Jf: uint8(no), K: k}}
}

func answer(k uint32) code { return code{{Code: unix.BPF_RET | unix.BPF_K, K: k}} }

// when is for one system call. then ends in an answer.
func when(nr uint32, then code) code {
	return slices.Concat(jump(unix.BPF_JEQ, nr, 0, len(then)), then)
}

// in does then, which ends in an answer, if the bits of argument n in mask are one of the values; else it goes on.
func in(n, mask uint32, values []uint32, then code) code {
	f := append(loadArg(n), unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	for i, v := range values {
		left, otherwise := len(values)-1-i, 0
		if left == 0 {
			otherwise = len(then)
		}
		f = append(f, jump(unix.BPF_JEQ, v, left, otherwise)...)
	}
	return append(f, then...)
}

// calls is more than the highest number of a system call that is in a table.
const calls = 1024

// span gives one answer to all of these system calls, whose numbers it looks up as ranges.
func span(numbers []uint32, then code) (f code) {
	var member [calls]bool
	for _, nr := range numbers {
		member[nr] = true
	}
	for first := uint32(0); first < calls; first++ {
		if !member[first] {
			continue
		}
		last := first
		for last+1 < calls && member[last+1] {
			last++
		}
		f = append(f, jump(unix.BPF_JGE, first, 0, 1+len(then))...)
		f = append(f, jump(unix.BPF_JGT, last, len(then), 0)...)
		f = append(f, then...)
		first = last
	}
	return f
}
