package measure

import (
	"bytes"
	"crypto/sha512"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

func sample() Launch {
	return Launch{
		Firmware: []byte("firmware"),
		Kernel:   []byte("kernel"),
		Initrd:   []byte("initrd"),
		Cmdline:  "console=ttyS0 ampoule.profile=simulation",
		VCPUs:    2,
	}
}

// The layout is spelt out byte by byte here, so that the documentation cannot drift from the code.
func TestSimulatedHasTheDocumentedLayout(t *testing.T) {
	doc := "ampoule simulated launch digest v1\x00" +
		"\x00\x00\x00\x00\x00\x00\x00\x08firmware" +
		"\x00\x00\x00\x00\x00\x00\x00\x06kernel" +
		"\x00\x00\x00\x00\x00\x00\x00\x06initrd" +
		"\x00\x00\x00\x00\x00\x00\x00\x28console=ttyS0 ampoule.profile=simulation" +
		"\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x02"
	if got, want := Simulated(sample()), evidence.Measurement(sha512.Sum384([]byte(doc))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSimulatedIsAKnownValue(t *testing.T) {
	const want = "89cb82445270601f0a82f88de8a0ca2a8d4a9c100eaf0adc59b82c4b96df696b61ba4586ed84dc9e32b46f8d7b9ab330"
	if got := Simulated(sample()).String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSimulatedChangesWithEveryByte(t *testing.T) {
	seen := map[evidence.Measurement]string{Simulated(sample()): "the sample"}
	try := func(name string, l Launch) {
		t.Helper()
		m := Simulated(l)
		if other, ok := seen[m]; ok {
			t.Errorf("%s has the measurement of %s", name, other)
		}
		seen[m] = name
	}
	flip := func(name string, of func(*Launch) *[]byte) {
		for i := range *of(new(sample())) {
			l := sample()
			b := bytes.Clone(*of(&l))
			b[i] ^= 1
			*of(&l) = b
			try(name, l)
		}
	}
	flip("a changed firmware", func(l *Launch) *[]byte { return &l.Firmware })
	flip("a changed kernel", func(l *Launch) *[]byte { return &l.Kernel })
	flip("a changed initrd", func(l *Launch) *[]byte { return &l.Initrd })
	for i := range sample().Cmdline {
		l := sample()
		b := []byte(l.Cmdline)
		b[i] ^= 1
		l.Cmdline = string(b)
		try("a changed command line", l)
	}
	for _, n := range []int{1, 3, 258} {
		l := sample()
		l.VCPUs = n
		try("another number of vCPUs", l)
	}
	l := sample()
	l.Firmware = nil
	try("the built-in firmware", l)
	l = sample()
	l.Kernel, l.Initrd = []byte("kerneli"), []byte("nitrd")
	try("a byte that moved from initrd to kernel", l)
	l = sample()
	l.Kernel, l.Initrd = l.Initrd, l.Kernel
	try("kernel and initrd swapped", l)
}
