package demo

import (
	"archive/tar"
	"encoding/json"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// TestLinregInGo: the demo's program is in its image, and fits what the script fits, which TestRegression holds against another method.
func TestLinregInGo(t *testing.T) {
	img, runtime, err := OfKind(t.Context(), "bin", "../..", t.TempDir(), t.Logf)
	if err != nil || runtime != nil {
		t.Fatal(runtime, err)
	}
	dir := t.TempDir()
	for _, d := range []string{"datasets", "results"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := mutate.Extract(img)
	defer files.Close()
	r := tar.NewReader(files)
	h, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	program, err := io.ReadAll(r)
	if err != nil || h.Name != "linreg" {
		t.Fatal(h.Name, err)
	}
	for path, b := range map[string][]byte{"algo": program, "datasets/houses.csv": dataset} {
		if err := os.WriteFile(filepath.Join(dir, path), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("./algo")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "fitted 400 samples\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "results/coefficients.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]float64
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"intercept": 18520.908360268677, "area": 2384.0992701259383, "rooms": 5978.743139600461, "samples": 400} {
		if math.Abs(got[name]-want) > 1e-6*math.Abs(want) {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

func TestOfNoKind(t *testing.T) {
	if _, _, err := OfKind(t.Context(), "java", "../..", t.TempDir(), t.Logf); err == nil {
		t.Error("java is a kind")
	}
}
