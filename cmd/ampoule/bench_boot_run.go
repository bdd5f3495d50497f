package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/u-root/mkuimage/cpio"

	"github.com/ampoule-vm/ampoule/internal/bench"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

// A bootBench is an image, a world around it, and jobs.
type bootBench struct {
	out, image         string
	info               *mkimage.Info
	archive            []byte // of the initramfs, unpacked
	world              *demo.World
	source             string
	small, loop, large []byte // manifests: the timed program without and with its loops, and the demo's job or nil
	std                stdio
}

func newBootBench(ctx context.Context, out, source string, withDemo bool, std stdio) (_ *bootBench, err error) {
	b := &bootBench{out: out, image: filepath.Join(out, "image"), source: source, std: std}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	b.info, err = mkimage.Build(ctx, mkimage.Options{
		Profile: cmdline.Simulation, Out: b.image, SourceDir: source, Net: "dhcp", Formats: []string{mkimage.UKI},
		KernelSource: os.Getenv("KERNEL_SOURCE"), Progress: std.err,
	})
	if err != nil {
		return nil, err
	}
	packed, err := os.ReadFile(filepath.Join(b.image, mkimage.InitramfsFile))
	if err != nil {
		return nil, err
	}
	if b.archive, err = bench.Unzstd(packed); err != nil {
		return nil, err
	}
	if b.world, err = demo.NewWorld(ctx, out, defaultPSP(), nil); err != nil {
		return nil, err
	}
	if err := b.publish(ctx, withDemo); err != nil {
		return nil, errors.Join(err, b.world.Close())
	}
	return b, nil
}

