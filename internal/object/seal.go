package object

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Seal is the host's side: it encrypts src to dst in chunks, in flat memory, so that [Object.Unpack] opens it with the same 32-byte key.
func Seal(dst io.Writer, src io.Reader, key []byte) error {
	header := make([]byte, headerSize)
	header[0] = headerSize
	rand.Read(header[1:])
	return seal(dst, src, key, header)
}

func seal(dst io.Writer, src io.Reader, key, header []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	s, err := newStream(key, header)
	if err != nil {
		return err
	}
	if _, err := dst.Write(header); err != nil {
		return err
	}
	// One byte ahead, to know which segment is the last.
	buf, room := make([]byte, segmentSize+1), segmentSize-headerSize-tagSize
	ahead := 0
	for i := int64(0); ; i++ {
		n, err := fill(src, buf[ahead:room+1])
		if err != nil && err != io.EOF {
			return err
		}
		n += ahead
		last := n <= room
		size := min(n, room)
		if err := s.at(i, last); err != nil {
			return err
		}
		next := buf[size]
		if _, err := dst.Write(s.gcm.Seal(buf[:0], s.nonce[:], buf[:size], nil)); err != nil {
			return err
		}
		if last {
			return nil
		}
		buf[0], ahead, room = next, 1, segmentSize-tagSize
	}
}

// SealWhole encrypts src to dst, both files, as Cocos' own tools do, nonce ‖ ciphertext ‖ tag: at most 64 GiB, and it can be opened only
// when all of it is there. It is mapped, not read into memory.
func SealWhole(dst, src *os.File, key []byte) error {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	return sealWhole(dst, src, key, nonce)
}

func sealWhole(dst, src *os.File, key, nonce []byte) (err error) {
	if err := checkKey(key); err != nil {
		return err
	}
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > maxGCM || int64(int(fi.Size())) != fi.Size() {
		return fmt.Errorf("%w: it has %d bytes and one nonce of AES-GCM is good for 64 GiB; encrypt it in chunks", ErrTooBig, fi.Size())
	}
	n := nonceSize + int(fi.Size()) + tagSize
	if err := dst.Truncate(int64(n)); err != nil {
		return err
	}
	m, err := unix.Mmap(int(dst.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", dst.Name(), err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	copy(m, nonce)
	plain := m[nonceSize : n-tagSize]
	if _, err := io.ReadFull(src, plain); err != nil {
		return err
	}
	gcm, err := newGCM(key)
	if err != nil {
		return err
	}
	gcm.Seal(plain[:0], nonce, plain, nil)
	return nil
}
