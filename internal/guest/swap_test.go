package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSwapTables: what the kernel is asked for, word by word.
func TestSwapTables(t *testing.T) {
	const size = 1 << 30
	lower := integrityTable("/dev/vda", size)
	if want := "/dev/vda 0 28 D 4 block_size:4096 meta_device:/dev/ram0 journal_sectors:1 buffer_sectors:8"; string(lower.params) != want || lower.kind != "integrity" {
		t.Errorf("%s %s, want integrity %s", lower.kind, lower.params, want)
	}
	upper := cryptTable(253<<8|7, bytes.Repeat([]byte{0xab}, 32), size)
	if want := "capi:gcm(aes)-random " + strings.Repeat("ab", 32) + " 0 253:7 0 2 integrity:28:aead sector_size:4096"; string(upper.params) != want || upper.kind != "crypt" {
		t.Errorf("%s %s, want crypt %s", upper.kind, upper.params, want)
	}
	for _, table := range []dmTarget{lower, upper} {
		if table.sectors != size/512 {
			t.Errorf("%s has %d sectors, want %d", table.kind, table.sectors, size/512)
		}
	}
	if cap(upper.params) != 256 {
		t.Error("the buffer has grown, and what it grew from still has the key")
	}
}

// TestSwapHeader is what mkswap writes.
func TestSwapHeader(t *testing.T) {
	b := swapHeader(64 << 20)
	le := binary.NativeEndian
	if len(b) != 4096 || string(b[4086:]) != "SWAPSPACE2" || le.Uint32(b[1024:]) != 1 || le.Uint32(b[1028:]) != 64<<20/4096-1 || le.Uint32(b[1032:]) != 0 {
		t.Errorf("%d bytes, version %d, last page %d, %d bad pages, %q", len(b), le.Uint32(b[1024:]), le.Uint32(b[1028:]), le.Uint32(b[1032:]), b[4086:])
	}
	if got := le.Uint32(swapHeader(1 << 50)[1028:]); got != 1<<32-2 {
		t.Errorf("last page of a petabyte: %d", got)
	}
}

func TestSwapSize(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct{ disk, ram, want int64 }{
		"whole pages":                        {1<<20 + 4095, gib, 1 << 20},
		"a disk of four times the memory":    {4 * gib, gib, 4 * gib},
		"more than the memory has tags for":  {1 << 50, gib, gib / 16 / 28 * 4096},
		"a disk without a page":              {4095, gib, 0},
		"a disk that says it is of no size":  {0, gib, 0},
		"a disk that says it is of less yet": {-1, gib, 0},
	} {
		got := swapSize(c.disk, c.ram)
		if got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, got, c.want)
		}
		if tags := tagBytes(got); tags > c.ram/16+tagOverhead {
			t.Errorf("%s: the tags take %d bytes", name, tags)
		}
	}
}

func TestWaitForDisk(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := waitForDisk(ctx, "/dev/vdz9"); err == nil || !strings.Contains(err.Error(), "ampoule.swap=vdz9 and this machine has no such disk") {
		t.Errorf("a disk that is not there: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := waitForDisk(t.Context(), file); err == nil || !strings.Contains(err.Error(), "no block device") {
		t.Errorf("a file: %v", err)
	}
}

// TestLockMemory: every page that a process has, and those that it takes later, stay in memory.
func TestLockMemory(t *testing.T) {
	if b, ok := debug.ReadBuildInfo(); ok && slices.Contains(b.Settings, debug.BuildSetting{Key: "CGO_ENABLED", Value: "1"}) {
		t.Skip("built with cgo, so that the dynamic linker has pages of its own; PID 1 and make test are built without")
	}
	const child = "AMPOULE_TEST_LOCK"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestLockMemory$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "--- SKIP") {
			t.Skipf("%s", out)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := lockMemory(); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOMEM) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	later := make([]byte, 32<<20)
	for i := 0; i < len(later); i += 4096 {
		later[i] = 1
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	var mapping string
	var locked, rss, total int64
	for line := range strings.Lines(string(smaps)) {
		switch name, value, _ := strings.Cut(line, ":"); {
		case strings.Contains(name, "-"):
			mapping, rss = strings.TrimSpace(line), 0
		case name == "Rss":
			fmt.Sscan(value, &rss)
		case name == "Locked":
			fmt.Sscan(value, &locked)
			total += locked
			if rss > 0 && locked == 0 && !strings.HasSuffix(mapping, "]") { // [vdso] and the like are the kernel's
				t.Errorf("%d KiB can be swapped: %s", rss, mapping)
			}
		}
	}
	if total < int64(len(later))>>10 {
		t.Errorf("%d KiB are locked", total)
	}
	runtime.KeepAlive(later)
}
