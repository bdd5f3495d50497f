package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ampoule-vm/ampoule/internal/bench"
	"github.com/ampoule-vm/ampoule/qemu"
)

const benchBootHelp = `
usage: ampoule bench boot [--runs N] [--memory] [--out DIR] [--json] [--update FILE]

Boots a simulation image N times under each firmware with a job that is as small as can be, and prints where the time
goes, as medians: QEMU, firmware, kernel, each step of PID 1 with its processor time, the first instruction of the
workload, power-off. The workload is a program of 400 bytes that says what the clock showed at its first instruction; it
and a dataset are encrypted, and their keys come from a broker, as in the demo.

Further it tells:
  - the slowest parts of the kernel's start, from boots with initcall_debug;
  - the processor time that PID 1 needs until the workload begins, its waiting for others left out, and an estimate of the
    same on this machine's processor outside emulation: by what the sandbox's stub takes in the guest and here, where this
    user may make sandboxes (go test -bench Sandbox ./internal/workload), and else by the least of what three loops take
    (arithmetic, system calls, new pages);
  - what kernel and initramfs would take in other formats, and how long C programs need to unpack them here;
  - with --memory, the smallest machine in which the job succeeds, by bisection, and also the demo's job in Python.

The accelerator is KVM where that works, and else emulation. --update writes the report into FILE, between the two marks
that it has.

Examples:
  ampoule bench boot
  ampoule bench boot --runs 7 --memory --update docs/PERFORMANCE.md`

func benchBootVerb(ctx context.Context, args []string, std stdio) (err error) {
	fs := flags("bench boot", benchBootHelp, std)
	runs := fs.Int("runs", 5, "how many boots of each machine")
	memory := fs.Bool("memory", false, "also find the smallest memory; takes some minutes more")
	out := fs.String("out", "out/bench-boot", "folder for everything")
	source := fs.String("source", ".", "folder of Ampoule's own source")
	asJSON := fs.Bool("json", false, "print all figures as JSON")
	document := fs.String("update", "", "document to write the report into")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if *runs < 1 {
		return usagef("--runs %d: want at least 1", *runs)
	}
	r := &bench.BootReport{Machine: bench.ThisMachine(), Load: bench.Load(), CPU: bench.CPUTimes{Limit: bench.CPULimit}}
	b, err := newBootBench(ctx, *out, *source, *memory, std)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.world.Close()) }()
	r.Accel = string(qemu.Probe(ctx, ""))
	r.Sizes = b.sizes()
	for _, do := range []func(context.Context, *bench.BootReport, int) error{b.series, b.kernel, b.loops, b.native, b.sandbox, b.formats} {
		if err := do(ctx, r, *runs); err != nil {
			return err
		}
	}
	if *memory {
		if err := b.memory(ctx, r); err != nil {
			return err
		}
	}
	if *document != "" {
		if err := r.Update(*document); err != nil {
			return err
		}
	}
	if *asJSON {
		return std.json(r)
	}
	_, err = io.WriteString(std.out, r.Text())
	return err
}

// firmwares are SeaBIOS, and OVMF where this machine has it.
func firmwares() map[string]string {
	all := map[string]string{"SeaBIOS": ""}
	if _, err := os.Stat(ovmf); err == nil {
		all["OVMF"] = ovmf
	}
	return all
}

// series boots each machine, in turn, so that all see the same weather.
func (b *bootBench) series(ctx context.Context, r *bench.BootReport, runs int) error {
	plain := filepath.Join(b.out, "initramfs.cpio")
	if err := os.WriteFile(plain, b.archive, 0o644); err != nil {
		return err
	}
	type machine struct{ name, firmware, initrd string }
	machines := []machine{{"SeaBIOS", "", ""}, {"SeaBIOS, initramfs not compressed", "", plain}}
	if path, ok := firmwares()["OVMF"]; ok {
		machines = append(machines, machine{"OVMF", path, ""})
	}
	for _, m := range machines {
		r.Boots = append(r.Boots, bench.BootSeries{Name: m.name})
	}
	var stubs []time.Duration
	for n := range runs {
		for i, m := range machines {
			b.std.say("  boot %d/%d under %s", n+1, runs, m.name)
			run, err := b.boot(ctx, bootOptions{firmware: m.firmware, initrd: m.initrd})
			if err != nil {
				return fmt.Errorf("%s, run %d: %w", m.name, n+1, err)
			}
			t, err := run.times()
			if err != nil {
				return fmt.Errorf("%s, run %d: %w", m.name, n+1, err)
			}
			r.Boots[i].Runs = append(r.Boots[i].Runs, t)
			stubs = append(stubs, run.stamps.CPU)
		}
	}
	for i := range r.Boots {
		r.Boots[i].Median = bench.MedianBoot(r.Boots[i].Runs)
	}
	r.CPU.GuestStub = bench.Median(stubs)
	for _, s := range r.Boots[0].Median.Steps {
		if bench.Own(s.Name) {
			r.CPU.Steps += s.CPU
		}
	}
	return nil
}
