//go:build !guest

package result

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// How results begin: sealed; and in clear, compressed. What is neither is a tar, as results once were.
const (
	ageMagic  = "age-encryption.org/"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// What Open says of a result that is not as its caller expects.
var (
	ErrSealed    = errors.New("is sealed")
	ErrNotSealed = errors.New("is not sealed")
)

// An Opened result is read as the tar inside. Its digests are known when that has been read to io.EOF.
type Opened struct {
	r          io.Reader
	file, tar  hash.Hash
	rest       *bufio.Reader // of the file
	decompress *zstd.Decoder // nil: it is not compressed
}

// Open reads a result in any of its forms. Sealed ones are decrypted with the first identity that fits; without identities it
// must be in clear. One that was cut short is known only at its end: until then, and io.EOF, what was read may lack the rest.
func Open(r io.Reader, ids []age.Identity) (*Opened, error) {
	o := &Opened{file: sha256.New(), tar: sha256.New()}
	o.rest = bufio.NewReader(io.TeeReader(r, o.file))
	b := o.rest
	head, _ := b.Peek(len(ageMagic)) // what cannot be read is in clear, and the reader of the tar says why not
	switch sealed := string(head) == ageMagic; {
	case sealed && len(ids) == 0:
		return nil, ErrSealed
	case !sealed && len(ids) > 0:
		return nil, ErrNotSealed
	case sealed:
		p, err := Unseal(b, ids)
		if err != nil {
			return nil, err
		}
		b = bufio.NewReader(p)
	}
	o.r = b
	if head, _ := b.Peek(len(zstdMagic)); string(head) == zstdMagic {
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("decompress the result: %w", err)
		}
		o.r, o.decompress = z, z
	}
	return o, nil
}

// Read reads of the tar.
func (o *Opened) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	o.tar.Write(p[:n])
	if err == io.EOF {
		if _, err := io.Copy(io.Discard, o.rest); err != nil {
			return n, err
		}
	}
	return n, err
}

// Digests are those of all that was read.
func (o *Opened) Digests() (d Digests) {
	o.file.Sum(d.Sealed[:0])
	o.tar.Sum(d.Tar[:0])
	return d
}

// Close ends the decompression.
func (o *Opened) Close() {
	if o.decompress != nil {
		o.decompress.Close()
	}
}

// Unseal decrypts with the first identity that fits.
func Unseal(r io.Reader, ids []age.Identity) (io.Reader, error) {
	p, err := age.Decrypt(r, ids...)
	if err != nil {
		return nil, fmt.Errorf("unseal the result: %w", err)
	}
	return p, nil
}

// Matches holds the digests of an opened result against what a receipt says it is about. That the receipt itself is true is for a
// verifier to say.
func (d Digests) Matches(s *Statement) error {
	found := false
	for _, sub := range s.Subject {
		var got [32]byte
		switch sub.Name {
		case SealedName, ClearName:
			got = d.Sealed
		case TarName:
			got = d.Tar
		default:
			continue
		}
		found = true
		if want := fmt.Sprintf("%x", got); sub.Digest.SHA256 != want {
			return fmt.Errorf("the receipt is about a %s with SHA-256 %.64s, and this one has %s", sub.Name, sub.Digest.SHA256, want)
		}
	}
	if !found {
		return errors.New("the receipt is about no result")
	}
	return nil
}
