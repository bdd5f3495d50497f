package test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/qemu"
)

// A machine that is too small, MiB: its memory, a dataset of twice that, and a disk for the rest.
const (
	smallMemory = 128
	bigDataset  = 2 * smallMemory
	swapDisk    = 3 * smallMemory
)

// bigFile has no two pages alike and packs to a fortieth.
var bigFile = sync.OnceValue(func() string {
	var b strings.Builder
	random := rand.NewChaCha8([32]byte{})
	b.Grow(bigDataset << 20)
	unit := make([]byte, 64)
	for b.Len() < bigDataset<<20 {
		random.Read(unit)
		for range 4096 / len(unit) {
			b.Write(unit)
		}
	}
	return b.String()
})

// newSwapTrial is a machine whose command line names disk for swap, and whose workload reads all of a dataset that is larger than memory,
// as many times as said.
func newSwapTrial(t *testing.T, disk string, times int) *trial {
	t.Helper()
	r := newTrial(t, nil, slices.Repeat([]string{"digest=numbers"}, times)...)
	r.job.Dataset = r.publish("big", demo.DatasetKey, r.fileImage(map[string]string{"numbers": bigFile()}), true)
	r.manifest = r.world.Manifest(r.job)
	r.cfg.Shape = qemu.Shape{VCPUs: 2, MemoryMiB: smallMemory} // one seals pages while the other works
	r.cfg.Timeout = 2 * vmLimit                                // all of it is sealed and opened without the processor's help
	r.swapTo(disk)
	return r
}

func (r *trial) swapTo(disk string) {
	r.cfg.Cmdline += " ampoule.swap=" + disk
	r.cfg.SwapMiB, r.cfg.SwapDisk = swapDisk, disk
	r.accepted = r.cfg.Cmdline
}

var swappedLine = regexp.MustCompile(`msg=swapped in_mib=(\d+) out_mib=(\d+) error=<nil>`)

// TestBiggerThanMemory pulls and reads a dataset of twice the machine's memory.
func TestBiggerThanMemory(t *testing.T) {
	r := newSwapTrial(t, "vda", 1)
	r.run()
	r.ends("", result.OK, 0)
	r.verified()
	dir := r.open()
	if got, want := r.read(filepath.Join(dir, "results/numbers.sha256")), fmt.Sprintf("%x", sha256.Sum256([]byte(bigFile()))); got != want {
		t.Errorf("the workload read bytes with digest %s, want %s", got, want)
	}
	log := r.read(filepath.Join(dir, result.BootLogName))
	m := swappedLine.FindStringSubmatch(log)
	if m == nil {
		t.Fatalf("the log does not say what was swapped:\n%s", log)
	}
	t.Logf("MiB swapped in %s, out %s; timeline:\n%s", m[1], m[2], r.read(filepath.Join(dir, result.TimelineName)))
	for _, n := range m[1:] {
		if n, _ := strconv.Atoi(n); n < bigDataset-smallMemory {
			t.Errorf("%d MiB were swapped, and a dataset of twice the memory needs %d at least", n, bigDataset-smallMemory)
		}
	}
	if _, err := os.Stat(filepath.Join(r.cfg.Dir, qemu.SwapFile)); !os.IsNotExist(err) {
		t.Errorf("the disk is still there: %v", err)
	}
}

// TestAlteredSwap: when all is pulled the host alters what is on the disk, or puts back what was there before. Nobody takes such a page for
// what was written, and no result is delivered as one.
func TestAlteredSwap(t *testing.T) {
	for name, c := range map[string]struct {
		disk  string // of each kind once
		alter func(*disk) int
	}{
		"a bit of each page": {"nvme0n1", (*disk).flip},
		"older pages":        {"sda", (*disk).rollBack},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSwapTrial(t, c.disk, 2) // what was written after a first reading is read as well
			altered := make(chan int, 1)
			r.cfg.OnEvent = func(e result.Event) {
				if e.Step == "pull" && e.State == result.Done {
					d := openDisk(t, filepath.Join(r.cfg.Dir, qemu.SwapFile))
					go func() {
						defer d.Close()
						altered <- c.alter(d)
					}()
				}
			}
			r.run()
			select {
			case n := <-altered:
				if n == 0 {
					t.Fatal("nothing on the disk was altered")
				}
				t.Logf("%d pages altered", n)
			case <-t.Context().Done():
				t.Fatal("the disk was not altered")
			}
			o := r.report.Outcome
			if o == nil {
				t.Fatalf("the VM never reported (%s)", r.report.End)
			}
			t.Logf("outcome %s", o.Line())
			if o.Reason == result.OK || o.ExitCode() == 0 {
				t.Error("the run ended well")
			}
			if r.report.ResultPath == "" {
				return
			}
			if b, err := os.ReadFile(filepath.Join(r.open(), "results/numbers.sha256")); err == nil {
				t.Errorf("the workload came to a result: %s", b)
			}
		})
	}
}

