package tree

import (
	"math/rand/v2"
	"testing"
)

func TestHashesAreASet(t *testing.T) {
	var s hashes
	want := map[uint64]bool{}
	r := rand.New(chacha(1))
	for n := range 20_000 {
		h := r.Uint64()
		switch n % 4 {
		case 0:
			h %= 500 // some come twice, 0 among them
		case 1:
			h &= 63 << 58 // and some are in one place
		}
		if h == 0 {
			h = 1
		}
		if s.has(h) != want[h] || s.add(h) == want[h] || !s.has(h) {
			t.Fatalf("hash %#x, number %d: the set has it %v, want %v", h, n, s.has(h), want[h])
		}
		want[h] = true
	}
	if s.n != len(want) || s.n > len(s.slots)/4*3+1 {
		t.Errorf("%d in %d slots, want %d", s.n, len(s.slots), len(want))
	}
	if !s.has(0) {
		t.Error("0 is not the same as 1")
	}
}
