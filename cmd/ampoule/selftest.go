package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/doctor"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

const selftestHelp = `
usage: ampoule selftest --image DIR [--tee snp|tdx] [--firmware FILE] [flags]

Goes through a checklist with an image (built with --net dhcp), on this machine: examines what it needs, runs a small
encrypted job against a registry and a key broker of its own (both over TLS, on loopback), opens the result and verifies
the receipt; then launches with another manifest than the one sent, and with another command line, both of which must get
no key. A production image runs on SEV-SNP or TDX hardware; a simulation image anywhere.
The job is this very program, which must be static (CGO_ENABLED=0).

--certs and --collateral are what ampoule kbs takes: certificates of the processor for hosts that give their guests none,
and Intel's answers about the platform.

Examples:
  ampoule selftest --image out/simulation
  ampoule selftest --image out/production --tee snp --firmware OVMF.amdsev.fd`

// A selfCheck is one line of the checklist.
type selfCheck struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Detail  string  `json:"detail,omitempty"` // why not
	Seconds float64 `json:"seconds"`
}

// A selftest is the checklist of one image.
type selftest struct {
	std      stdio
	image    string
	info     *mkimage.Info
	shape    qemu.Shape
	tee      evidence.Kind
	hardware *qemu.TEE // nil: simulated
	out      string
	psp      string // folder of the simulated processor
	roots    []verify.Root
	intel    []*x509.Certificate // nil: Intel's
	broker   kbsserver.Config

	world    *demo.World
	manifest []byte
	want     string // what the job prints
	report   *qemu.Report
	measures []evidence.Measurement

	checks []selfCheck
}

func selftestVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("selftest", selftestHelp, std)
	t := selftest{std: std}
	fs.StringVar(&t.image, "image", "", "folder that ampoule build made")
	fs.StringVar(&t.out, "out", "out/selftest", "folder for everything")
	fs.StringVar(&t.shape.Firmware, "firmware", ovmf, "OVMF image")
	fs.IntVar(&t.shape.VCPUs, "vcpus", 1, "virtual CPUs")
	fs.IntVar(&t.shape.MemoryMiB, "memory", 1024, "memory, MiB")
	kind := fs.String("tee", string(evidence.SNP), "TEE to run in, or to simulate: snp or tdx")
	tee := newTEEFlags(fs)
	var judge broker
	fs.StringVar(&judge.certs, "certs", "", "folder with VCEK and VLEK certificates")
	fs.StringVar(&judge.collateral, "collateral", "", "folder with Intel's answers about platforms")
	pspDir := fs.String("psp", defaultPSP(), "folder of the simulated secure processor")
	asJSON := fs.Bool("json", false, "print the checklist as JSON")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if err := required(fs, "image"); err != nil {
		return err
	}
	t.tee = evidence.Kind(*kind)
	if t.tee != evidence.SNP && t.tee != evidence.TDX {
		return usagef("--tee %q: want snp or tdx", *kind)
	}
	var err error
	if t.info, err = mkimage.Load(t.image); err != nil {
		return fmt.Errorf("--image: %w", err)
	}
	if err := judge.judges(); err != nil {
		return err
	}
	t.broker = judge.conf
	if t.info.Profile == cmdline.Simulation {
		if err := t.simulate(*pspDir); err != nil {
			return err
		}
	} else if t.hardware, err = tee.hardware(t.tee, std); err != nil {
		return err
	}
	err = t.run(ctx)
	if *asJSON {
		err = errors.Join(err, std.json(t.checks))
	}
	return err
}

func (t *selftest) simulate(dir string) (err error) {
	t.psp = dir
	chip, err := psp.New(dir)
	if err != nil {
		return fmt.Errorf("--psp: %w", err)
	}
	root, err := verify.LoadRoot(chip.RootPEM())
	if err != nil {
		return err
	}
	if t.intel, err = verify.LoadIntelRoot(chip.TDXRootPEM()); err != nil {
		return err
	}
	t.roots = []verify.Root{root}
	t.broker.Roots, t.broker.Intel = t.roots, t.intel
	return nil
}

