package object

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ampoule-vm/ampoule/internal/tree"
)

// A server's answers, in order; the last one goes on.
type answers []func(http.ResponseWriter, *http.Request)

// options speak to a server of those answers, and keep the pauses that they would have made.
func (a answers) options(t *testing.T) (uri string, o Options, asked *[]http.Header, paused *[]time.Duration) {
	t.Helper()
	asked, paused = &[]http.Header{}, &[]time.Duration{}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.Header.Clone())
		a[min(len(*asked), len(a))-1](w, r)
	}))
	t.Cleanup(s.Close)
	o = Options{Transport: s.Client().Transport, pause: func(_ context.Context, d time.Duration) error {
		*paused = append(*paused, d)
		return nil
	}}
	return s.URL + "/x?s3cret", o, asked, paused
}

func serve(b []byte) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

// noRanges serves b as the simplest of servers do.
func noRanges(b []byte) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b)
	}
}

// cut sends n bytes of the answer, and then no more.
func cut(next func(http.ResponseWriter, *http.Request), n int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		next(&cutWriter{w, n}, r)
		panic(http.ErrAbortHandler)
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	c.left -= n
	c.ResponseWriter.(http.Flusher).Flush()
	return len(b), err
}

func status(code int, header ...string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>s3cret</Message></Error>")
	}
}

func TestFetch(t *testing.T) {
	b := pattern(3 << 20)
	whole, changed := serve(b), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"two"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(pattern(3<<20)))
	}
	long := func(w http.ResponseWriter, r *http.Request) { w.Write(append(bytes.Clone(b), 0)) }
	for name, c := range map[string]struct {
		answers answers
		asked   []string // ranges
		err     error
		says    string
	}{
		"at once":                             {answers{whole}, []string{"bytes=0-0", ""}, nil, ""},
		"of nothing":                          {answers{serve(nil)}, []string{"bytes=0-0"}, nil, ""},
		"cut twice, and taken up":             {answers{whole, cut(whole, 1<<20), cut(whole, 5), whole}, []string{"bytes=0-0", "", "bytes=1048576-", "bytes=1048581-"}, nil, ""},
		"cut, and no ranges":                  {answers{noRanges(b), cut(noRanges(b), 1<<20), noRanges(b)}, []string{"bytes=0-0", "", "bytes=1048576-"}, nil, ""},
		"cut, and changed":                    {answers{whole, cut(whole, 1<<20), changed}, nil, ErrChanged, "run again"},
		"changed in between":                  {answers{whole, serve(b[1:])}, nil, ErrChanged, "3145727"},
		"longer than told":                    {answers{whole, long}, nil, ErrChanged, "longer"},
		"cut again and again":                 {answers{whole, cut(whole, 5), cut(whole, 0)}, nil, ErrTruncated, "5 of 3145728 bytes"},
		"busy, then there":                    {answers{status(503), status(429), whole}, []string{"bytes=0-0", "bytes=0-0", "bytes=0-0", ""}, nil, ""},
		"busy for ever":                       {answers{status(503)}, []string{"bytes=0-0", "bytes=0-0", "bytes=0-0", "bytes=0-0"}, nil, "503 Service Unavailable, AccessDenied"},
		"refused":                             {answers{status(403)}, []string{"bytes=0-0"}, nil, "403 Forbidden, AccessDenied"},
		"in another region":                   {answers{status(301, "X-Amz-Bucket-Region", "eu-west-3")}, nil, ErrRedirect, ""},
		"refused later":                       {answers{whole, status(403)}, nil, nil, "403 Forbidden"},
		"of no size":                          {answers{func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() }}, nil, ErrFormat, "does not say how large"},
		"in an encoding":                      {answers{func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Encoding", "gzip"); whole(w, r) }}, nil, ErrFormat, "without a Content-Encoding"},
		"a range that was not asked for":      {answers{whole, cut(whole, 9), status(206, "Content-Range", "bytes 0-8/3145728")}, nil, ErrFormat, "asked for bytes from 9"},
		"a range that is none":                {answers{status(206, "Content-Range", "bytes 0-0/-1")}, nil, ErrFormat, "asked for bytes from 0"},
		"nothing, where a first byte is said": {answers{status(416, "Content-Range", "bytes */7")}, nil, nil, "416"},
	} {
		t.Run(name, func(t *testing.T) {
			uri, o, asked, _ := c.answers.options(t)
			dir := filepath.Join(t.TempDir(), "out")
			var fetched int64
			obj, err := Resolve(t.Context(), Source{URI: uri}, o)
			if err == nil {
				err = obj.Unpack(t.Context(), dir, Want{Name: "x"}, tree.Limits{}, func(n int64) { fetched += n })
			}
			if c.err != nil || c.says != "" {
				if err == nil || c.err != nil && !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("%v; want %v, saying %q, and no secrets", err, c.err, c.says)
				}
				if left, _ := os.ReadDir(filepath.Dir(dir)); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(filepath.Join(dir, "x"))
				if err != nil || int64(len(got)) != obj.Size || fetched != obj.Size || obj.Digest != "sha256:"+hexSum(string(got)) || obj.Content != obj.Digest {
					t.Errorf("%d bytes of %d, %v", len(got), obj.Size, err)
				}
				if obj.Size > 0 && !bytes.Equal(got, b) {
					t.Error("other bytes")
				}
			}
			for i, r := range c.asked {
				if i >= len(*asked) || (*asked)[i].Get("Range") != r {
					t.Fatalf("requests %v, want ranges %q", *asked, c.asked)
				}
			}
			if c.asked != nil && len(*asked) != len(c.asked) {
				t.Errorf("%d requests, want %d", len(*asked), len(c.asked))
			}
		})
	}
}

