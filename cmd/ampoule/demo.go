package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

const demoHelp = `
usage: ampoule demo [--out DIR] [--workload oci|bin|python|wasm]

One sealed run on this machine: builds a simulation image, starts a registry and a key broker on loopback, encrypts
an algorithm (linear regression in Python) and a dataset under keys of their own, lets the broker release them to
this measurement with this manifest only, boots the VM, and opens and verifies what comes back. Everything stays in
--out. Only the secure processor is simulated.
With --workload the same regression runs as another kind: bin is a static Go program, python the script with its interpreter
in a second image, wasm the Go program as a WASI module, in an image that is built with the runtime for it.

Example:
  ampoule demo --out out/demo
  ampoule demo --out out/demo-wasm --workload wasm`

func demoVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("demo", demoHelp, std)
	out := fs.String("out", "out/demo", "folder for everything")
	source := fs.String("source", ".", "folder of Ampoule's own source")
	kind := fs.String("workload", "oci", "kind of the algorithm: "+strings.Join(manifest.Kinds, ", "))
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if !slices.Contains(manifest.Kinds, *kind) {
		return usagef("--workload %q: want one of %s", *kind, strings.Join(manifest.Kinds, ", "))
	}
	if err := haveFirmware(ovmf); err != nil {
		return err
	}
	d, err := newDemo(ctx, *out, *source, *kind, std)
	if err != nil {
		return err
	}
	std.say("4. Boot the VM under %s", filepath.Base(ovmf))
	doc, err := manifest.Parse(d.manifest, func(string) bool { return true })
	if err != nil {
		return errors.Join(err, d.world.Close())
	}
	f := follow(std, doc)
	report, err := d.run(ctx, qemu.Shape{VCPUs: 1, MemoryMiB: 1024, Firmware: ovmf}, *out, f.event)
	f.close()
	if err != nil {
		return errors.Join(err, d.world.Close())
	}
	if err := d.world.Close(); err != nil {
		return err
	}
	if err := outcomeError(report); err != nil {
		return err
	}
	return d.show(*out, report, std)
}

// A demoRun is an image, a world around it, and a manifest that the world's broker allows.
type demoRun struct {
	image    string
	info     *mkimage.Info
	world    *demo.World
	psp      string
	manifest []byte
	images   []string // references by digest, as the VM has them
}

func newDemo(ctx context.Context, out, source, kind string, std stdio) (*demoRun, error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	d := &demoRun{image: filepath.Join(out, "image"), psp: defaultPSP()}
	std.say("1. Build the simulation image")
	var with []string
	if slices.Contains(mkimage.Helpers(), kind) {
		with = []string{kind}
	}
	d.info, err = mkimage.Build(ctx, mkimage.Options{
		Profile: cmdline.Simulation, Out: d.image, SourceDir: source, Net: "dhcp", With: with,
		KernelSource: os.Getenv("KERNEL_SOURCE"), Progress: std.err,
	})
	if err != nil {
		return nil, err
	}
	std.say("2. Start a registry and a key broker on loopback")
	if d.world, err = demo.NewWorld(ctx, out, d.psp, nil); err != nil {
		return nil, err
	}
	std.say("3. Encrypt the algorithm and the dataset, each under its own key")
	if err := d.publish(ctx, out, source, kind, filepath.Join(cache, "ampoule"), std); err != nil {
		return nil, errors.Join(err, d.world.Close())
	}
	return d, nil
}

// publish puts the images into the registry, and what a person needs to look at the run into out.
func (d *demoRun) publish(ctx context.Context, out, source, kind, cache string, std stdio) error {
	algo, runtime, err := demo.OfKind(ctx, kind, source, cache, std.say)
	if err != nil {
		return fmt.Errorf("algorithm image: %w", err)
	}
	data, err := demo.Image(map[string]string{"houses.csv": string(demo.Dataset())}, v1.Config{})
	if err != nil {
		return err
	}
	job := demo.Job{Kind: kind}
	if runtime != nil {
		if job.Runtime, err = d.world.Push(ctx, runtime, "python"); err != nil {
			return err
		}
	}
	if job.Algorithm, err = d.world.Publish(ctx, algo, "linear-regression", demo.AlgorithmKey); err != nil {
		return err
	}
	if job.Dataset, err = d.world.Publish(ctx, data, "houses", demo.DatasetKey); err != nil {
		return err
	}
	d.images = []string{job.Algorithm, job.Dataset}
	d.manifest = d.world.Manifest(job)
	files := map[string][]byte{
		"manifest.json": d.manifest,
		"recipient.key": []byte(d.world.Identity.String() + "\n"),
		"test-root.pem": d.world.PSP.RootPEM(),
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(out, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// run boots the image once with the demo's manifest; the broker allows just that.
func (d *demoRun) run(ctx context.Context, shape qemu.Shape, out string, onEvent func(result.Event)) (*qemu.Report, error) {
	cfg := imageConfig(d.image, d.info, shape)
	cfg.Dir, cfg.Manifest, cfg.PSPDir, cfg.Timeout, cfg.OnEvent = out, d.manifest, d.psp, 10*time.Minute, onEvent
	cfg.HostData = manifest.InitdataDigest(manifest.Wrap(d.manifest))
	m, err := cfg.Measurement()
	if err != nil {
		return nil, err
	}
	if err := d.world.Allow(m, d.manifest, demo.AlgorithmKey, demo.DatasetKey); err != nil {
		return nil, err
	}
	return qemu.Run(ctx, cfg)
}

// show opens the result, verifies the receipt and prints both.
func (d *demoRun) show(out string, report *qemu.Report, std stdio) error {
	std.say("5. Open the sealed result and verify the receipt")
	opened := filepath.Join(out, "opened")
	if err := os.RemoveAll(opened); err != nil {
		return err
	}
	if err := openResult(std, report.ResultPath, filepath.Join(out, "recipient.key"), opened); err != nil {
		return err
	}
	fit, err := os.ReadFile(filepath.Join(opened, result.ResultsDir, "coefficients.json"))
	if err != nil {
		return err
	}
	if err := completeSimulated(std, report.ReceiptPath, d.psp, evidence.SNP); err != nil {
		return err
	}
	receipt, err := std.readFile(report.ReceiptPath, result.MaxReceipt)
	if err != nil {
		return err
	}
	root, err := verify.LoadRoot(d.world.PSP.RootPEM())
	if err != nil {
		return err
	}
	sum, err := hashFile(report.ResultPath)
	if err != nil {
		return err
	}
	v, err := verify.Receipt(receipt, verify.Expect{
		Roots: []verify.Root{root}, Measurements: []evidence.Measurement{report.Measurement}, Manifest: d.manifest, ResultSHA256: sum,
	})
	if err != nil {
		return &exitError{3, err}
	}
	fmt.Fprintf(std.out, "\nresults/coefficients.json\n%s\nreceipt\n%s\ntimeline\n%s(%s)\n", fit, v.Text(), runOf(report).Table(), report.Accel)
	std.say("\nEverything is in %s.", out)
	return nil
}