// run goes through the list. What needs what has failed is not tried.
func (t *selftest) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(t.out, 0o755); err != nil {
		return err
	}
	if t.world, err = demo.NewTLSWorld(ctx, t.out, t.broker); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.world.Close()) }()
	type line struct {
		name string
		do   func(context.Context) error
	}
	last := []line{
		{"the result opens, and is right", t.opens},
		{"the receipt proves it", t.proves},
		{"a launch for another manifest is refused by the guest", t.otherManifest},
	}
	if t.hardware == nil || t.tee == evidence.SNP {
		last = append(last, line{"another command line gets no key", t.otherCmdline})
	} else {
		t.std.say("not checked: another command line. TDX has it in RTMR2, and the broker here judges MRTD alone; a policy of ampoule policy judges both")
	}
	for _, group := range [][]line{
		{{"machine, firmware and image are in order", t.examine}},
		{{"the launch is predicted, a job is encrypted and published", t.prepare}},
		{{"the job runs, and its result comes back", t.job}},
		last,
	} {
		failed := 0
		for _, c := range group {
			start := time.Now()
			err := c.do(ctx)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			check := selfCheck{Name: c.name, OK: err == nil, Seconds: time.Since(start).Round(time.Millisecond).Seconds()}
			mark := "ok    "
			if err != nil {
				check.Detail, mark = err.Error(), "FAILED"
				failed++
			}
			t.checks = append(t.checks, check)
			t.std.say("%s %-60s %6.1f s", mark, c.name, check.Seconds)
			if err != nil {
				t.std.say("       %v", err)
			}
		}
		if failed > 0 {
			return fmt.Errorf("selftest: failed: %d; everything is in %s", failed, t.out)
		}
	}
	return nil
}

func (t *selftest) examine(ctx context.Context) error {
	var r doctor.Report
	want := t.tee
	if t.hardware == nil {
		want = ""
	}
	host := doctor.Host{Root: "/", QEMU: qemu.DefaultBinary, KVMWorks: func(ctx context.Context) bool { return qemu.Probe(ctx, "") == qemu.KVM }}
	host.Examine(ctx, &r, want)
	if t.shape.Firmware != "" {
		b, err := t.std.readFile(t.shape.Firmware, 64<<20)
		if err != nil {
			return err
		}
		doctor.Firmware(&r, b, want)
	}
	doctor.Image(&r, t.image)
	if r.Bad() > 0 {
		return fmt.Errorf("ampoule doctor says:\n%s", r.Text())
	}
	return nil
}

// prepare encrypts this program and a dataset, each under a key of its own, and has the broker keep them for this launch.
func (t *selftest) prepare(ctx context.Context) error {
	program, err := t.self()
	if err != nil {
		return err
	}
	data := fmt.Sprintf(`{"version": 1, "algorithm": {"uri": "docker://example.test/algorithm@sha256:%s"}}`, strings.Repeat("5", 64))
	var want bytes.Buffer
	file := filepath.Join(t.out, "dataset.json")
	if err := os.WriteFile(file, []byte(data), 0o644); err != nil {
		return err
	}
	if err := manifestVerb(ctx, []string{"digest", file}, stdio{t.std.in, &want, io.Discard}); err != nil {
		return err
	}
	t.want = want.String()
	algorithm, err := demo.Image(map[string]string{"ampoule": program}, v1.Config{
		Entrypoint: []string{"/ampoule", "manifest", "digest", "/cocos/datasets/dataset.json"}, WorkingDir: "/cocos", User: "1000",
	})
	if err != nil {
		return err
	}
	dataset, err := demo.Image(map[string]string{"dataset.json": data}, v1.Config{})
	if err != nil {
		return err
	}
	var job demo.Job
	if job.Algorithm, err = t.world.Publish(ctx, algorithm, "selftest", demo.AlgorithmKey); err != nil {
		return err
	}
	if job.Dataset, err = t.world.Publish(ctx, dataset, "dataset", demo.DatasetKey); err != nil {
		return err
	}
	t.manifest = t.world.Manifest(job)
	if t.measures, err = t.predict(); err != nil {
		return err
	}
	return t.world.AllowAny(t.measures, t.manifest, demo.AlgorithmKey, demo.DatasetKey)
}

// self is this program, which has to run where there is nothing else.
func (t *selftest) self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return "", fmt.Errorf("%s needs shared libraries, and the job has none; build it with CGO_ENABLED=0 go build ./cmd/ampoule", path)
	}
	return string(b), nil
}