func (b *bootBench) publish(ctx context.Context, withDemo bool) error {
	algo, err := demo.Image(map[string]string{"first": string(bench.BootProgram())}, v1.Config{Entrypoint: []string{"/first"}, User: "1000"})
	if err != nil {
		return err
	}
	data, err := demo.Image(map[string]string{"houses.csv": string(demo.Dataset())}, v1.Config{})
	if err != nil {
		return err
	}
	var job demo.Job
	if job.Algorithm, err = b.world.Publish(ctx, algo, "first", demo.AlgorithmKey); err != nil {
		return err
	}
	if job.Dataset, err = b.world.Publish(ctx, data, "houses", demo.DatasetKey); err != nil {
		return err
	}
	b.small = b.world.Manifest(job)
	job.Args = []string{"loops"}
	b.loop = b.world.Manifest(job)
	if !withDemo {
		return nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	python, _, err := demo.Inputs(ctx, filepath.Join(cache, "ampoule"), b.std.say)
	if err != nil {
		return err
	}
	sealed, err := b.world.Seal(ctx, python, demo.AlgorithmKey) // the key that the job has already
	if err != nil {
		return err
	}
	if job.Algorithm, err = b.world.Push(ctx, sealed, "linear-regression"); err != nil {
		return err
	}
	job.Args = nil
	b.large = b.world.Manifest(job)
	return nil
}

func (b *bootBench) sizes() []bench.Format {
	kernel, initramfs := b.info.File(mkimage.KernelFile).Size, b.info.File(mkimage.InitramfsFile).Size
	return []bench.Format{
		{Name: "/init", Bytes: b.info.Init.Size}, {Name: "kernel", Bytes: kernel}, {Name: "initramfs", Bytes: initramfs},
		{Name: "kernel + initramfs", Bytes: kernel + initramfs}, {Name: "UKI", Bytes: b.info.File(mkimage.UKIFile).Size},
	}
}

// bootOptions are what differs from boot to boot. Zero values are the image as it is, with the small job.
type bootOptions struct {
	firmware, initrd string
	manifest         []byte
	memory           int    // MiB
	quiet            string // what stands in the place of quiet on the command line
	timeout          time.Duration
	console          bool // follow it
}

// A bootRun is one boot that came to its end.
type bootRun struct {
	report *qemu.Report
	log    *bench.KernelLog // with bootOptions.console
	stamps bench.Stamps
}

// boot runs a job. An error says that it did not succeed.
func (b *bootBench) boot(ctx context.Context, o bootOptions) (*bootRun, error) {
	shape := qemu.Shape{VCPUs: 1, MemoryMiB: cmp.Or(o.memory, 1024), Firmware: o.firmware}
	run := &bootRun{}
	cfg := imageConfig(b.image, b.info, shape)
	cfg.Dir, cfg.PSPDir = filepath.Join(b.out, "run"), defaultPSP()
	cfg.Timeout, cfg.Initrd = cmp.Or(o.timeout, 10*time.Minute), cmp.Or(o.initrd, cfg.Initrd)
	cfg.Manifest = b.small
	if o.manifest != nil {
		cfg.Manifest = o.manifest
	}
	if o.quiet != "" {
		cfg.Cmdline = strings.Replace(cfg.Cmdline, "quiet loglevel=3", o.quiet, 1)
	}
	cfg.HostData = manifest.InitdataDigest(manifest.Wrap(cfg.Manifest))
	m, err := cfg.Measurement()
	if err != nil {
		return nil, err
	}
	if err := b.world.Allow(m, cfg.Manifest, demo.AlgorithmKey, demo.DatasetKey); err != nil {
		return nil, err
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	followed := make(chan error, 1)
	if o.console {
		path := filepath.Join(cfg.Dir, qemu.ConsoleFile)
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
		go func() {
			var err error
			run.log, err = bench.FollowConsole(following, path)
			followed <- err
		}()
	} else {
		followed <- nil
	}
	run.report, err = qemu.Run(ctx, cfg)
	stop()
	if err := errors.Join(err, <-followed); err != nil {
		return nil, err
	}
	if err := outcomeError(run.report); err != nil {
		return nil, err
	}
	if bytes.Equal(cfg.Manifest, b.large) {
		return run, nil
	}
	run.stamps, err = b.stamps(run.report.ResultPath)
	return run, err
}

// stamps opens what the timed program wrote.
func (b *bootBench) stamps(path string) (s bench.Stamps, err error) {
	opened := filepath.Join(b.out, "opened")
	if err := os.RemoveAll(opened); err != nil {
		return s, err
	}
	if _, err := unsealTo(path, []age.Identity{b.world.Identity}, opened); err != nil {
		return s, err
	}
	wrote, err := os.ReadFile(filepath.Join(opened, result.StdoutName))
	if err != nil {
		return s, err
	}
	return bench.ParseStamps(wrote)
}

// times is where the time of a run went.
func (r *bootRun) times() (t bench.BootTime, err error) {
	us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
	var execute, outcome int64
	var others time.Duration
	for _, e := range r.report.Events {
		switch {
		case e.Event == result.OutcomeEvent:
			outcome = e.Time
		case e.Event != result.StepEvent:
		case e.State == result.Start && e.Step == "execute":
			execute = e.Time
		case e.State == result.Done:
			t.Steps = append(t.Steps, bench.StepTime{Name: e.Step, Wall: us(e.Micros), CPU: us(e.CPU)})
			if execute == 0 && !bench.Own(e.Step) {
				others += us(e.Micros)
			}
		}
	}
	if execute == 0 || outcome == 0 {
		return t, errors.New("the events do not say when the workload began and how it ended")
	}
	first := us(r.report.Events[0].Time)
	t.Firmware, t.Kernel = r.report.Zero.Sub(r.report.QEMUStart), first
	t.First, t.Total = r.stamps.First-us(execute), r.stamps.First-first
	t.Ours = t.Total - others
	t.Ending, t.Whole = r.report.Exited.Sub(r.report.Zero.Add(us(outcome))), r.report.Exited.Sub(r.report.QEMUStart)
	return t, nil
}

// kernel boots with initcall_debug.
func (b *bootBench) kernel(ctx context.Context, r *bench.BootReport, _ int) error {
	const boots, listed = 3, 10
	var logs []*bench.KernelLog
	var starts []time.Duration
	k := &r.Kernel
	k.Boots = boots
	for n := range boots {
		b.std.say("  boot %d/%d with initcall_debug", n+1, boots)
		run, err := b.boot(ctx, bootOptions{console: true, quiet: "ignore_loglevel initcall_debug log_buf_len=4M"})
		if err != nil {
			return fmt.Errorf("boot with initcall_debug: %w", err)
		}
		ran, ok := run.log.At("Run /init")
		begun, ok1 := run.log.At("Trying to unpack rootfs image")
		done, ok2 := run.log.At("Freeing initrd memory")
		spoke, ok3 := run.log.Between("Run /init", " mount ")
		t, err := run.times()
		if err != nil {
			return err
		}
		if !ok || !ok1 || !ok2 || !ok3 {
			return fmt.Errorf("boot with initcall_debug: %s does not say when the initramfs was unpacked and /init run", run.report.ConsolePath)
		}
		logs = append(logs, run.log)
		starts = append(starts, spoke-t.Steps[0].Wall) // its first line is written when the first step is over
		if n == 0 || ran < k.Run {
			k.Run = ran
		}
		if n == 0 || done-begun < k.Unpack {
			k.Unpack = done - begun
		}
	}
	k.Slowest, k.Initcall = bench.Slowest(logs, listed)
	r.CPU.Start = max(0, bench.Median(starts))
	r.CPU.Sum = r.CPU.Start + r.CPU.Steps
	return nil
}

// loops runs the same loops in the guest and here.
func (b *bootBench) loops(ctx context.Context, r *bench.BootReport, runs int) error {
	program := filepath.Join(b.out, "first")
	if err := os.WriteFile(program, bench.BootProgram(), 0o755); err != nil {
		return err
	}
	var guest, host []bench.Loops
	for range min(runs, 3) {
		run, err := b.boot(ctx, bootOptions{manifest: b.loop})
		if err != nil {
			return fmt.Errorf("loops in the guest: %w", err)
		}
		wrote, err := exec.CommandContext(ctx, program, "loops").Output()
		if err != nil {
			return fmt.Errorf("loops on this machine: %w", err)
		}
		here, err := bench.ParseStamps(wrote)
		if err != nil {
			return err
		}
		guest, host = append(guest, run.stamps.Loops), append(host, here.Loops)
	}
	r.CPU.Guest, r.CPU.Host = bench.MedianLoops(guest), bench.MedianLoops(host)
	return nil
}

// native times the start of /init outside a VM, as the stub of a sandbox that is given no spec: it ends as soon as it has begun. It is
// PID 1 of namespaces of its own, without a right on this machine, and sees an empty folder.
func (b *bootBench) native(ctx context.Context, r *bench.BootReport, _ int) error {
	const starts, stub, noSpec = 21, "ampoule-sandbox", 127
	root, err := os.MkdirTemp(b.out, "root")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	init, err := b.init()
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(root, 0o755), os.WriteFile(filepath.Join(root, "init"), init, 0o755)); err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	var all []time.Duration
	for range starts {
		cmd := exec.CommandContext(ctx, "/init")
		cmd.Args, cmd.Dir = []string{stub}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Chroot:     root,
			Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		}
		err := cmd.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != noSpec {
			b.std.say("bench: the start of /init is not timed outside a VM: %v", err) // not everybody may have namespaces
			return nil
		}
		all = append(all, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
	r.CPU.Native = bench.Median(all)
	return nil
}

var stubMetric = regexp.MustCompile(`\s(\d+) stub-ns`)

// sandbox has the workload package measure on this machine what it takes to make a sandbox.
func (b *bootBench) sandbox(ctx context.Context, r *bench.BootReport, _ int) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkSandbox$", "-benchtime", "50x", "./internal/workload")
	cmd.Dir = b.source
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	m := stubMetric.FindSubmatch(out)
	if m == nil {
		b.std.say("bench: the sandbox is not timed outside a VM, for this user may not make one")
		return nil
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	r.CPU.NativeStub = time.Duration(n)
	return err
}

// init is the program, out of the archive.
func (b *bootBench) init() (program []byte, err error) {
	err = cpio.ForEachRecord(cpio.Newc.Reader(bytes.NewReader(b.archive)), func(rec cpio.Record) error {
		if rec.Name == "init" {
			program = make([]byte, rec.FileSize)
			_, err := rec.ReadAt(program, 0)
			return err
		}
		return nil
	})
	if err == nil && program == nil {
		err = errors.New("the initramfs has no /init")
	}
	return program, err
}

// formats stores kernel and initramfs in other formats.
func (b *bootBench) formats(ctx context.Context, r *bench.BootReport, runs int) error {
	image, err := os.ReadFile(filepath.Join(b.image, mkimage.KernelFile))
	if err != nil {
		return err
	}
	kernel, err := bench.KernelProgram(image)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name    string
		content []byte
	}{{"The kernel's program", kernel}, {"The initramfs", b.archive}} {
		b.std.say("  %s in other formats", strings.ToLower(c.name))
		f, err := bench.Formats(ctx, c.content, runs)
		if err != nil {
			return err
		}
		r.Formats = append(r.Formats, bench.FormatTable{Content: c.name, Formats: f})
	}
	return nil
}

// memory finds the smallest machines, by bisection to within 4 MiB.
func (b *bootBench) memory(ctx context.Context, r *bench.BootReport) error {
	const most, grain = 512, 4
	for _, name := range []string{"SeaBIOS", "OVMF"} {
		firmware, ok := firmwares()[name]
		if !ok {
			continue
		}
		for _, job := range []struct {
			name     string
			manifest []byte
		}{{"a program of 400 bytes", b.small}, {"the demo's Python", b.large}} {
			limit := 2 * time.Minute // a machine that hangs is not known from one that is slow
			works := func(mib int) (bool, error) {
				start := time.Now()
				_, err := b.boot(ctx, bootOptions{firmware: firmware, manifest: job.manifest, memory: mib, timeout: limit})
				b.std.say("  %s, %s, %d MiB: %t", name, job.name, mib, err == nil)
				if err == nil {
					limit = 3*time.Since(start) + 10*time.Second
				}
				return err == nil, ctx.Err()
			}
			least, fails, err := bench.Bisect(qemu.LeastMemory, most, grain, works)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", name, job.name, err)
			}
			r.Memory = append(r.Memory, bench.LeastMemory{Firmware: name, Job: job.name, Works: least, Fails: fails})
		}
	}
	return nil
}
