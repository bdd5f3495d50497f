package object

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
)

// testKey is 00 01 02 … 1f.
func testKey() []byte {
	k := make([]byte, keySize)
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

// pattern is n bytes that differ from one another, and from one chunk to the next.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + i>>20)
	}
	return b
}

func fixedHeader() []byte {
	h := []byte{headerSize}
	for i := range saltSize {
		h = append(h, byte(0xa0+i))
	}
	return append(h, 1, 2, 3, 4, 5, 6, 7)
}

func spoolOf(t testing.TB, b []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f
}

func opened(t testing.TB, sealed, key []byte) ([]byte, error) {
	t.Helper()
	f := spoolOf(t, sealed)
	n, err := decrypt(t.Context(), f, int64(len(sealed)), key)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != n {
		t.Fatalf("the file has %d bytes, and decrypt says %d", len(b), n)
	}
	return b, nil
}

// TestVectors are files that other programs made, with the key 00 01 02 … 1f.
func TestVectors(t *testing.T) {
	for name, c := range map[string]struct{ sealed, plain string }{
		"nothing, by tink-go 2.9.0":                               {"28924a9bcae21010130537c5a454d8415fec2079b0b294796facbf8cb410a1e87ebdfbb25a3e40edb54025a424b329275c23dbb37a16f6ee", ""},
		"a line, by tink-go 2.9.0":                                {"2846146ec0ef10d005ce39a9977f2bcc40f5afe5683bc315a1d7378546b3a59620494ecc1fd7f53ac85cf47976417871eefddf9b795bbfbfd79e82dcccea5f0ce364cf0cf1", "made by Tink\n"},
		"nonce, ciphertext, tag, by Python's cryptography 48.0.0": {"0102030405060708090a0b0c34c668f9df9e6ae6fc305826239bf7bb331ac4804954", "1,2,3\n"},
	} {
		t.Run(name, func(t *testing.T) {
			sealed, err := hex.DecodeString(c.sealed)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := opened(t, sealed, testKey()); err != nil || string(b) != c.plain {
				t.Errorf("%q, %v; want %q", b, err, c.plain)
			}
			for i := range sealed {
				broken := bytes.Clone(sealed)
				broken[i] ^= 1
				if b, err := opened(t, broken, testKey()); err == nil {
					t.Fatalf("byte %d is another, and it opens as %q", i, b)
				}
			}
		})
	}
}

// TestChunks: with this header these are the very bytes that tink-go 2.9.0 opened, around the ends of chunks.
func TestChunks(t *testing.T) {
	for _, c := range []struct {
		plain  int
		sealed string // SHA-256
	}{
		{0, "2c3b076ef5da58df9d9938b6b8764051fdd4035238bb72d25a5cf89cd68c40c3"},
		{5, "9d8b8532f7befe70d6f1723ee4af2ee839c9fd4943bad371108a83b2b0ac0c85"},
		{segmentSize - headerSize - tagSize, "c24a4ce394d24f0592f74233ca9ffcc405a2af6de00008942a487a34eff36db8"},
		{segmentSize - headerSize - tagSize + 1, "a104b0d982b922f1983d195ff346a4973851eef6e4eb40617f435a37d6d88a74"},
		{2*segmentSize - headerSize - 2*tagSize, "ee51a79582469ccdb6043c5415e105c985bbb42136746e7e59feb8bd159cfc8d"},
		{2*segmentSize - headerSize - 2*tagSize + 1, "3ea629b2bf031fad152811af163a1dd5c7c996a748591965202197bc76d903a6"},
		{3 * segmentSize, "8cc6148c6718f770e6b8216a0437e15ee3c796c444cc82de263a7ed782c0120e"},
	} {
		var b bytes.Buffer
		if err := seal(&b, iotest.OneByteReader(bytes.NewReader(pattern(c.plain))), testKey(), fixedHeader()); err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b.Bytes()); hex.EncodeToString(sum[:]) != c.sealed {
			t.Errorf("%d bytes: the ciphertext has SHA-256 %x, want %s", c.plain, sum, c.sealed)
		}
		if p, err := opened(t, b.Bytes(), testKey()); err != nil || !bytes.Equal(p, pattern(c.plain)) {
			t.Errorf("%d bytes: %d came back, %v", c.plain, len(p), err)
		}
	}
}
