package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

const benchHelp = `
usage: ampoule bench [--runs N] [--out DIR] [--json]
       ampoule bench pull …
       ampoule bench boot …

The second form compares pulling images with Debian's tools, and the third says where the time of a boot goes: see
ampoule bench pull -h, ampoule bench boot -h. The first one:

Boots the demo's image N times with the demo's job, with QEMU's built-in firmware, and prints for each run and as
median:

  qemu-pid1    start of QEMU to the first step of PID 1, s
  pid1-work    first step of PID 1 to the start of the workload, s
  pull         fetch, verify, decrypt, decompress and unpack both images, MB of blobs a second
  host-pull    the same code with the same images on this machine, outside the VM, just before: what the VM costs
  peak         memory that PID 1 itself has held when it begins to seal, MiB (not what lies in its file systems)
  work-gone    end of the workload to the exit of QEMU, s: sealing, delivery, power-off

Times inside the VM are the guest's clock since its kernel booted. The two that begin or end outside need that clock's
zero on this machine's clock: the least difference, over all events of the run, between when an event arrived and when
it says it was sent. So they err by the delay of the fastest event, towards a later zero. Without KVM the guest is
emulated, and all of this is an order of magnitude slower.

Examples:
  ampoule bench
  ampoule bench --runs 11 --json`

// figures are one run, or the medians of several.
type figures struct {
	PID1     float64 `json:"qemu_to_pid1_s"`
	Workload float64 `json:"pid1_to_workload_s"`
	Pull     float64 `json:"pull_mb_per_s"`
	HostPull float64 `json:"host_pull_mb_per_s"`
	Peak     float64 `json:"pid1_peak_mib"`
	Gone     float64 `json:"workload_to_exit_s"`
}

// benchReport is what bench prints. Sizes are in bytes.
type benchReport struct {
	Accel     qemu.Accel `json:"accel"`
	PullBytes int64      `json:"pull_bytes"`
	Runs      []figures  `json:"runs"`
	Median    figures    `json:"median"`
	Init      int64      `json:"init_bytes"`
	Kernel    int64      `json:"kernel_bytes"`
	Initramfs int64      `json:"initramfs_bytes"`
}

func benchVerb(ctx context.Context, args []string, std stdio) error {
	if len(args) > 0 && args[0] == "pull" {
		return benchPullVerb(ctx, args[1:], std)
	}
	if len(args) > 0 && args[0] == "boot" {
		return benchBootVerb(ctx, args[1:], std)
	}
	fs := flags("bench", benchHelp, std)
	runs := fs.Int("runs", 5, "how many boots")
	out := fs.String("out", "out/bench", "folder for everything; the last run's artefacts stay in its run/")
	source := fs.String("source", ".", "folder of Ampoule's own source")
	asJSON := fs.Bool("json", false, "print the figures as JSON")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if *runs < 1 {
		return usagef("--runs %d: want at least 1", *runs)
	}
	d, err := newDemo(ctx, *out, *source, "oci", std)
	if err != nil {
		return err
	}
	b, err := d.bench(ctx, *runs, *out, std)
	if err = errors.Join(err, d.world.Close()); err != nil {
		return err
	}
	if *asJSON {
		return std.json(b)
	}
	_, err = io.WriteString(std.out, b.text())
	return err
}

func (d *demoRun) bench(ctx context.Context, runs int, out string, std stdio) (*benchReport, error) {
	b := &benchReport{
		Init: d.info.Init.Size, Kernel: d.info.File(mkimage.KernelFile).Size, Initramfs: d.info.File(mkimage.InitramfsFile).Size,
	}
	std.say("4. Boot the VM %d times", runs)
	for n := range runs {
		pulled, host, err := d.hostPull(ctx, out)
		if err != nil {
			return nil, err
		}
		b.PullBytes = pulled
		dir := filepath.Join(out, "run")
		report, err := d.run(ctx, qemu.Shape{VCPUs: 1, MemoryMiB: 1024}, dir, nil)
		if err != nil {
			return nil, err
		}
		if err := outcomeError(report); err != nil {
			return nil, fmt.Errorf("run %d: %w", n+1, err)
		}
		b.Accel = report.Accel
		f, err := d.figures(report, b.PullBytes, filepath.Join(out, "opened"))
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", n+1, err)
		}
		f.HostPull = float64(pulled) / 1e6 / host.Seconds()
		std.say("  %d/%d done in %.1f s", n+1, runs, report.Exited.Sub(report.QEMUStart).Seconds())
		b.Runs = append(b.Runs, f)
	}
	b.Median = medians(b.Runs)
	return b, nil
}

