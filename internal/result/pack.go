package result

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Digests are SHA-256 of a result: of its file, as it is delivered, and of the plaintext tar inside.
type Digests struct{ Sealed, Tar [32]byte }

// window is what the compressor looks back, bytes. It is most of what packing takes of memory: some 2 MB in all.
const window = 1 << 20

// Pack writes a result to w: a tar as WriteTar has it, compressed by zstd, and sealed to the recipients. Without
// recipients it is in clear.
func Pack(w io.Writer, recipients []string, results Tree, extra []File) (d Digests, err error) {
	file, plain := sha256.New(), sha256.New()
	var sealed io.WriteCloser = nopCloser{io.MultiWriter(w, file)}
	if len(recipients) > 0 {
		if sealed, err = Seal(sealed, recipients); err != nil {
			return d, err
		}
	}
	small, err := zstd.NewWriter(sealed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return d, fmt.Errorf("compress the result: %w", err)
	}
	var salt [32]byte
	rand.Read(salt[:])
	if err := WriteTar(io.MultiWriter(small, plain), salt, results, extra); err != nil {
		return d, err
	}
	if err := small.Close(); err != nil {
		return d, fmt.Errorf("compress the result: %w", err)
	}
	if err := sealed.Close(); err != nil {
		return d, fmt.Errorf("seal the result: %w", err)
	}
	file.Sum(d.Sealed[:0])
	plain.Sum(d.Tar[:0])
	return d, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
