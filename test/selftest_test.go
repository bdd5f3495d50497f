package test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// TestSelftest goes through the checklist for owners of hardware with a simulation image: over TLS, with this very command as the job.
func TestSelftest(t *testing.T) {
	t.Parallel()
	dir, _ := simulation.get(t, mkimage.Options{Profile: cmdline.Simulation, Net: "dhcp"})
	ampoule := filepath.Join(t.TempDir(), "ampoule")
	ctx, cancel := context.WithTimeout(t.Context(), 3*vmLimit)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", ampoule, "../cmd/ampoule")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(ctx, ampoule, "selftest", "--image", dir, "--out", t.TempDir(), "--psp", filepath.Join(work, "psp"), "--json")
	cmd.Stderr, cmd.WaitDelay = os.Stderr, time.Second
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var checks []struct {
		Name string
		OK   bool
	}
	if err := json.Unmarshal(out, &checks); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if len(checks) != 7 {
		t.Errorf("%d lines, want 7:\n%s", len(checks), out)
	}
	for _, c := range checks {
		if !c.OK {
			t.Errorf("%s: failed", c.Name)
		}
	}
}