// config is a launch of the image with the manifest.
func (t *selftest) config(name string) qemu.Config {
	cfg := imageConfig(t.image, t.info, t.shape)
	cfg.Dir, cfg.Manifest, cfg.Timeout = filepath.Join(t.out, name), t.manifest, 10*time.Minute
	cfg.HostData = manifest.InitdataDigest(manifest.Wrap(t.manifest))
	if cfg.Hardware = t.hardware; t.hardware != nil {
		cfg.Simulated = false
		return cfg
	}
	cfg.PSPDir, cfg.TEE = t.psp, t.tee
	return cfg
}

// predict is what the launch can measure to.
func (t *selftest) predict() ([]evidence.Measurement, error) {
	cfg := t.config("job")
	if t.hardware == nil {
		m, err := cfg.Measurement()
		return []evidence.Measurement{m}, err
	}
	s := measure.Shape{Name: "selftest", TEE: measure.TEE(t.tee), VMM: measure.OnQEMU, VCPUs: t.shape.VCPUs, CPU: t.hardware.CPU, Memory: t.shape.MemoryMiB, Firmware: t.shape.Firmware}
	if t.tee == evidence.SNP && s.CPU == "" {
		s.CPU = qemu.DefaultSNPCPU
	}
	files := measure.Files{Cmdline: t.info.Cmdline}
	var firmware []byte
	for _, f := range []struct {
		to   *[]byte
		path string
	}{{&files.Kernel, cfg.Kernel}, {&files.Initrd, cfg.Initrd}, {&firmware, t.shape.Firmware}} {
		var err error
		if *f.to, err = os.ReadFile(f.path); err != nil {
			return nil, err
		}
	}
	p, err := measure.Predict(s, files, firmware)
	if err != nil {
		return nil, err
	}
	return p.Measurements, nil
}

func (t *selftest) job(ctx context.Context) (err error) {
	if t.report, err = qemu.Run(ctx, t.config("job")); err != nil {
		return err
	}
	return outcomeError(t.report)
}

func (t *selftest) opens(context.Context) error {
	key, opened := filepath.Join(t.out, "recipient.key"), filepath.Join(t.out, "opened")
	if err := errors.Join(os.WriteFile(key, []byte(t.world.Identity.String()+"\n"), 0o600), os.RemoveAll(opened)); err != nil {
		return err
	}
	if err := openResult(stdio{t.std.in, io.Discard, io.Discard}, t.report.ResultPath, key, opened); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(opened, result.StdoutName))
	if err != nil {
		return err
	}
	if string(got) != t.want {
		return fmt.Errorf("the job printed %q, want %q", got, t.want)
	}
	return nil
}

func (t *selftest) proves(context.Context) error {
	receipt, err := t.std.readFile(t.report.ReceiptPath, result.MaxReceipt)
	if err != nil {
		return err
	}
	sum, err := hashFile(t.report.ResultPath)
	if err != nil {
		return err
	}
	_, err = verify.Receipt(receipt, verify.Expect{
		Roots: t.roots, Intel: t.intel, Measurements: t.measures, Manifest: t.manifest, ResultSHA256: sum,
	})
	return err
}

// refused launches what must not come to its end, and says how it should have ended.
func (t *selftest) refused(ctx context.Context, cfg qemu.Config, step string, reason result.Reason) error {
	report, err := qemu.Run(ctx, cfg)
	switch {
	case err != nil:
		return err
	case report.Outcome == nil:
		return fmt.Errorf("the VM never reported an outcome (%s); its console is %s", report.End, report.ConsolePath)
	case report.Outcome.Step != step || report.Outcome.Reason != reason:
		return fmt.Errorf("it ended with %s in step %q, want %s in step %q", report.Outcome.Reason, report.Outcome.Step, reason, step)
	}
	return nil
}

func (t *selftest) otherManifest(ctx context.Context) error {
	cfg := t.config("other-manifest")
	cfg.HostData[0] ^= 1
	return t.refused(ctx, cfg, "bind", result.NotBound)
}

func (t *selftest) otherCmdline(ctx context.Context) error {
	cfg := t.config("other-cmdline")
	cfg.Cmdline += " selftest=another-command-line"
	return t.refused(ctx, cfg, "attest", result.Denied)
}
