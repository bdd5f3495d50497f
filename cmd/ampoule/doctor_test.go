package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/doctor"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// TestDoctor examines an image, and says in words and as JSON what it is good for.
func TestDoctor(t *testing.T) {
	t.Setenv("PATH", "") // no QEMU
	dir := t.TempDir()
	info := mkimage.Info{Profile: cmdline.Simulation, Allow: []string{"http"}, Kernel: mkimage.KernelInfo{Version: "6.12.1", Label: mkimage.Pinned}}
	writeImage(t, dir, info, cmdline.Options{Allow: cmdline.Allow{"http": true}})
	var stdout, stderr bytes.Buffer
	code := dispatch(t.Context(), []string{"doctor", "--image", dir, "--json"}, stdio{strings.NewReader(""), &stdout, &stderr})
	var r doctor.Report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v in:\n%s", err, &stdout)
	}
	states := map[string]doctor.State{}
	for _, f := range r.Findings {
		states[f.Part+" "+f.What] = f.State
	}
	for what, want := range map[string]doctor.State{
		"image files": doctor.OK, "image kernel": doctor.OK, "image command line": doctor.OK, "host QEMU": doctor.Bad,
	} {
		if states[what] != want {
			t.Errorf("%s is %q, want %q", what, states[what], want)
		}
	}
	risks := strings.Join(r.Risks, "\n")
	if !strings.Contains(risks, "simulation image keeps nothing") || !strings.Contains(risks, "brokers and files over plain http") {
		t.Errorf("the risks do not name what the image permits:\n%s", risks)
	}
	if code != 1 || !strings.Contains(stderr.String(), "findings that are bad: 1") {
		t.Errorf("exit code %d: %s", code, &stderr)
	}

	write(t, dir+"/"+mkimage.KernelFile, []byte("another kernel"))
	stdout.Reset()
	dispatch(t.Context(), []string{"doctor", "--image", dir}, stdio{strings.NewReader(""), &stdout, &stderr})
	if !strings.Contains(stdout.String(), "bad     files") || !strings.Contains(stdout.String(), "build it again") {
		t.Errorf("another kernel goes unseen:\n%s", &stdout)
	}
}
