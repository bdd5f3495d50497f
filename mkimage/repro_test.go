package mkimage

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
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

// buildRequest, in the environment, has the test program build an image and end: see TestReproImage.
const buildRequest = "AMPOULE_TEST_BUILD"

func TestMain(m *testing.M) {
	request := os.Getenv(buildRequest)
	if request == "" {
		os.Exit(m.Run())
	}
	var r struct {
		Options
		Umask int
	}
	err := json.Unmarshal([]byte(request), &r)
	if err == nil {
		syscall.Umask(r.Umask)
		r.Progress = os.Stderr
		_, err = Build(context.Background(), r.Options)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestReproImage builds an image twice, from two checkouts in directories of different length, by two users with
// different umasks, time zones, locales and settings, at two moments: every byte of every file is the same. The kernel is
// one that stands for it; with AMPOULE_REPRO it is the real one, and each build compiles all that is Go anew.
func TestReproImage(t *testing.T) {
	full := os.Getenv("AMPOULE_REPRO") != ""
	goEnv := func(name string) string {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	parent := t.TempDir()
	stub := write(t, filepath.Join(parent, "stub"), string(sharedStub(t)))
	cache := ""
	if !full {
		cache = filepath.Join(parent, "cache")
		withKernel(t, cache, cmdline.Simulation)
	}
	var outs []string
	for _, c := range []struct {
		dir   string
		umask int
		uid   int
		env   []string
	}{
		{"a", 0o022, 0, []string{"TZ=UTC", "LC_ALL=C", "USER=one", "HOME=" + parent}},
		{"b/a-longer-name/for-the-same", 0o077, 1234, []string{"TZ=Asia/Tokyo", "LC_ALL=de_DE.UTF-8", "USER=two", "HOME=" + filepath.Join(parent, "b"), "GOFLAGS=-tags=other", "GOAMD64=v3"}},
	} {
		dir := filepath.Join(parent, c.dir)
		copyModule(t, "..", dir)
		out := filepath.Join(dir, "out", "image")
		request, err := json.Marshal(map[string]any{
			"Profile": cmdline.Simulation, "Net": "dhcp", "Out": out, "SourceDir": dir, "Cache": cache, "Formats": Formats, "Stub": stub, "Umask": c.umask,
			"KernelSource": os.Getenv("KERNEL_SOURCE"),
		})
		if err != nil {
			t.Fatal(err)
		}
		goCache := goEnv("GOCACHE")
		if full {
			goCache = filepath.Join(t.TempDir(), "go")
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), buildRequest+"="+string(request), "GOCACHE="+goCache, "GOMODCACHE="+goEnv("GOMODCACHE"), "XDG_CACHE_HOME="+userCache(t))
		cmd.Env = append(cmd.Env, c.env...)
		cmd.SysProcAttr = asUser(t, c.uid)
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build in %s: %v\n%s", dir, err, said)
		}
		outs = append(outs, out)
	}
	names, err := filesBelow(outs[0], ".")
	if err != nil {
		t.Fatal(err)
	}
	if others, err := filesBelow(outs[1], "."); err != nil || !slices.Equal(names, others) {
		t.Errorf("the one has %q, the other %q (%v)", names, others, err)
	}
	for _, name := range names {
		for _, d := range differences(name, read(t, outs[0], name), read(t, outs[1], name)) {
			t.Error(d)
		}
	}
	t.Logf("%d files, built twice: bit-identical", len(names))
}

func userCache(t *testing.T) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// asUser has a program see itself as another user, in a user namespace of its own where this machine lets us make one.
func asUser(t *testing.T, uid int) *syscall.SysProcAttr {
	t.Helper()
	if uid == 0 {
		return nil
	}
	attr := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}},
	}
	probe := exec.Command("true")
	probe.SysProcAttr = attr
	if err := probe.Run(); err != nil {
		t.Logf("both builds are by one user: no user namespace can be made here: %v", err)
		return nil
	}
	return attr
}