// TestAServerThatFallsSilent is asked anew, and what it sent is kept.
func TestAServerThatFallsSilent(t *testing.T) {
	b := pattern(1 << 20)
	silent := func(after int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			serve(b)(&cutWriter{w, after}, r)
			<-r.Context().Done()
		}
	}
	uri, o, asked, _ := answers{serve(b), silent(1000), serve(b)}.options(t)
	o.stall = 20 * time.Millisecond
	obj, err := Resolve(t.Context(), Source{URI: uri}, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := obj.Unpack(t.Context(), filepath.Join(t.TempDir(), "out"), Want{Name: "x", SHA256: unhex(hexSum(string(b)))}, tree.Limits{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(*asked) < 3 || (*asked)[2].Get("Range") != "bytes=1000-" {
		t.Errorf("requests %v, want the third from byte 1000", *asked)
	}

	uri, o, _, _ = answers{serve(b), silent(0)}.options(t)
	o.stall = 20 * time.Millisecond
	if obj, err = Resolve(t.Context(), Source{URI: uri}, o); err != nil {
		t.Fatal(err)
	}
	if err := obj.Unpack(t.Context(), filepath.Join(t.TempDir(), "out"), Want{Name: "x"}, tree.Limits{}, nil); !errors.Is(err, errStalled) || !errors.Is(err, ErrTruncated) {
		t.Errorf("silent for ever: %v", err)
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// TestPauses grow, differ from machine to machine, and are what the server asks for if that is longer, up to a minute.
func TestPauses(t *testing.T) {
	uri, o, _, paused := answers{status(503), status(503, "Retry-After", "20"), status(429, "Retry-After", "9999"), serve([]byte("x"))}.options(t)
	if _, err := Resolve(t.Context(), Source{URI: uri}, o); err != nil {
		t.Fatal(err)
	}
	p := *paused
	if len(p) != 3 || p[0] < firstPause || p[0] > 2*firstPause || p[1] != 20*time.Second || p[2] != maxPause {
		t.Errorf("pauses %v", p)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	o.pause = nil
	if _, err := Resolve(ctx, Source{URI: uri}, o); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("after its end: %v", err)
	}
}

// TestWipedAfterAWrongTag: where the tag is wrong no plaintext is left in the spool, also not while it is mapped.
func TestWipedAfterAWrongTag(t *testing.T) {
	plain := pattern(1 << 20)
	gcm, err := newGCM(testKey())
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, nonceSize)
	sealed := gcm.Seal(bytes.Clone(nonce), nonce, plain, nil)
	sealed[len(sealed)-1] ^= 1
	f := spoolOf(t, sealed)
	if _, err := decrypt(t.Context(), f, int64(len(sealed)), testKey()); !errors.Is(err, ErrSealed) {
		t.Fatal(err)
	}
	left, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.Index(left, plain[4096:4128]); i >= 0 {
		t.Errorf("plaintext at byte %d of the spool", i)
	}
	if len(bytes.Trim(left[nonceSize:nonceSize+len(plain)], "\x00")) > 0 {
		t.Error("the standard library no longer clears what it wrote: clear it here")
	}
}

// TestChunksAreOneFile: none may be missing, moved, repeated, put behind, or come from another file of the same key.
func TestChunksAreOneFile(t *testing.T) {
	var b, o bytes.Buffer
	if err := errors.Join(Seal(&b, bytes.NewReader(pattern(3<<20)), testKey()), Seal(&o, bytes.NewReader(pattern(3<<20)), testKey())); err != nil {
		t.Fatal(err)
	}
	whole, other := b.Bytes(), o.Bytes()
	if bytes.Equal(whole[:headerSize], other[:headerSize]) {
		t.Fatal("two files with one header")
	}
	part := func(from, to int) []byte { return whole[from*segmentSize : min(to*segmentSize, len(whole))] }
	for name, sealed := range map[string][]byte{
		"the last missing":         part(0, 3),
		"cut inside of a chunk":    whole[:2*segmentSize+5],
		"cut inside of the first":  whole[:1000],
		"one missing":              bytes.Join([][]byte{part(0, 1), part(2, 4)}, nil),
		"two in the other order":   bytes.Join([][]byte{part(0, 1), part(2, 3), part(1, 2), part(3, 4)}, nil),
		"one twice":                bytes.Join([][]byte{part(0, 2), part(1, 4)}, nil),
		"one more behind":          bytes.Join([][]byte{whole, part(3, 4)}, nil),
		"a byte behind":            append(bytes.Clone(whole), 0),
		"one from another file":    bytes.Join([][]byte{part(0, 1), other[segmentSize : 2*segmentSize], part(2, 4)}, nil),
		"the header of another":    append(bytes.Clone(other[:headerSize]), whole[headerSize:]...),
		"a bit in the middle":      flip(whole, segmentSize+7),
		"a bit in the last's tag":  flip(whole, len(whole)-1),
		"a bit in the salt":        flip(whole, 5),
		"a bit in the nonce":       flip(whole, headerSize-1),
		"a bit in the header size": flip(whole, 0),
	} {
		if _, err := opened(t, sealed, testKey()); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: %v, want that it does not decrypt", name, err)
		}
	}
}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

func TestCheckSealed(t *testing.T) {
	for _, c := range []struct {
		size  int64
		first byte
		want  error
	}{
		{0, 0, ErrSealed}, {27, 1, ErrSealed}, {28, 1, nil}, {maxGCM + 28, 1, nil}, {maxGCM + 29, 1, ErrTooBig}, {maxGCM + 29, headerSize, nil}, {1 << 45, headerSize, nil},
	} {
		if err := (&Object{Size: c.size, first: c.first}).CheckSealed(); !errors.Is(err, c.want) {
			t.Errorf("%d bytes, first %d: %v, want %v", c.size, c.first, err, c.want)
		}
	}
	if err := (&stream{}).at(1<<32-1, true); err == nil {
		t.Error("there are more chunks than nonces")
	}
}

func tarOf(t *testing.T, name, content string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchives(t *testing.T) {
	plain := tarOf(t, "dir/a", "1\n")
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(plain)
	if err := errors.Join(g.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content []byte
		lim     tree.Limits
		err     error
	}{
		"tar":                 {plain, tree.Limits{}, nil},
		"tar.gz":              {gz.Bytes(), tree.Limits{}, nil},
		"tar.zst":             {zst.Bytes(), tree.Limits{}, nil},
		"tar.gz, cut":         {gz.Bytes()[:gz.Len()-4], tree.Limits{}, ErrFormat},
		"tar.gz, a bit":       {flip(gz.Bytes(), gz.Len()-6), tree.Limits{}, ErrFormat},
		"tar that goes out":   {tarOf(t, "../a", "1"), tree.Limits{}, tree.ErrUnsafe},
		"tar over the limit":  {plain, tree.Limits{Bytes: 1 << 10}, ErrTooBig},
		"a bomb":              {gz.Bytes(), tree.Limits{Bytes: 1 << 10}, ErrTooBig},
		"a file":              {[]byte("1\n"), tree.Limits{}, ErrFormat},
		"nothing":             {nil, tree.Limits{}, ErrFormat},
		"gzip of a file":      {gzipped(t, "1\n"), tree.Limits{}, ErrFormat},
		"a zip's first bytes": {[]byte("PK\x03\x04 and no more"), tree.Limits{}, ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			uri, o, _, _ := answers{serve(c.content)}.options(t)
			obj, err := Resolve(t.Context(), Source{URI: uri}, o)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(c.content)
			dir := filepath.Join(t.TempDir(), "out")
			if err := obj.Unpack(t.Context(), dir, Want{SHA256: sum[:], Expand: true}, c.lim, nil); !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			b, err := os.ReadFile(filepath.Join(dir, "dir/a"))
			if (err == nil) != (c.err == nil) || err == nil && string(b) != "1\n" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

func gzipped(t *testing.T, s string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpackRefuses(t *testing.T) {
	uri, o, _, _ := answers{serve(pattern(100))}.options(t)
	for name, c := range map[string]struct {
		want Want
		lim  tree.Limits
		dir  string
		says string
	}{
		"a key of 16 bytes":    {Want{Key: make([]byte, 16), Name: "x"}, tree.Limits{}, "out", "an object's key is 32 raw bytes"},
		"a key of no bytes":    {Want{Key: []byte{}, Name: "x"}, tree.Limits{}, "out", "it has 0 bytes"},
		"a name that goes up":  {Want{Name: ".."}, tree.Limits{}, "out", "is no name for a file"},
		"a name with a slash":  {Want{Name: "a/b"}, tree.Limits{}, "out", "is no name for a file"},
		"no name":              {Want{}, tree.Limits{}, "out", "is no name for a file"},
		"more than may be":     {Want{Name: "x"}, tree.Limits{Bytes: 99}, "out", "it has 100 bytes and 99 may be unpacked"},
		"a place that is full": {Want{Name: "x"}, tree.Limits{}, ".", "exists already"},
	} {
		t.Run(name, func(t *testing.T) {
			obj, err := Resolve(t.Context(), Source{URI: uri}, o)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := obj.Unpack(t.Context(), filepath.Join(dir, c.dir), c.want, c.lim, nil); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want it to say %q", err, c.says)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestSealWhole makes what Cocos reads, and refuses what it could not.
func TestSealWhole(t *testing.T) {
	src, dst := spoolOf(t, pattern(100_000)), spoolOf(t, nil)
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := SealWhole(dst, src, testKey()); err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(dst.Name())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := opened(t, sealed, testKey()); err != nil || !bytes.Equal(b, pattern(100_000)) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := src.Truncate(maxGCM + 1); err != nil { // sparse
		t.Fatal(err)
	}
	if err := SealWhole(dst, src, testKey()); !errors.Is(err, ErrTooBig) {
		t.Errorf("over 64 GiB: %v", err)
	}
	if err := SealWhole(dst, src, testKey()[:16]); !errors.Is(err, ErrKey) {
		t.Errorf("half a key: %v", err)
	}
}

func BenchmarkDecrypt(b *testing.B) {
	plain := pattern(64 << 20)
	var chunks bytes.Buffer
	if err := Seal(&chunks, bytes.NewReader(plain), testKey()); err != nil {
		b.Fatal(err)
	}
	gcm, err := newGCM(testKey())
	if err != nil {
		b.Fatal(err)
	}
	nonce := make([]byte, nonceSize)
	for name, sealed := range map[string][]byte{"chunks": chunks.Bytes(), "whole": gcm.Seal(bytes.Clone(nonce), nonce, plain, nil)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				b.StopTimer()
				f, err := os.CreateTemp("/dev/shm", "ampoule-bench-*")
				if err != nil {
					b.Skip(err)
				}
				os.Remove(f.Name())
				if _, err := f.Write(sealed); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, err := decrypt(b.Context(), f, int64(len(sealed)), testKey()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				f.Close()
				b.StartTimer()
			}
		})
	}
}
