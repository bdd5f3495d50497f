package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/timeline"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

const runHelp = `
usage: ampoule run --image DIR --manifest FILE --out DIR [flags]

Starts the image in a VM under QEMU, hands it the manifest (bound through HOST_DATA or MRCONFIGID), follows it, and
keeps result.tar.zst.age, receipt.json, events.ndjson and console.log in --out. The registry and the key broker that the
manifest names are reached over QEMU's user network, where this machine's loopback is 10.0.2.2.
With --dry-run nothing starts: the launch measurement and the manifest's initdata digest, which are what a key
broker's policy names, are printed.
With --broker-log the embedded broker's answer is explained when it refuses: what it expected, and what the guest has.
A folder holds one run of one computation (computation_id, or a manifest without one) and run.json says which. To run what
has finished there prints what it came to, with the same exit status, and starts nothing; what broke off, or is another
computation's, is refused. --again replaces it. What had arrived of a result when a VM ended is kept with .partial at the
end of its name. At the end a table says where the time went; --trace writes it for ui.perfetto.dev.
Simulation images get a simulated secure processor; --out/test-root.pem is its root, for ampoule verify and kbs.
Production images run on SEV-SNP or TDX hardware, with KVM, a firmware for it (--firmware) and QEMU 10 (SEV-SNP) or 10.1
(TDX). --dry-run then prints QEMU's command line; ampoule doctor tells what a machine lacks.

With --boot disk the image is started as in a cloud; nothing but the measurement of a simulated TEE differs.
With --swap the VM gets a disk, which is a sparse file in --out while it runs, for images larger than its memory.

Examples:
  ampoule run --image out/simulation --manifest job.json --out out/job --dry-run
  ampoule run --image out/simulation --manifest job.json --out out/job
  ampoule run --image out/simulation --manifest job.json --out out/job --firmware "" --json
  ampoule run --image out/simulation --manifest job.json --out out/job --boot disk
  ampoule run --image out/production --manifest job.json --out out/job --tee snp --firmware OVMF.amdsev.fd`

// ovmf is where Debian's package ovmf has the firmware.
const ovmf = "/usr/share/ovmf/OVMF.fd"

func runVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("run", runHelp, std)
	image := fs.String("image", "", "folder that ampoule build made")
	file := fs.String("manifest", "", "manifest, - for standard input")
	out := fs.String("out", "", "folder for what comes back")
	pspDir := fs.String("psp", defaultPSP(), "folder of the simulated secure processor")
	var shape qemu.Shape
	fs.IntVar(&shape.VCPUs, "vcpus", 1, "virtual CPUs")
	fs.IntVar(&shape.MemoryMiB, "memory", 1024, "memory, MiB")
	fs.StringVar(&shape.Firmware, "firmware", ovmf, "OVMF image; empty for the SeaBIOS that QEMU brings")
	swap := fs.Int("swap", 0, "size of a disk for the VM's encrypted swap, MiB, for an image that was built with --swap")
	timeout := fs.Duration("timeout", time.Hour, "hard limit for the VM")
	kind := fs.String("tee", string(evidence.SNP), "TEE to run in, or with a simulation image to simulate: snp or tdx")
	boot := fs.String("boot", bootKernel, "kernel: QEMU loads it, with initramfs and command line; disk: firmware starts ampoule.efi from disk.raw")
	tee := newTEEFlags(fs)
	var to runFlags
	fs.BoolVar(&to.dry, "dry-run", false, "print what a policy has to allow, and start nothing")
	fs.StringVar(&to.brokerLog, "broker-log", "", "what ampoule kbs --audit writes, to say why it refused")
	fs.BoolVar(&to.again, "again", false, "replace the run that --out holds")
	fs.StringVar(&to.trace, "trace", "", "file for the run's times, in Chrome's Trace Event Format")
	fs.BoolVar(&to.asJSON, "json", false, "print the outcome as JSON")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if err := required(fs, "image", "manifest", "out"); err != nil {
		return err
	}
	if *kind != string(evidence.SNP) && *kind != string(evidence.TDX) {
		return usagef("--tee %q: want snp or tdx", *kind)
	}
	info, err := mkimage.Load(*image)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--image %s: no image is there (%w); make one with ampoule build --profile simulation --net dhcp --out %s", *image, err, *image)
	}
	if err != nil {
		return fmt.Errorf("--image: %w", err)
	}
	simulated := info.Profile == cmdline.Simulation
	if simulated && tee.given() {
		return usagef("--cpu, --qgs, --id-block and --id-auth: are for hardware, and %s is a simulation image", *image)
	}
	if err := haveFirmware(shape.Firmware); err != nil {
		return err
	}
	raw, err := std.readFile(*file, manifest.MaxSize)
	if err != nil {
		return err
	}
	o, err := cmdline.Parse(info.Cmdline)
	if err != nil {
		return err
	}
	if err := checkSwap(*swap, o.Swap, *image); err != nil {
		return err
	}
	doc, err := manifest.Parse(raw, o.Allow.Has)
	if err == nil {
		err = errors.Join(checkPolicy(doc), checkKind(doc, info), checkResults(doc, o.Allow.Has(cmdline.AllowHTTP)))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", *file, err)
	}
	cfg := imageConfig(*image, info, shape)
	cfg.Simulated = simulated
	if err := bootFrom(*boot, &cfg, *image, info); err != nil {
		return err
	}
	cfg.Dir, cfg.Manifest, cfg.HostData, cfg.PSPDir, cfg.Timeout = *out, raw, manifest.InitdataDigest(manifest.Wrap(raw)), *pspDir, *timeout
	cfg.SwapMiB, cfg.SwapDisk = *swap, o.Swap
	if !simulated {
		if cfg.Hardware, err = tee.hardware(evidence.Kind(*kind), std); err != nil {
			return err
		}
		return runOn(ctx, cfg, doc, runFacts{Initdata: fmt.Sprintf("%x", cfg.HostData)}, to, std)
	}
	cfg.TEE = evidence.Kind(*kind)
	chip, err := psp.New(*pspDir)
	if err != nil {
		return fmt.Errorf("--psp: %w", err)
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	if err := std.write(filepath.Join(*out, "test-root.pem"), testRoot(chip, cfg.TEE)); err != nil {
		return err
	}
	facts := runFacts{Initdata: fmt.Sprintf("%x", cfg.HostData)}
	if facts.Measurement, err = cfg.Measurement(); err != nil {
		return err
	}
	return runOn(ctx, cfg, doc, facts, to, std)
}