// A disk is what the host has of the guest's.
type disk struct {
	*os.File
	began []byte // its content when it was opened
}

func openDisk(t *testing.T, path string) *disk {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Error(err)
		return &disk{}
	}
	d := &disk{File: f, began: make([]byte, swapDisk<<20)}
	if _, err := f.ReadAt(d.began, 0); err != nil {
		t.Error(err)
	}
	return d
}

const pageSize = 4096

var noPage [pageSize]byte

// flip flips a bit of each page that had content, and returns how many.
func (d *disk) flip() (n int) {
	for at := 0; at < len(d.began); at += pageSize {
		if page := d.began[at : at+pageSize]; [pageSize]byte(page) != noPage {
			page[0] ^= 1
			if _, err := d.WriteAt(page, int64(at)); err == nil {
				n++
			}
		}
	}
	return n
}

// rollBack waits until the guest has written some pages anew, and puts back what they had. It returns how many.
func (d *disk) rollBack() (n int) {
	const enough = 4096
	now := make([]byte, len(d.began))
	var changed []int
	for len(changed) < enough {
		changed = changed[:0]
		if _, err := d.ReadAt(now, 0); err != nil {
			return 0
		}
		if fi, err := d.Stat(); err != nil || fi.Sys().(*syscall.Stat_t).Nlink == 0 {
			return 0 // the VM has ended
		}
		for at := 0; at < len(now); at += pageSize {
			before := [pageSize]byte(d.began[at : at+pageSize])
			if before != noPage && before != [pageSize]byte(now[at:at+pageSize]) {
				changed = append(changed, at)
			}
		}
	}
	for _, at := range changed {
		if _, err := d.WriteAt(d.began[at:at+pageSize], int64(at)); err == nil {
			n++
		}
	}
	return n
}

// TestSwapIsNoMoreMemory than the manifest gives.
func TestSwapIsNoMoreMemory(t *testing.T) {
	r := newTrial(t, nil, "allocate=200")
	r.job.MemoryBytes = 64 << 20
	r.manifest = r.world.Manifest(r.job)
	r.swapTo("vda")
	r.run()
	r.ends("execute", result.Workload, 4)
	if !r.verified().Statement.Predicate.Workload.OOM {
		t.Error("the receipt does not say that memory ran out")
	}
}

// TestSwapDiskMissing: the command line names a disk that the host did not plug in.
func TestSwapDiskMissing(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.cfg.Cmdline += " ampoule.swap=vdb"
	r.accepted = r.cfg.Cmdline
	r.run()
	r.ends("swap", result.Internal, 1)
	r.notRun()
	if log := r.ownersLog(); !strings.Contains(log, "ampoule.swap=vdb and this machine has no such disk") {
		t.Errorf("the owner's log does not say why:\n%s", log)
	}
}

// TestTooBigForMemory: without swap the same images are refused before a byte of them is pulled, and the owner learns the sizes.
func TestTooBigForMemory(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.job.InputBytes = bigDataset << 20
	r.manifest = r.world.Manifest(r.job)
	r.cfg.Shape.MemoryMiB = smallMemory
	r.run()
	r.ends("resolve", result.BadImage, 1)
	r.notRun()
	if log := r.ownersLog(); !regexp.MustCompile(`the images and files may need 256 MiB and this machine has \d+ MiB free: start it with more memory`).MatchString(log) {
		t.Errorf("the owner's log does not say how much is needed:\n%s", log)
	}
}
