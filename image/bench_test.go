package image

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/containers/ocicrypt/blockcipher"
)

// benchTar is a tar of about 64 MiB: random, or text that gzip halves or so.
func benchTar(b *testing.B, text bool) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	r := mrand.New(mrand.NewPCG(1, 2))
	body := make([]byte, 1<<20)
	for n := range 64 {
		if text {
			for i := range body {
				body[i] = "etaoin shrdlu\n"[r.IntN(14)]
			}
		} else {
			rand.Read(body)
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/f", n), Mode: 0o644, Size: int64(len(body))}); err != nil {
			b.Fatal(err)
		}
		w.Write(body)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

// BenchmarkUnpack is the whole way: HTTP on loopback, spool, digest, HMAC, decryption,
// plaintext digest, decompression, diff-ID, files. MB/s are of uncompressed archive. The
// baseline is only ocicrypt's block cipher over the same bytes in memory.
func BenchmarkUnpack(b *testing.B) {
	for _, c := range []struct {
		name, mediaType string
		text            bool
	}{
		{"random", ociLayer, false},
		{"gzip", ociLayer + "+gzip", true},
		{"zstd", ociLayer + "+zstd", true},
	} {
		archive := benchTar(b, c.text)
		kek := NewKey()
		keys := Keys{"default/key/k": kek}
		s := newShelf(b)
		plainURI := s.image(b, "plain", plain{archive, c.mediaType})
		for form, uri := range map[string]string{"plain": plainURI, "encrypted": s.sealed(b, plainURI, kek, nil)} {
			b.Run(c.name+"/"+form, func(b *testing.B) {
				b.SetBytes(int64(len(archive)))
				b.ReportAllocs()
				for n := 0; b.Loop(); n++ {
					i, err := Resolve(b.Context(), uri, plainHTTP)
					if err != nil {
						b.Fatal(err)
					}
					if err := i.Unpack(b.Context(), filepath.Join(b.TempDir(), "root"), keys, Limits{}, nil); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOcicryptBlockCipher(b *testing.B) {
	archive := benchTar(b, false)
	h, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		b.Fatal(err)
	}
	r, finish, err := h.Encrypt(bytes.NewReader(archive), blockcipher.AES256CTR)
	if err != nil {
		b.Fatal(err)
	}
	sealed, err := io.ReadAll(r)
	if err != nil {
		b.Fatal(err)
	}
	opts, err := finish()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(archive)))
	for b.Loop() {
		r, _, err := h.Decrypt(bytes.NewReader(sealed), opts)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
	}
}
