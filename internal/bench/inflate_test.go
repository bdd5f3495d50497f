package bench

import (
	"bufio"
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/ampoule-vm/ampoule/internal/inflate"
)

// BenchmarkGunzip compares what could inflate layers: ours, the standard library, and klauspost's, which has faster
// loops for some readers than for others.
func BenchmarkGunzip(b *testing.B) {
	const size = 32 * mib
	type opener = func([]byte) (io.Reader, error)
	hidden := func(z []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(z)} }
	for _, content := range []Content{Text, Random} {
		var z bytes.Buffer
		l := Layer{Content: content, Compression: Gzip, Files: 1, Bytes: size}
		if err := l.write(b.Context(), 1, &z, io.Discard); err != nil {
			b.Fatal(err)
		}
		for _, c := range []struct {
			name string
			open opener
		}{
			{"inflate", func(z []byte) (io.Reader, error) { return inflate.NewReader(hidden(z)), nil }},
			{"std", func(z []byte) (io.Reader, error) { return stdgzip.NewReader(hidden(z)) }},
			{"klauspost", func(z []byte) (io.Reader, error) { return gzip.NewReader(hidden(z)) }},
			{"klauspost,bufio", func(z []byte) (io.Reader, error) { return gzip.NewReader(bufio.NewReaderSize(hidden(z), 64<<10)) }},
			{"klauspost,bytes", func(z []byte) (io.Reader, error) { return gzip.NewReader(bytes.NewReader(z)) }},
		} {
			b.Run(string(content)+"/"+c.name, func(b *testing.B) {
				b.SetBytes(size)
				buf := make([]byte, 128<<10)
				for b.Loop() {
					r, err := c.open(z.Bytes())
					for err == nil {
						_, err = r.Read(buf)
					}
					if err != io.EOF {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkSHA256(b *testing.B) {
	data := make([]byte, 8*mib)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		sha256.Sum256(data)
	}
}
