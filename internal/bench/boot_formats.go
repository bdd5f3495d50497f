package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
)

// A Format is one way to store the kernel's program or the initramfs.
type Format struct {
	Name   string        `json:"name"`
	Bytes  int64         `json:"bytes"`
	Unpack time.Duration `json:"unpack_ns"` // processor time of a C program of this machine
}

// formats are the programs that make and read what the kernel's build can have it read.
var formats = []struct {
	name     string
	pack     []string
	unpacker []string
}{
	{"lz4 -12", []string{"lz4", "-12", "-l", "-c"}, []string{"lz4", "-dc"}},
	{"gzip -9", []string{"gzip", "-9nc"}, []string{"gzip", "-dc"}},
	{"zstd -3", []string{"zstd", "-3c", "--single-thread"}, []string{"zstd", "-dc", "--single-thread"}},
	{"zstd -19", []string{"zstd", "-19c", "--single-thread"}, []string{"zstd", "-dc", "--single-thread"}},
	{"zstd -22", []string{"zstd", "-22c", "--ultra", "--single-thread"}, []string{"zstd", "-dc", "--single-thread"}},
	{"xz", []string{"xz", "--x86", "--lzma2=preset=9e", "--check=crc32", "-T1", "-c"}, []string{"xz", "-dc", "-T1"}},
}

// Formats stores content in each format that this machine has the program for and takes the median time, of runs, of unpacking each. The
// programs' own start, measured on nothing, is left out.
func Formats(ctx context.Context, content []byte, runs int) (all []Format, err error) {
	all = append(all, Format{Name: "not compressed", Bytes: int64(len(content))})
	for _, f := range formats {
		if _, err := exec.LookPath(f.pack[0]); err != nil {
			continue
		}
		packed, _, err := filter(ctx, f.pack, content)
		if err != nil {
			return nil, err
		}
		nothing, _, err := filter(ctx, f.pack, nil)
		if err != nil {
			return nil, err
		}
		var times []time.Duration
		for range runs {
			out, took, err := filter(ctx, f.unpacker, packed)
			if err != nil {
				return nil, err
			}
			if !bytes.Equal(out, content) {
				return nil, fmt.Errorf("%s: gives back something else", f.name)
			}
			_, start, err := filter(ctx, f.unpacker, nothing)
			if err != nil {
				return nil, err
			}
			times = append(times, max(0, took-start))
		}
		all = append(all, Format{f.name, int64(len(packed)), Median(times)})
	}
	return all, nil
}

// filter runs a program on in and gives what it writes and the processor time that it took.
func filter(ctx context.Context, args []string, in []byte) ([]byte, time.Duration, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, 0, fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.Bytes(), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// Median is the lower median; 0 of nothing.
func Median[T ~int64](all []T) T {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)-1)/2]
}

// KernelProgram unpacks the program that a bzImage brings (Documentation/arch/x86/boot.rst: payload_offset), if that is zstd.
func KernelProgram(bzImage []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(bzImage) < 0x250 || string(bzImage[0x202:0x206]) != "HdrS" {
		return nil, fmt.Errorf("kernel: not a bzImage")
	}
	sectors := int64(bzImage[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	from := (sectors+1)*512 + int64(le.Uint32(bzImage[0x248:]))
	to := from + int64(le.Uint32(bzImage[0x24c:])) - 4 // without the size that is put behind it
	if from < 0 || to < from || to > int64(len(bzImage)) {
		return nil, fmt.Errorf("kernel: payload at %d to %d of %d bytes", from, to, len(bzImage))
	}
	return Unzstd(bzImage[from:to])
}

// Unzstd unpacks what zstd has packed.
func Unzstd(b []byte) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(256*mib))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.DecodeAll(b, nil)
}
