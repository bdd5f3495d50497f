package object

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The two encrypted forms, docs/OBJECTS.md.
const (
	keySize   = 32
	nonceSize = 12
	tagSize   = 16

	// maxGCM is the most plaintext that one nonce of GCM carries, bytes (NIST SP 800-38D §5.2.1.1).
	maxGCM = 1<<36 - 32

	saltSize   = 32
	prefixSize = 7
	headerSize = 1 + saltSize + prefixSize
	// segmentSize is that of a segment with its tag, bytes. The first one is shorter by the header.
	segmentSize = 1 << 20
)

func checkKey(key []byte) error {
	if len(key) != keySize {
		return fmt.Errorf("%w: it has %d bytes and an object's key is %d raw bytes", ErrKey, len(key), keySize)
	}
	return nil
}

// checkSealed refuses sizes that no encrypted object of either form has, as far as its first byte tells the form.
func checkSealed(size int64, first byte) error {
	switch {
	case size < nonceSize+tagSize:
		return fmt.Errorf("%w: it has %d bytes, too few for a nonce and a tag; encrypt it with `ampoule encrypt --file`", ErrSealed, size)
	case size > nonceSize+maxGCM+tagSize && first != headerSize:
		return fmt.Errorf("%w: it has %d bytes and one nonce of AES-GCM is good for 64 GiB; encrypt it in chunks, `ampoule encrypt --file`",
			ErrTooBig, size)
	}
	return nil
}

// decrypt turns the ciphertext that f holds into the plaintext, where it lies, and returns its size. Which of the two forms it is, the key
// tells: only one of them authenticates under it. The file is mapped, so that nothing is held twice. On error f holds nothing of use.
func decrypt(ctx context.Context, f *os.File, size int64, key []byte) (n int64, err error) {
	if int64(int(size)) != size {
		return 0, fmt.Errorf("%w: %d bytes do not fit this machine's addresses", ErrTooBig, size)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("map the spool: %w", err)
	}
	n, err = decryptChunked(ctx, m, key)
	if err == errOtherForm {
		n, err = decryptWhole(m, key)
	}
	if err := errors.Join(err, unix.Munmap(m)); err != nil {
		return 0, err
	}
	return n, f.Truncate(n)
}

// errOtherForm: the first segment is none under this key, and nothing has been written.
var errOtherForm = errors.New("not in chunks")

// decryptWhole opens nonce ‖ ciphertext ‖ tag as Cocos has it: no additional data, one tag for all. On amd64 and arm64 crypto/cipher
// decrypts while it authenticates and clears what it wrote if the tag is wrong, so in between there is plaintext in pages that only this
// function knows.
func decryptWhole(m, key []byte) (int64, error) {
	gcm, err := newGCM(key)
	if err != nil {
		return 0, err
	}
	plain, err := gcm.Open(m[nonceSize:nonceSize], m[:nonceSize], m[nonceSize:], nil)
	if err != nil {
		return 0, fmt.Errorf("%w: another key, or not the bytes that were encrypted", ErrSealed)
	}
	return int64(copy(m, plain)), nil
}

// decryptChunked opens the form that Tink calls AES256_GCM_HKDF_1MB: a key of its own for every file, and for every segment a nonce that
// says which one it is and whether it is the last. Plaintext is shorter than ciphertext, so it overtakes nothing that is still to be read.
func decryptChunked(ctx context.Context, m, key []byte) (int64, error) {
	if len(m) < headerSize+tagSize || m[0] != headerSize {
		return 0, errOtherForm
	}
	s, err := newStream(key, m[:headerSize])
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 0, segmentSize)
	in, out := headerSize, 0
	for i := 0; in < len(m); i++ {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		end := min((i+1)*segmentSize, len(m))
		if err := s.at(int64(i), end == len(m)); err != nil {
			return 0, err
		}
		plain, err := s.gcm.Open(buf, s.nonce[:], m[in:end], nil)
		switch {
		case err != nil && i == 0:
			return 0, errOtherForm
		case err != nil:
			return 0, fmt.Errorf("%w: chunk %d of %d is not what was encrypted, or not all chunks are there",
				ErrSealed, i+1, (len(m)+segmentSize-1)/segmentSize)
		}
		out += copy(m[out:], plain)
		in = end
	}
	clear(buf[:cap(buf)])
	return int64(out), nil
}

// stream is one file's key and nonces.
type stream struct {
	gcm   cipher.AEAD
	nonce [nonceSize]byte // prefix ‖ segment, 4 bytes, big-endian ‖ 1 if it is the last
}

func newStream(key, header []byte) (*stream, error) {
	derived, err := hkdf.Key(sha256.New, key, header[1:1+saltSize], "", keySize)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	s := &stream{}
	copy(s.nonce[:], header[1+saltSize:])
	s.gcm, err = newGCM(derived)
	return s, err
}

// errSegments: there are not that many nonces.
var errSegments = errors.New("over 4 PiB")

func (s *stream) at(i int64, last bool) error {
	if i >= 1<<32-1 {
		return errSegments
	}
	binary.BigEndian.PutUint32(s.nonce[prefixSize:], uint32(i))
	s.nonce[nonceSize-1] = 0
	if last {
		s.nonce[nonceSize-1] = 1
	}
	return nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
