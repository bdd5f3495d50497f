package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"crypto/rand"
	"errors"
	"io"
	mrand "math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// words is text of n bytes: a few thousand words, some of them far more often than others.
func words(n int) []byte {
	r := mrand.New(mrand.NewPCG(1, 2))
	list := make([][]byte, 4000)
	for i := range list {
		w := make([]byte, 2+r.IntN(8))
		for j := range w {
			w[j] = byte('a' + r.IntN(26))
		}
		list[i] = append(w, ' ')
	}
	var b bytes.Buffer
	for b.Len() < n {
		b.Write(list[int(float64(len(list))*r.Float64()*r.Float64()*r.Float64())])
	}
	return b.Bytes()[:n]
}

func zip(t testing.TB, level int, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(plain)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// kinds of content: what gives literals, matches near and far, long and short, and stored blocks.
func kinds() map[string][]byte {
	mixed := []byte{}
	for n := range 40 {
		mixed = append(mixed, random(n*997)...)
		mixed = append(mixed, bytes.Repeat([]byte{byte(n)}, 5000)...)
		mixed = append(mixed, bytes.Repeat([]byte("abcdefg")[:n%7+1], 700)...)
		mixed = append(mixed, words(n*3000)...)
	}
	far := random(windowSize)
	return map[string][]byte{
		"nothing": {}, "a byte": {7}, "zeros": make([]byte, 3<<20), "random": random(1 << 20), "text": words(3 << 20),
		"mixed": mixed, "repeats at the window's far end": bytes.Repeat(far, 20),
	}
}

func TestReadsWhatGzipWrote(t *testing.T) {
	for name, plain := range kinds() {
		for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
			z := zip(t, level, plain)
			for how, src := range map[string]io.Reader{"": bytes.NewReader(z), ", byte for byte": iotest.OneByteReader(bytes.NewReader(z)), ", data with EOF": iotest.DataErrReader(bytes.NewReader(z))} {
				if how != "" && (level != 6 || len(z) > 1<<18) {
					continue
				}
				got, err := io.ReadAll(NewReader(src))
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s, level %d%s: %d bytes, %v; want %d", name, level, how, len(got), err, len(plain))
				}
			}
		}
	}
}

func TestMembersAndHeaders(t *testing.T) {
	var b bytes.Buffer
	for _, part := range []string{"one ", "", "two ", "three"} {
		w := gzip.NewWriter(&b)
		w.Name, w.Comment, w.Extra = "näme", "comment", []byte(strings.Repeat("x", 700))
		io.WriteString(w, part)
		w.Flush()
		w.Close()
	}
	r := NewReader(&b)
	if got, err := io.ReadAll(r); err != nil || string(got) != "one two three" {
		t.Errorf("%q, %v", got, err)
	}
	r.Reset(bytes.NewReader(zip(t, 6, []byte("again"))))
	if got, err := io.ReadAll(r); err != nil || string(got) != "again" {
		t.Errorf("after Reset: %q, %v", got, err)
	}
}

func TestEveryCutAndEveryFlippedByteIsSeen(t *testing.T) {
	plain := append(words(3000), random(300)...)
	for _, level := range []int{0, 6, gzip.HuffmanOnly} {
		z := zip(t, level, plain)
		for n := range z {
			if got, err := io.ReadAll(NewReader(bytes.NewReader(z[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(plain, got) {
				t.Fatalf("level %d, cut at %d of %d: %d bytes, %v", level, n, len(z), len(got), err)
			}
		}
		meaningless := 0 // time, level, system, the name's flag, bits before a stored block
		for n := range z {
			bad := bytes.Clone(z)
			bad[n] ^= 0x10
			got, err := io.ReadAll(NewReader(bytes.NewReader(bad)))
			if err == nil && !bytes.Equal(got, plain) {
				t.Fatalf("level %d, byte %d: %d other bytes without an error", level, n, len(got))
			}
			if err == nil {
				meaningless++
			}
		}
		if meaningless > 10 {
			t.Errorf("level %d: %d bytes may be anything", level, meaningless)
		}
	}
}

func TestFailuresOfTheSourceComeThroughAndStay(t *testing.T) {
	broken := errors.New("broken")
	z := zip(t, 6, words(1<<20))
	r := NewReader(io.MultiReader(bytes.NewReader(z[:len(z)/2]), iotest.ErrReader(broken)))
	if _, err := io.ReadAll(r); err != broken {
		t.Errorf("error %v", err)
	}
	if _, err := r.Read(make([]byte, 1)); err != broken {
		t.Errorf("again: error %v", err)
	}
	if _, err := io.ReadAll(NewReader(nothing{})); err != io.ErrNoProgress {
		t.Errorf("a source that gives nothing: error %v", err)
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

// FuzzAgainstFlate: what one of the two readers takes, the other takes, to the same bytes.
func FuzzAgainstFlate(f *testing.F) {
	for _, level := range []int{0, 1, 6, 9, gzip.HuffmanOnly} {
		for _, plain := range [][]byte{{}, words(2000), random(100), make([]byte, 1000)} {
			z := zip(f, level, plain)
			f.Add(z[10 : len(z)-8])
		}
	}
	f.Fuzz(func(t *testing.T, deflated []byte) {
		const most = 1 << 20
		want, werr := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(deflated)), most))
		// Whatever follows is no trailer of it, so that of errors there may be one more: the checksum's.
		r := NewReader(bytes.NewReader(append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, deflated...)))
		got, gerr := io.ReadAll(io.LimitReader(r, most))
		if werr == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes and %v, compress/flate has %d", len(got), gerr, len(want))
		}
		if werr != nil && (gerr == nil || errors.Is(gerr, ErrChecksum)) && len(got) < most {
			t.Fatalf("taken: %v, compress/flate says %v", gerr, werr)
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	for name, plain := range map[string][]byte{"words": words(32 << 20), "random": random(32 << 20), "zeros": make([]byte, 32<<20)} {
		z := zip(b, 6, plain)
		for impl, open := range map[string]func() io.Reader{
			"ours":      func() io.Reader { return NewReader(bytes.NewReader(z)) },
			"klauspost": func() io.Reader { r, _ := kgzip.NewReader(bytes.NewReader(z)); return r },
			"std":       func() io.Reader { r, _ := gzip.NewReader(bytes.NewReader(z)); return r },
		} {
			b.Run(name+"/"+impl, func(b *testing.B) {
				b.SetBytes(int64(len(plain)))
				buf := make([]byte, 256<<10)
				for b.Loop() {
					if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{open()}, buf); err != nil || n != int64(len(plain)) {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}
