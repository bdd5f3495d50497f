package pairhash

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
)

// both are what the standard library says.
func both(key, b []byte) (sum, mac [32]byte) {
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return sha256.Sum256(b), [32]byte(h.Sum(nil))
}

// implementations are all that this processor has.
func implementations(t testing.TB) []bool {
	if !extended {
		t.Log("this processor has no SHA extensions: only the standard library's hashes were tried")
		return []bool{false}
	}
	return []bool{false, true}
}

func check(t *testing.T, key, b []byte, cuts []int) {
	t.Helper()
	wantSum, wantMAC := both(key, b)
	for _, fast := range implementations(t) {
		p, rest := newPair(key, fast), b
		for _, n := range cuts {
			n = min(n, len(rest))
			if got, err := p.Write(rest[:n]); got != n || err != nil {
				t.Fatalf("%d of %d bytes written, %v", got, n, err)
			}
			rest = rest[n:]
		}
		p.Write(rest)
		if sum, mac := p.Sums(); sum != wantSum || mac != wantMAC {
			t.Errorf("fast %v, %d bytes in pieces %d: %x and %x, want %x and %x", fast, len(b), cuts, sum, mac, wantSum, wantMAC)
		}
	}
}

func TestPairIsBothHashes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for n := range 400 { // every place of the end in a block, and of the padding
		check(t, random(32), random(n), nil)
	}
	for range 2000 {
		var cuts []int
		for range r.IntN(8) {
			cuts = append(cuts, r.IntN(200))
		}
		check(t, random(r.IntN(65)), random(r.IntN(2000)), cuts)
	}
	check(t, random(32), random(3<<20+5), []int{1, 1 << 20, 64, 63})
}

// Bytes before and behind what is written do not count, wherever it lies.
func TestPairReadsWhatItIsGiven(t *testing.T) {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(i * 7)
	}
	for from := range 65 {
		for _, n := range []int{0, 1, 63, 64, 65, 127, 128, 1000} {
			check(t, []byte("key"), b[from:from+n], nil)
		}
	}
}

func TestLongKeyPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a key of 65 bytes was taken")
		}
	}()
	New(make([]byte, 65))
}

func TestNothingOfTheKeyStays(t *testing.T) {
	for _, fast := range implementations(t) {
		if p := newPair([]byte("a key"), fast); fast {
			p.Write([]byte("a message"))
			if p.Sums(); *p != (Pair{}) {
				t.Errorf("left: %+v", p)
			}
		}
	}
}

func FuzzPair(f *testing.F) {
	f.Add([]byte("key"), []byte("message"), 3)
	f.Fuzz(func(t *testing.T, key, b []byte, cut int) {
		if len(key) > 64 {
			key = key[:64]
		}
		check(t, key, b, []int{max(cut, 0)})
	})
}

// BenchmarkPair is against the standard library's two, one after the other.
func BenchmarkPair(b *testing.B) {
	buf := make([]byte, 256<<10)
	for _, fast := range implementations(b) {
		b.Run(fmt.Sprintf("extensions=%v", fast), func(b *testing.B) {
			p := newPair([]byte("key"), fast)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				p.Write(buf)
			}
		})
	}
}
