package mkimage

import (
	"os"
	"testing"
)

// TestReproKernel builds both kernels twice; half an hour on two cores. `make repro` runs it.
func TestReproKernel(t *testing.T) {
	if os.Getenv("AMPOULE_REPRO") == "" {
		t.Skip("builds two kernels twice; set AMPOULE_REPRO=1, or run `make repro`")
	}
	r, err := Repro(t.Context(), Options{KernelSource: os.Getenv("KERNEL_SOURCE"), Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("production kernel: %d bytes, sha256 %s", r.Production.Size, r.Production.SHA256)
	t.Logf("simulation kernel: %d bytes, sha256 %s", r.Simulation.Size, r.Simulation.SHA256)
	t.Logf("each built twice, in two directories and from different beginnings: bit-identical; %s", r.Took)
}
