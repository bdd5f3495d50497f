package bench

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/inflate"
)

// Parts are the times of what nobody can leave out, over all bytes of an image, each part by itself on one processor.
type Parts struct {
	Digest  time.Duration `json:"digest"`  // SHA-256 of the blobs, which the manifest names
	HMAC    time.Duration `json:"hmac"`    // of the blobs, which the public options name
	Cipher  time.Duration `json:"cipher"`  // AES-256-CTR of the blobs
	Inflate time.Duration `json:"inflate"` // gzip or zstd, by the fastest that there is in Go
	DiffID  time.Duration `json:"diffid"`  // SHA-256 of the archives, which the config names
	Receive time.Duration `json:"receive"` // of the blobs by HTTP on loopback, the registry's part included
	Write   time.Duration `json:"write"`   // of as many files of the same sizes
	Longest time.Duration `json:"longest"` // the longest part of a layer
}

// arithmetic is all parts but receiving and writing, one after the other.
func (p Parts) arithmetic() time.Duration { return p.Digest + p.HMAC + p.Cipher + p.Inflate + p.DiffID }

// Bound is the shortest time that so many processors can do the arithmetic in: their share of its sum, or the longest
// part of a layer, which one of them has to do alone, whichever is longer.
func (p Parts) Bound(cores int) time.Duration {
	return max(p.arithmetic()/time.Duration(cores), p.Longest)
}

// BoundIO is Bound with receiving and writing.
func (p Parts) BoundIO(cores int) time.Duration {
	return max((p.arithmetic()+p.Receive+p.Write)/time.Duration(cores), p.Longest)
}

// parts measures the parts of an image: one pass, each part with its chunk in the processor's cache.
func (s *Shelf) parts(img *Image) (all Parts, err error) {
	for n, desc := range img.Layers {
		p, diffID, err := s.layerParts(desc.Digest.String(), img.layers[n].Compression, img.keys[n])
		if err == nil && diffID != img.diffIDs[n] {
			err = fmt.Errorf("measured %s, the image has %s", diffID, img.diffIDs[n])
		}
		if err != nil {
			return all, fmt.Errorf("layer %d: %w", n, err)
		}
		if p.Receive, err = s.receive(desc.Digest.String()); err != nil {
			return all, err
		}
		if p.Write, err = img.layers[n].writeFiles(s.dir); err != nil {
			return all, err
		}
		all = Parts{
			all.Digest + p.Digest, all.HMAC + p.HMAC, all.Cipher + p.Cipher, all.Inflate + p.Inflate, all.DiffID + p.DiffID,
			all.Receive + p.Receive, all.Write + p.Write, max(all.Longest, p.Digest, p.HMAC, p.Cipher, p.Inflate, p.DiffID),
		}
	}
	return all, nil
}

const chunk = 256 << 10 // bytes

func (s *Shelf) layerParts(name string, comp Compression, key blobKey) (p Parts, diffID digest.Digest, err error) {
	file, err := os.Open(s.path(name))
	if err != nil {
		return p, "", err
	}
	defer file.Close()
	block, err := aes.NewCipher(key.sym)
	if err != nil {
		return p, "", err
	}
	src := &partsReader{
		file: file, parts: &p, buf: make([]byte, chunk),
		sum: sha256.New(), mac: hmac.New(sha256.New, key.sym), ctr: cipher.NewCTR(block, key.nonce),
	}
	var archive io.Reader = src
	switch comp {
	case Gzip:
		archive = inflate.NewReader(src)
	case Zstd:
		z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return p, "", err
		}
		defer z.Close()
		archive = z
	}
	diff, out := sha256.New(), make([]byte, chunk)
	for err == nil {
		var n int
		start, below := time.Now(), src.took
		n, err = archive.Read(out)
		p.Inflate += time.Since(start) - (src.took - below)
		start = time.Now()
		diff.Write(out[:n])
		p.DiffID += time.Since(start)
	}
	if err != io.EOF {
		return p, "", err
	}
	return p, digest.NewDigest(digest.SHA256, diff), nil
}

// partsReader is a blob deciphered. It also counts the time that it takes itself.
type partsReader struct {
	file     io.Reader
	parts    *Parts
	sum, mac hash.Hash
	ctr      cipher.Stream
	buf      []byte
	rest     []byte
	took     time.Duration
}

func (r *partsReader) Read(b []byte) (int, error) {
	start := time.Now()
	defer func() { r.took += time.Since(start) }()
	if len(r.rest) == 0 {
		n, err := io.ReadFull(r.file, r.buf)
		if n == 0 {
			return 0, err
		}
		r.rest = r.buf[:n]
		t := []time.Time{time.Now()}
		for _, f := range []func(){
			func() { r.sum.Write(r.rest) },
			func() { r.mac.Write(r.rest) },
			func() { r.ctr.XORKeyStream(r.rest, r.rest) },
		} {
			f()
			t = append(t, time.Now())
		}
		r.parts.Digest += t[1].Sub(t[0])
		r.parts.HMAC += t[2].Sub(t[1])
		r.parts.Cipher += t[3].Sub(t[2])
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// receive is what this process, client and registry, computes for one blob to be fetched and dropped.
func (s *Shelf) receive(name string) (time.Duration, error) {
	before := ownCPU()
	resp, err := http.Get("http://" + s.Host + "/v2/bench/blobs/" + name)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, chunk)
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	if err != io.EOF {
		return 0, errors.Join(err, resp.Body.Close())
	}
	return ownCPU() - before, resp.Body.Close()
}

// ownCPU is this process's processor time until now.
func ownCPU() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// writeFiles writes files as the layer has them below dir, and removes them, which does not count.
func (l Layer) writeFiles(dir string) (took time.Duration, err error) {
	dir, err = os.MkdirTemp(dir, "write-*")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	buf := make([]byte, chunk)
	start := time.Now()
	for n, size := range l.sizes() {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
		if err != nil {
			return 0, err
		}
		for left := size; left > 0 && err == nil; left -= chunk {
			_, err = f.Write(buf[:min(left, chunk)])
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}