// hostPull pulls both images here. It returns the size of their blobs and the time that it took, resolving left out.
func (d *demoRun) hostPull(ctx context.Context, out string) (bytes int64, took time.Duration, err error) {
	dir, err := os.MkdirTemp(out, "pull")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(dir)
	for i, uri := range d.images {
		_, name, _ := strings.Cut(strings.TrimPrefix(uri, "docker://"), "/")
		img, err := image.Resolve(ctx, "docker://"+d.world.Registry+"/"+name, image.Options{PlainHTTP: true})
		if err != nil {
			return 0, 0, err
		}
		keys := image.Keys{}
		defer keys.Zero()
		for _, path := range img.KeyIDs() {
			if keys[path], err = os.ReadFile(filepath.Join(out, "kbs", "keys", filepath.FromSlash(path))); err != nil {
				return 0, 0, err
			}
		}
		start := time.Now()
		if err := img.Unpack(ctx, filepath.Join(dir, strconv.Itoa(i)), keys, image.Limits{}, nil); err != nil {
			return 0, 0, err
		}
		took += time.Since(start)
		bytes += img.Size()
	}
	return bytes, took, nil
}

// figures reads one run's from its report, its receipt (when the workload began and ended) and its private log (memory).
func (d *demoRun) figures(r *qemu.Report, pulled int64, scratch string) (figures, error) {
	b, err := os.ReadFile(r.ReceiptPath)
	if err != nil {
		return figures{}, err
	}
	_, st, err := result.ParseReceipt(b)
	if err != nil {
		return figures{}, err
	}
	var pull int64
	for _, e := range r.Events {
		if e.Event == result.StepEvent && e.Step == "pull" && e.State == result.Done {
			pull = e.Micros
		}
	}
	if pull == 0 {
		return figures{}, errors.New("no event says how long the step pull took")
	}
	peak, err := d.peak(r.ResultPath, scratch)
	if err != nil {
		return figures{}, err
	}
	first, w := r.Events[0].Time, st.Predicate.Workload
	at := func(micros int64) time.Time { return r.Zero.Add(time.Duration(micros) * time.Microsecond) }
	return figures{
		PID1:     at(first).Sub(r.QEMUStart).Seconds(),
		Workload: float64(w.Started-first) / 1e6,
		Pull:     float64(pulled) / float64(pull), // bytes a microsecond are MB a second
		Peak:     float64(peak) / 1024,
		Gone:     r.Exited.Sub(at(w.Ended)).Seconds(),
	}, nil
}

var peakLine = regexp.MustCompile(`msg=memory peak_kib=(\d+)`)

// peak is what PID 1 wrote of its own memory into the sealed log, KiB.
func (d *demoRun) peak(path, scratch string) (int64, error) {
	if err := os.RemoveAll(scratch); err != nil {
		return 0, err
	}
	if _, err := unsealTo(path, []age.Identity{d.world.Identity}, scratch); err != nil {
		return 0, err
	}
	log, err := os.ReadFile(filepath.Join(scratch, result.BootLogName))
	if err != nil {
		return 0, err
	}
	m := peakLine.FindSubmatch(log)
	if m == nil {
		return 0, fmt.Errorf("%s: no line about memory", result.BootLogName)
	}
	return strconv.ParseInt(string(m[1]), 10, 64)
}

func medians(runs []figures) figures {
	of := func(get func(figures) float64) float64 {
		var all []float64
		for _, f := range runs {
			all = append(all, get(f))
		}
		slices.Sort(all)
		n := len(all)
		return (all[(n-1)/2] + all[n/2]) / 2
	}
	return figures{
		PID1:     of(func(f figures) float64 { return f.PID1 }),
		Workload: of(func(f figures) float64 { return f.Workload }),
		Pull:     of(func(f figures) float64 { return f.Pull }),
		HostPull: of(func(f figures) float64 { return f.HostPull }),
		Peak:     of(func(f figures) float64 { return f.Peak }),
		Gone:     of(func(f figures) float64 { return f.Gone }),
	}
}

func (b *benchReport) text() string {
	var t strings.Builder
	fmt.Fprintf(&t, "%-7s %12s %12s %12s %12s %10s %12s\n", "run", "qemu-pid1", "pid1-work", "pull", "host-pull", "peak", "work-gone")
	line := func(name string, f figures) {
		fmt.Fprintf(&t, "%-7s %10.2f s %10.2f s %7.2f MB/s %7.2f MB/s %6.1f MiB %10.2f s\n", name, f.PID1, f.Workload, f.Pull, f.HostPull, f.Peak, f.Gone)
	}
	for i, f := range b.Runs {
		line(strconv.Itoa(i+1), f)
	}
	line("median", b.Median)
	const mib = 1 << 20
	fmt.Fprintf(&t, "\npulled %.1f MB a run, in the VM at %.3f of the host's speed, accelerator %s\n",
		float64(b.PullBytes)/1e6, b.Median.Pull/b.Median.HostPull, b.Accel)
	fmt.Fprintf(&t, "sizes: /init %.2f MiB, kernel %.2f MiB, initramfs %.2f MiB, kernel + initramfs %.2f MiB\n",
		float64(b.Init)/mib, float64(b.Kernel)/mib, float64(b.Initramfs)/mib, float64(b.Kernel+b.Initramfs)/mib)
	return t.String()
}
