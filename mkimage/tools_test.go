package mkimage

import (
	"slices"
	"strings"
	"testing"
)

func TestMissingNamesPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	got := Missing()
	for _, want := range []string{"bc", "binutils", "bison", "flex", "gcc", "make", "xz-utils", "zstd"} {
		if !slices.Contains(got, want) {
			t.Errorf("without any program, %s is not among %q", want, got)
		}
	}
	_, err := findToolchain(t.Context())
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends "+strings.Join(got, " ")) {
		t.Errorf("the error is not the command to run: %v", err)
	}
}