// runFlags are what only runOn needs to know.
type runFlags struct {
	dry, again, asJSON bool
	brokerLog, trace   string
}

// runOn launches what has been prepared, or says what a policy has to allow for it.
func runOn(ctx context.Context, cfg qemu.Config, doc *manifest.Manifest, facts runFacts, to runFlags, std stdio) error {
	if to.dry && cfg.Hardware != nil {
		return launched(std, cfg, facts, to.asJSON)
	}
	if to.dry {
		if to.asJSON {
			return std.json(facts)
		}
		_, err := fmt.Fprintf(std.out, "measurement     %s\ninitdata-sha256 %s\n", facts.Measurement, facts.Initdata)
		return err
	}
	broker, err := openBrokerLog(to.brokerLog)
	if err != nil {
		return err
	}
	folder, done, err := claimFolder(cfg.Dir, doc, facts.Measurement, to.again)
	if err != nil {
		return err
	}
	if done != nil {
		return std.earlier(done, cfg.Dir, to.asJSON)
	}
	defer folder.close()
	if err := folder.begin(); err != nil {
		return err
	}
	f := follow(std, doc)
	cfg.OnEvent = f.event
	report, err := qemu.Run(ctx, cfg)
	f.close()
	if report == nil {
		return errors.Join(err, folder.undo())
	}
	facts.take(report)
	err = errors.Join(err, folder.finish(facts))
	if to.trace != "" {
		err = errors.Join(err, std.writeTrace(to.trace, runOf(report)))
	}
	if err != nil {
		return err
	}
	if cfg.Simulated {
		if err := completeSimulated(std, report.ReceiptPath, cfg.PSPDir, cfg.TEE); err != nil {
			std.say("%v", err)
		}
	}
	if o := report.Outcome; broker != nil && o != nil && o.Reason == result.Denied {
		if facts.Denials, err = broker.denials(); err != nil {
			std.say("%v", err)
		}
		for _, d := range facts.Denials {
			std.say("%s", explain(d, facts))
		}
	}
	for _, p := range report.Partial {
		std.say("kept what came of %s before it broke off", p)
	}
	if to.asJSON {
		if err := std.json(facts); err != nil {
			return err
		}
	} else if _, err := fmt.Fprint(std.out, runOf(report).Table()); err != nil {
		return err
	}
	if report.LogPath != "" {
		std.say("not every sink took the result; which and why is in the owner's log, %s (ampoule open)", report.LogPath)
	}
	return outcomeError(report)
}

