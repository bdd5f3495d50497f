package tree

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// BenchmarkTar unpacks archives that are in memory, to a tmpfs and to the disk of the temporary directory. Processor time is told besides,
// for other load does not change it much.
func BenchmarkTar(b *testing.B) {
	for _, c := range []struct {
		name  string
		files int
		size  int
	}{
		{"one-256MiB", 1, 256 << 20},
		{"small-files", 5000, 32 << 10},
		{"empty-files", 50_000, 0},
	} {
		archive := manyFiles(b, c.files, c.size)
		for _, on := range []struct{ name, dir string }{{"tmpfs", "/dev/shm"}, {"disk", os.TempDir()}} {
			b.Run(c.name+"/"+on.name, func(b *testing.B) {
				top, err := os.MkdirTemp(on.dir, "bench-")
				if err != nil {
					b.Skip(err)
				}
				defer os.RemoveAll(top)
				b.SetBytes(int64(len(archive)))
				var busy time.Duration
				for n := range b.N {
					dir := filepath.Join(top, fmt.Sprint(n))
					if err := os.Mkdir(dir, 0o700); err != nil {
						b.Fatal(err)
					}
					begin := processorTime(b)
					t, err := Open(dir, Limits{Chown: os.Geteuid() == 0})
					if err != nil {
						b.Fatal(err)
					}
					if err := t.Tar(t.Charge(bytes.NewReader(archive))); err != nil {
						b.Fatal(err)
					}
					if err := t.Seal(); err != nil {
						b.Fatal(err)
					}
					t.Close()
					b.StopTimer()
					busy += processorTime(b) - begin
					os.RemoveAll(dir)
					b.StartTimer()
				}
				b.ReportMetric(float64(busy.Nanoseconds())/float64(b.N*c.files), "cpu-ns/file")
				b.ReportMetric(float64(b.N*len(archive))/1e6/busy.Seconds(), "MB/cpu-s")
			})
		}
	}
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// manyFiles is an archive of random bytes, 100 files to a directory.
func manyFiles(tb testing.TB, files, size int) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	body := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(body)
	at := time.Unix(1_700_000_000, 0)
	put := func(h *tar.Header, body []byte) {
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			tb.Fatal(err)
		}
	}
	for n := range files {
		if n%100 == 0 {
			put(&tar.Header{Name: fmt.Sprintf("usr/lib/d%d/", n/100), Typeflag: tar.TypeDir, Mode: 0o755, ModTime: at}, nil)
		}
		put(&tar.Header{Name: fmt.Sprintf("usr/lib/d%d/f%d", n/100, n), Typeflag: tar.TypeReg, Mode: 0o644, ModTime: at, Size: int64(size)}, body)
	}
	w.Close()
	return out.Bytes()
}
