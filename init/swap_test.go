package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tree"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// TestSwap: a disk is touched where the measured command line names it, and only there.
func TestSwap(t *testing.T) {
	for name, c := range map[string]struct {
		line   string
		err    error
		asked  string
		reason result.Reason
	}{
		"no disk is named":   {"", errors.New(secret), "", result.OK},
		"a disk is named":    {" ampoule.swap=vdb", nil, "vdb", result.OK},
		"it cannot be used":  {" ampoule.swap=vdb", errors.New(secret), "vdb", result.Internal},
		"a disk of no name":  {" ampoule.swap=loop0", nil, "", result.BadManifest},
		"two disks are said": {" ampoule.swap=vda ampoule.swap=vdb", nil, "", result.BadManifest},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			f.line += c.line
			asked := ""
			f.tamper = func(m *machine) {
				m.swap = func(_ context.Context, disk string, free int64) (int64, error) {
					if asked = disk; free != 1<<30 {
						t.Errorf("it is told of %d bytes of memory", free)
					}
					return 8 << 30, c.err
				}
			}
			f.boot()
			switch c.reason {
			case result.Internal:
				f.ends("swap", c.reason, false)
				if !strings.Contains(f.log(), secret) {
					t.Errorf("the owner's log does not say why:\n%s", f.log())
				}
			case result.BadManifest:
				f.ends("mount", c.reason, false)
			default:
				f.ends("", c.reason, true)
				if named := strings.Contains(f.log(), "msg=swap disk=vdb mib=8192"); named != (c.asked != "") {
					t.Errorf("the log has the disk: %v:\n%s", named, f.log())
				}
			}
			if asked != c.asked {
				t.Errorf("disk %q was made swap, want %q", asked, c.asked)
			}
		})
	}
}

// TestFits: what cannot be held is refused in resolve, in the owner's words, and nothing of it is pulled.
func TestFits(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		free   room
		limit  string // the manifest's
		reason result.Reason
		log    string
		pulls  int64 // the limit that the images are unpacked under; 0: none is
	}{
		"there is enough":                   {room{ram: 4 * mib, memory: 100 * mib}, "", result.OK, "", 100 * mib},
		"with swap there is":                {room{ram: 4 * mib, memory: 1, swap: 100 * mib}, "", result.OK, "", 100*mib + 1},
		"the compressed sizes are too much": {room{ram: 4 * mib, memory: 1}, "", result.BadImage, "the images and files need at least 0 MiB, which is their size as they are stored, and this machine has 0 MiB free: start it with more memory", 0},
		"the manifest says less":            {room{ram: 4 * mib, memory: 9 * mib}, `"resources": {"input_bytes": 2097152, "memory_bytes": 8388608},`, result.OK, "", 2 * mib},
		"the manifest says more than there is": {room{ram: 4 * mib, memory: mib, swap: 2 * mib}, `"resources": {"input_bytes": 8388608},`, result.BadImage,
			"resources.input_bytes: the images and files may need 8 MiB and this machine has 3 MiB free (memory 1, swap 2): start it with more memory", 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			if c.limit != "" {
				f.edit(`"version": 1`, c.limit+`"version": 1`)
			}
			limit := int64(0)
			f.tamper = func(m *machine) {
				m.memory = func() (room, error) { return c.free, nil }
				m.unpack = keepLimit(t, m.unpack, &limit)
				m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
					f.started = true
					return workload.Outcome{}, nil
				}
			}
			f.boot()
			if c.reason == result.OK {
				f.ends("", result.OK, true)
			} else {
				f.ends("resolve", c.reason, false)
			}
			if !strings.Contains(f.log(), c.log) {
				t.Errorf("the log does not say %q:\n%s", c.log, f.log())
			}
			if limit != c.pulls {
				t.Errorf("unpacked under a limit of %d bytes, want %d", limit, c.pulls)
			}
		})
	}
}

type unpack = func(context.Context, *image.Image, string, image.Keys, image.Limits, func(int64)) error

// keepLimit notes the limit that images are unpacked under, each of which must have it from the same pool.
func keepLimit(t *testing.T, next unpack, limit *int64) unpack {
	var mu sync.Mutex
	var pool *tree.Pool
	return func(ctx context.Context, i *image.Image, dir string, k image.Keys, l image.Limits, progress func(int64)) error {
		mu.Lock()
		if pool == nil {
			pool = l.Pool
		}
		if l.Pool == nil || l.Pool != pool {
			t.Error("an image is bounded by itself alone")
		}
		*limit = l.Bytes
		mu.Unlock()
		return next(ctx, i, dir, k, l, progress)
	}
}

// TestWorkloadOnSwap: what a workload may have beyond the machine's memory may be on swap, and nothing else of it.
func TestWorkloadOnSwap(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		limit        string
		memory, swap int64
	}{
		"no limit":                {"", 300*mib - memoryReserve, 136 * mib},
		"a limit below memory":    {`"resources": {"memory_bytes": 67108864},`, 64 * mib, 0},
		"a limit over the memory": {`"resources": {"memory_bytes": 268435456},`, 256 * mib, 156 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			if c.limit != "" {
				f.edit(`"version": 1`, c.limit+`"version": 1`)
			}
			var got workload.Spec
			f.tamper = func(m *machine) {
				m.memory = func() (room, error) { return room{ram: 100 * mib, memory: 50 * mib, swap: 250 * mib}, nil }
				work := m.runWorkload
				m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) { got = s; return work(ctx, s) }
			}
			f.boot()
			f.ends("", result.OK, true)
			if got.MemoryBytes != c.memory || got.SwapBytes != c.swap {
				t.Errorf("memory %d, of it on swap %d; want %d, %d", got.MemoryBytes, got.SwapBytes, c.memory, c.swap)
			}
		})
	}
}

func TestReadRoom(t *testing.T) {
	const kib, mib = 1 << 10, 1 << 20
	for name, c := range map[string]struct {
		text string
		want room
		fail bool
	}{
		"a machine without swap":        {"MemTotal: 1024 kB\nMemFree: 1 kB\nMemAvailable:   512 kB\nHugePages_Total:       0\nSwapFree: 0 kB\n", room{ram: mib, memory: 512 * kib}, false},
		"with swap":                     {"MemTotal: 1048576 kB\nMemAvailable: 131072 kB\nSwapFree: 2048 kB\n", room{ram: 1024 * mib, memory: 64 * mib, swap: 2 * mib}, false},
		"with swap and nothing to have": {"MemTotal: 131072 kB\nMemAvailable: 1024 kB\nSwapFree: 2048 kB\n", room{ram: 128 * mib, swap: 2 * mib}, false},
		"another kernel's file":         {"MemTotal: 1024 kB\n", room{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "meminfo")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readRoom(path)
			if d := cmp.Diff(c.want, got, cmp.AllowUnexported(room{})); d != "" || (err != nil) != c.fail {
				t.Errorf("%v\n%s", err, d)
			}
		})
	}
}

func TestReadTraffic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stat")
	if err := os.WriteFile(path, []byte("     301        0     4096    12     502      1     8192     7 0 0 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if in, out, err := readTraffic(path); in != 4096*512 || out != 8192*512 || err != nil {
		t.Errorf("%d bytes in, %d out, %v", in, out, err)
	}
	if _, _, err := readTraffic(filepath.Join(t.TempDir(), "stat")); err == nil {
		t.Error("a disk that is not there has traffic")
	}
}