// earlier prints what a run that has finished before came to, and ends as it did.
func (s stdio) earlier(f *runFacts, out string, asJSON bool) error {
	s.say("this computation has run in %s already and ended with %s; nothing was started (--again runs it anew)", out, f.Outcome.Reason)
	if asJSON {
		if err := s.json(f); err != nil {
			return err
		}
	}
	return outcomeError(&qemu.Report{Outcome: f.Outcome, ResultPath: f.Result, ReceiptPath: f.Receipt, LogPath: f.Log, ConsolePath: f.Console, Command: f.Command})
}

// checkSwap holds the size of a disk, MiB, against what the image's command line says of one: both or neither.
func checkSwap(mib int, disk, image string) error {
	const most = 1 << 24
	switch {
	case mib < 0 || mib > most:
		return usagef("--swap %d: want 0 to %d MiB", mib, most)
	case mib > 0 && disk == "":
		return fmt.Errorf("--swap %d: the command line of --image %s names no disk for it; build with --swap vda", mib, image)
	case mib == 0 && disk != "":
		return fmt.Errorf("--image %s swaps to %s: say with --swap how many MiB that disk is to have", image, disk)
	}
	return nil
}

// testRoot is the root of what the simulated processor plays.
func testRoot(chip *psp.PSP, kind evidence.Kind) []byte {
	if kind == evidence.TDX {
		return chip.TDXRootPEM()
	}
	return chip.RootPEM()
}

// runFacts is what run prints as JSON. A dry run has the first two alone.
type runFacts struct {
	Measurement evidence.Measurement `json:"measurement,omitzero"` // that the simulated processor will sign
	Predicted   *measure.Prediction  `json:"predicted,omitempty"`  // on hardware
	Initdata    string               `json:"initdata_sha256"`
	Outcome     *result.Event        `json:"outcome,omitempty"`
	Result      string               `json:"result,omitempty"`
	Receipt     string               `json:"receipt,omitempty"`
	Log         string               `json:"log,omitempty"` // of a run whose result did not go everywhere
	Console     string               `json:"console,omitempty"`
	Command     string               `json:"command,omitempty"`
	Partial     []string             `json:"partial,omitempty"` // what came of an artefact that broke off
	Timeline    []timeline.Span      `json:"timeline,omitempty"`
	Earlier     bool                 `json:"earlier,omitempty"` // all this is of a run before, and nothing was started
	Denials     []kbsserver.Decision `json:"denials,omitempty"` // by the embedded broker, with --broker-log
}

func (f *runFacts) take(r *qemu.Report) {
	f.Outcome, f.Result, f.Receipt, f.Log, f.Partial = r.Outcome, r.ResultPath, r.ReceiptPath, r.LogPath, r.Partial
	f.Console, f.Command, f.Timeline = r.ConsolePath, r.Command, runOf(r).Spans()
}

// haveFirmware refuses a missing image before anything that takes long.
func haveFirmware(path string) error {
	if path == "" {
		return nil
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("firmware: %w; on Debian apt install ovmf, or boot with the firmware that QEMU brings: ampoule run --firmware ''", err)
	}
	return nil
}

// imageConfig is how a simulation image is launched.
func imageConfig(dir string, info *mkimage.Info, shape qemu.Shape) qemu.Config {
	return qemu.Config{
		Shape: shape, Simulated: true, UserNet: true,
		Kernel: filepath.Join(dir, mkimage.KernelFile), Initrd: filepath.Join(dir, mkimage.InitramfsFile), Cmdline: info.Cmdline,
	}
}

func defaultPSP() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "ampoule", "psp")
}

// outcomeError turns how a VM ended into an exit code and a sentence with the next step.
func outcomeError(r *qemu.Report) error {
	if r.Outcome == nil {
		return &exitError{5, fmt.Errorf("the VM never reported an outcome (%s); its console is %s. Start it again with:\n%s", r.End, r.ConsolePath, r.Command)}
	}
	o := *r.Outcome
	if o.Reason == result.OK {
		return nil
	}
	text := fmt.Sprintf("the run ended with %s", o.Reason)
	if o.Step != "" {
		text += " in step " + o.Step
	}
	if o.Exit != nil && o.Reason == result.Workload {
		text = fmt.Sprintf("the workload exited with status %d", *o.Exit)
	}
	if r.ResultPath == "" && r.LogPath != "" {
		text += "; the owner's log is in " + r.LogPath + " (ampoule open)"
	} else if r.ResultPath != "" {
		text += "; the owner's log is in " + r.ResultPath + " (ampoule open)"
	} else {
		text += "; it sent no log for the owner; its console is " + r.ConsolePath
	}
	return &exitError{o.ExitCode(), errors.New(text)}
}
