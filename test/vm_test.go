// Package test boots VMs, end to end. It is the slow tier: what a cheaper test can show is shown there.
package test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

// ovmf is where Debian's package ovmf has the firmware.
const ovmf = "/usr/share/ovmf/OVMF.fd"

// vmLimit is the hard timeout of one VM; a whole run takes seconds.
const vmLimit = 4 * time.Minute

var work string // of all tests: images, the probe, the simulated processor

func TestMain(m *testing.M) {
	flag.Parse()
	var err error
	if work, err = os.MkdirTemp("", "ampoule-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	for _, left := range processesNaming(work) {
		fmt.Fprintln(os.Stderr, "test: a process outlives its test:", left)
		code = 1
	}
	if err := os.RemoveAll(work); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// processesNaming lists the command lines of running processes that mention dir, as every VM's does.
func processesNaming(dir string) []string {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		return []string{"/proc cannot be read"}
	}
	var found []string
	for _, f := range files {
		if b, _ := os.ReadFile(f); strings.Contains(string(b), dir) {
			found = append(found, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

// An image that tests share is built once.
type builtImage struct {
	once sync.Once
	dir  string
	info *mkimage.Info
	err  error
}

func (b *builtImage) get(t *testing.T, o mkimage.Options) (string, *mkimage.Info) {
	t.Helper()
	b.once.Do(func() {
		b.dir = filepath.Join(work, "image-"+o.Profile+strings.Join(slices.Concat(o.Tags, o.With, o.Formats), "-")+strings.ReplaceAll(o.InitPackage, "/", "-"))
		o.Out, o.SourceDir, o.Progress, o.KernelSource = b.dir, "..", os.Stderr, os.Getenv("KERNEL_SOURCE")
		b.info, b.err = mkimage.Build(context.Background(), o)
	})
	if errors.Is(b.err, mkimage.ErrNotServed) {
		t.Skip(b.err)
	}
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.dir, b.info
}

var simulation, production, faulty, withWasm builtImage

var probe = sync.OnceValues(func() (string, error) {
	path := filepath.Join(work, "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./probe: %w\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	return string(b), err
})

// A trial is one VM and the world around it. A test changes what it is about and calls run.
type trial struct {
	*testing.T
	world    *demo.World
	job      demo.Job
	cfg      qemu.Config
	manifest []byte // what the host hands over
	unbound  bool   // HOST_DATA is zero
	bound    []byte // what the launch is bound to; nil: the manifest
	accepted string // the command line whose measurement the broker takes
	banner   string // of every line on the console
	openLogs bool   // the console has the workload's output as well
	report   *qemu.Report
}

// newTrial publishes the probe and a dataset, encrypted, and is ready to run the probe with args.
func newTrial(t *testing.T, wrap func(http.Handler) http.Handler, args ...string) *trial {
	t.Helper()
	t.Parallel()
	dir, info := simulation.get(t, mkimage.Options{Profile: cmdline.Simulation, Net: "dhcp"})
	w, err := demo.NewWorld(t.Context(), t.TempDir(), filepath.Join(work, "psp"), wrap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &trial{T: t, world: w, accepted: info.Cmdline, banner: "ampoule SIMULATION"}
	r.job = demo.Job{
		Algorithm: r.publish("probe", demo.AlgorithmKey, r.probeImage(), true),
		Dataset:   r.publish("numbers", demo.DatasetKey, r.fileImage(map[string]string{"numbers.csv": "1\n2\n3\n"}), true),
		Args:      args,
	}
	r.manifest = w.Manifest(r.job)
	r.cfg = qemu.Config{
		Shape:  qemu.Shape{VCPUs: 1, MemoryMiB: 512},
		Kernel: filepath.Join(dir, mkimage.KernelFile), Initrd: filepath.Join(dir, mkimage.InitramfsFile), Cmdline: info.Cmdline,
		Dir: filepath.Join(work, strings.ReplaceAll(t.Name(), "/", "-")), Simulated: true, PSPDir: filepath.Join(work, "psp"), UserNet: true, Timeout: vmLimit,
	}
	return r
}

// run boots the VM. The broker takes the measurement of the accepted command line with the bound manifest.
func (r *trial) run() {
	r.Helper()
	if r.bound == nil {
		r.bound = r.manifest
	}
	r.cfg.Manifest, r.cfg.HostData = r.manifest, manifest.InitdataDigest(manifest.Wrap(r.bound))
	if r.unbound {
		r.cfg.HostData = [32]byte{}
	}
	launch := r.cfg
	launch.Cmdline = r.accepted
	m, err := launch.Measurement()
	if err != nil {
		r.Fatal(err)
	}
	if err := r.world.Allow(m, r.bound, demo.AlgorithmKey, demo.DatasetKey); err != nil {
		r.Fatal(err)
	}
	report, err := qemu.Run(r.Context(), r.cfg)
	if report != nil {
		r.Logf("to reproduce:\n%s", report.Command)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.report = report
}

// ends asserts how the run ended, by which exit code of ampoule run, and that the console told nothing but steps and reasons.
func (r *trial) ends(step string, reason result.Reason, exit int) {
	r.Helper()
	console, err := os.ReadFile(r.report.ConsolePath)
	if err != nil {
		r.Fatal(err)
	}
	o := r.report.Outcome
	if o == nil {
		r.Fatalf("the VM never reported (%s); its console:\n%s", r.report.End, console)
	}
	if o.Step != step || o.Reason != reason {
		r.Errorf("outcome %s in step %q, want %s in %q; the owner's log:\n%s", o.Reason, o.Step, reason, step, r.ownersLog())
	}
	if got := o.ExitCode(); got != exit {
		r.Errorf("ampoule run would exit with %d, want %d", got, exit)
	}
	if r.report.End != qemu.PoweredOff {
		r.Errorf("the VM ended as %q, want %q", r.report.End, qemu.PoweredOff)
	}
	for line := range strings.Lines(string(console)) {
		line = strings.TrimSpace(escapes.ReplaceAllString(line, ""))
		said, ours := strings.CutPrefix(line, r.banner)
		known := consoleLine.MatchString(said) || r.openLogs && outputLine.MatchString(said)
		if line != "" && !notOurs.MatchString(line) && (!ours || !known) {
			r.Errorf("console line %q is neither a step after %q nor the kernel's farewell", line, r.banner)
		}
	}
}

var (
	escapes     = regexp.MustCompile(`\x1b(\[[0-9;=?]*[A-Za-z]|c)`)
	consoleLine = regexp.MustCompile(`^( +\d+/13 [a-z]+ +(ok|failed [a-z-]+) \d+ ms| outcome [a-z-]+( in [a-z]+)?)$`)
	outputLine  = regexp.MustCompile(`^ (stdout|stderr) (\| .*|\[\d+ bytes not shown\])$`)
	notOurs     = regexp.MustCompile(`^(\[ +\d+\.\d+\] reboot: Power down|SeaBIOS .*|Booting from ROM.*|iPXE .*|Press Ctrl-B.*|BdsDxe: .*)$`)
)

// notRun asserts that the workload did not start, which two independent witnesses say.
func (r *trial) notRun() {
	r.Helper()
	for _, e := range r.report.Events {
		if e.Step == "execute" {
			r.Errorf("step execute was entered: %s", e.Line())
		}
	}
	if r.report.ReceiptPath != "" {
		r.Error("a receipt was delivered")
	}
}

// open unseals what came back and returns its folder.
func (r *trial) open() string {
	r.Helper()
	dir := r.TempDir()
	if err := r.unseal(dir); err != nil {
		r.Fatal(err)
	}
	return dir
}

func (r *trial) unseal(dir string) error {
	f, err := os.Open(r.report.ResultPath)
	if err != nil {
		return err
	}
	defer f.Close()
	clear, err := result.Open(f, []age.Identity{r.world.Identity})
	if err != nil {
		return err
	}
	defer clear.Close()
	return result.ExtractTar(clear, dir, 1<<30)
}

// ownersLog is the sealed error text, for the message of a test that fails.
func (r *trial) ownersLog() string {
	if r.report.ResultPath == "" {
		return "(none was delivered)"
	}
	dir := r.TempDir()
	if err := r.unseal(dir); err != nil {
		return err.Error()
	}
	b, _ := os.ReadFile(filepath.Join(dir, result.BootLogName))
	return string(b)
}

// verified checks the receipt against everything that is known.
func (r *trial) verified() *verify.Verdict {
	r.Helper()
	b, err := os.ReadFile(r.report.ReceiptPath)
	if err != nil {
		r.Fatal(err)
	}
	v, err := verify.Receipt(b, verify.Expect{
		Roots:        []verify.Root{r.root()},
		Measurements: []evidence.Measurement{r.report.Measurement},
		Manifest:     r.manifest,
		ResultSHA256: r.sum(r.report.ResultPath),
	})
	if err != nil {
		r.Fatal(err)
	}
	return v
}

// brokerSaid returns what the broker's audit log has about guests.
func (r *trial) brokerSaid() string {
	r.Helper()
	said := ""
	for line := range strings.Lines(r.read(filepath.Join(r.world.Dir, "broker.log"))) {
		if strings.Contains(line, " remote=") {
			said += line
		}
	}
	return said
}
