package workload

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/bench"
	"github.com/ampoule-vm/ampoule/internal/guest"
)

// BenchmarkSandbox runs the program that ampoule bench boot times, which it also asks for stub-ns: the processor time of the sandbox's
// stub up to the program's first instruction. Here the stub is this test.
func BenchmarkSandbox(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("making namespaces needs CAP_SYS_ADMIN")
	}
	dir := b.TempDir()
	reaper := guest.NewReaper()
	var stub []int64
	for b.Loop() {
		at, err := os.MkdirTemp(dir, "")
		if err != nil {
			b.Fatal(err)
		}
		var out bytes.Buffer
		s := Spec{
			Root: filepath.Join(at, "root"), Datasets: filepath.Join(at, "datasets"), Results: filepath.Join(at, "results"), Scratch: filepath.Join(at, "scratch"),
			Args: []string{"/first"}, UID: testUser, GID: testUser, ScratchBytes: 64 << 20, Stdout: &out,
		}
		for _, d := range []string{at, s.Root, s.Datasets, s.Results, s.Scratch} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.Chmod(at, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.Root, "first"), bench.BootProgram(), 0o755); err != nil {
			b.Fatal(err)
		}
		if _, err := Run(b.Context(), reaper, s); err != nil {
			b.Fatal(err)
		}
		stamps, err := bench.ParseStamps(out.Bytes())
		if err != nil {
			b.Fatal(err)
		}
		stub = append(stub, stamps.CPU.Nanoseconds())
	}
	b.ReportMetric(float64(bench.Median(stub)), "stub-ns")
}
