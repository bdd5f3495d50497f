package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/object"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

var update = flag.Bool("update", false, "write the golden files anew")

// pspDir is shared, for making a chip takes seconds.
var pspDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "ampoule-init-test-")
	if err != nil {
		panic(err)
	}
	return dir
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	os.RemoveAll(pspDir())
	os.Exit(code)
}

// A chipDevice signs as the simulated processor does, without a kernel between.
type chipDevice struct {
	chip   *psp.PSP
	launch psp.Launch
}

func (chipDevice) Kind() evidence.Kind { return evidence.SNP }

func (d chipDevice) Evidence(_ context.Context, reportData [64]byte) (evidence.Evidence, error) {
	report, err := d.chip.Report(d.launch, reportData)
	if err != nil {
		return evidence.Evidence{}, err
	}
	certs, err := d.chip.Certs()
	return evidence.Evidence{Kind: evidence.SNP, Report: report, Aux: certs}, err
}

// quoteDevice is a simulated TDX guest.
type quoteDevice struct{ chipDevice }

func (quoteDevice) Kind() evidence.Kind { return evidence.TDX }

func (d quoteDevice) Evidence(_ context.Context, data [64]byte) (evidence.Evidence, error) {
	q, err := d.chip.Quote(d.launch, data)
	return evidence.Evidence{Kind: evidence.TDX, Report: q}, err
}

// A flow is a boot in which the registry, the broker, the images, the evidence and the result are real, and only the
// kernel and the workload are not.
type flow struct {
	*testing.T
	m        *machine
	peer     *fakeHost
	console  *lockedBuffer
	world    *demo.World
	line     string
	raw      []byte
	launch   psp.Launch
	allowed  evidence.Measurement // by the broker's policy; zero: the launch's
	refuse   error                // of the host, when the result comes
	bound    []byte               // what HOST_DATA is of; nil: the manifest
	grants   []string             // resources that the broker's policy gives besides the two keys
	outcome  workload.Outcome
	started  bool
	asked    bool
	unbound  bool
	kernelIs bool // the kernel's provider is the simulated one
	tamper   func(*machine)
}

const testLine = "console=ttyS0 ampoule.profile=simulation ampoule.allow=http"

func newFlow(t *testing.T) *flow {
	t.Helper()
	w, err := demo.NewWorld(t.Context(), t.TempDir(), pspDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	w.Broker = strings.Replace(w.Broker, "10.0.2.2", "127.0.0.1", 1)
	f := &flow{T: t, world: w, line: testLine, kernelIs: true, launch: psp.Launch{Measurement: evidence.Measurement{1, 2, 3}}}
	f.raw = w.Manifest(demo.Job{
		Algorithm: f.publish("algorithm", demo.AlgorithmKey, map[string]string{"algorithm.py": "pass"}),
		Dataset:   f.publish("dataset", demo.DatasetKey, map[string]string{"table.csv": "1\n"}),
	})
	return f
}

func (f *flow) publish(name, path string, files map[string]string) string {
	f.Helper()
	img, err := demo.Image(files, config)
	if err != nil {
		f.Fatal(err)
	}
	uri, err := f.world.Publish(f.Context(), img, name, path)
	if err != nil {
		f.Fatal(err)
	}
	return strings.Replace(uri, "10.0.2.2", "127.0.0.1", 1)
}

// edit changes one thing in the manifest.
func (f *flow) edit(from, to string) {
	f.Helper()
	if !bytes.Contains(f.raw, []byte(from)) {
		f.Fatalf("the manifest has no %q:\n%s", from, f.raw)
	}
	f.raw = bytes.Replace(f.raw, []byte(from), []byte(to), 1)
}

func (f *flow) boot() {
	f.Helper()
	if f.bound == nil {
		f.bound = f.raw
	}
	if !f.unbound {
		f.launch.HostData = manifest.InitdataDigest(manifest.Wrap(f.bound))
	}
	if f.allowed == (evidence.Measurement{}) {
		f.allowed = f.launch.Measurement
	}
	if err := f.world.Allow(f.allowed, f.bound, append([]string{demo.AlgorithmKey, demo.DatasetKey}, f.grants...)...); err != nil {
		f.Fatal(err)
	}
	f.m, f.peer, f.console = bareMachine()
	f.peer.refuse = f.refuse
	m := f.m
	m.dir = f.TempDir()
	m.mount, m.lockdown = func() error { return nil }, func() error { return nil }
	m.commandLine = func() (string, error) { return f.line, nil }
	m.tsmSimulated = func() bool { return f.kernelIs }
	m.openTEE = func([]tee.Driver) (tee.Device, error) { return chipDevice{f.world.PSP, f.launch}, nil }
	m.network = func(context.Context, cmdline.Net) error { return nil }
	m.fetchManifest = func(context.Context, cmdline.Source) ([]byte, error) { return f.raw, nil }
	m.resolve = image.Resolve
	m.openBrokers = openBrokers
	m.onFetch(func(ctx context.Context, w []kbs.Want, next fetch) (*kbs.Grant, error) {
		f.asked = true
		return next(ctx, w)
	})
	m.unpack = func(ctx context.Context, i *image.Image, dir string, k image.Keys, l image.Limits, progress func(int64)) error {
		l.Chown = false // tests need no root
		return i.Unpack(ctx, dir, k, l, progress)
	}
	m.unpackFile = func(ctx context.Context, o *object.Object, dir string, w object.Want, l image.Limits, progress func(int64)) error {
		l.Chown = false
		return o.Unpack(ctx, dir, w, l, progress)
	}
	m.memory = func() (room, error) { return room{ram: 2 << 30, memory: 1 << 30}, nil }
	m.boundResults = func(string, int64) error { return nil }
	m.runWorkload = func(_ context.Context, s workload.Spec) (workload.Outcome, error) {
		f.started = true
		io.WriteString(s.Stdout, "output of the workload\n")
		b, err := os.ReadFile(filepath.Join(s.Datasets, "table.csv"))
		if err != nil {
			return workload.Outcome{}, err
		}
		return f.outcome, os.WriteFile(filepath.Join(s.Results, "copy.csv"), b, 0o644)
	}
	if f.tamper != nil {
		f.tamper(m)
	}
	boot(f.Context(), m, sequence)
}

// ends asserts the one outcome; run tells whether the workload must have started.
func (f *flow) ends(step string, reason result.Reason, run bool) result.Event {
	f.Helper()
	o := f.peer.outcomes()
	if len(o) != 1 || o[0].Step != step || o[0].Reason != reason {
		f.Fatalf("outcomes %+v, want one: %s in %q; the log:\n%s", o, reason, step, f.log())
	}
	if f.started != run {
		f.Errorf("the workload started: %v, want %v", f.started, run)
	}
	return o[0]
}

func (f *flow) opened() string {
	f.Helper()
	clear, err := result.Open(bytes.NewReader(f.peer.result), []age.Identity{f.world.Identity})
	if err != nil {
		f.Fatal(err)
	}
	defer clear.Close()
	dir := f.TempDir()
	if err := result.ExtractTar(clear, dir, 1<<30); err != nil {
		f.Fatal(err)
	}
	return dir
}

// log is the sealed private log, "" when nothing came.
func (f *flow) log() string {
	f.Helper()
	if f.peer.result == nil {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(f.opened(), result.BootLogName))
	if err != nil {
		f.Fatal(err)
	}
	return string(b)
}

func (f *flow) verdict() *verify.Verdict {
	f.Helper()
	root, err := verify.LoadRoot(f.world.PSP.RootPEM())
	if err != nil {
		f.Fatal(err)
	}
	h := newHash()
	h.Write(f.peer.result)
	v, err := verify.Receipt(f.peer.receipt, verify.Expect{
		Roots: []verify.Root{root}, Measurements: []evidence.Measurement{f.launch.Measurement}, Manifest: f.raw, ResultSHA256: h.Sum(nil)})
	if err != nil {
		f.Fatal(err)
	}
	return v
}

// TestHappyBoot compares the console with a golden file: it is all that a host sees.
func TestHappyBoot(t *testing.T) {
	f := newFlow(t)
	f.boot()
	f.ends("", result.OK, true)
	if b, err := os.ReadFile(filepath.Join(f.opened(), "results/copy.csv")); err != nil || string(b) != "1\n" {
		t.Errorf("result %q, %v", b, err)
	}
	if v := f.verdict(); !v.Proven || v.Statement.Predicate.Binding != result.BindLaunch || len(v.Statement.Predicate.Images) != 2 {
		t.Errorf("verdict %+v", v)
	}
	golden := filepath.Join("testdata", "console.golden")
	// How often a step with progress looks at the clock, which goes on by each look, is not the point.
	got := regexp.MustCompile(`((resolve|pull) +ok) \d+ ms`).ReplaceAllString(f.console.String(), "$1 N ms")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("console:\n%swant:\n%s", got, want)
	}
}

func TestWorkloadOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		outcome workload.Outcome
		reason  result.Reason
		exit    bool
	}{
		"exit status 7":  {workload.Outcome{Exit: 7}, result.Workload, true},
		"a signal":       {workload.Outcome{Signal: "SIGSEGV"}, result.Workload, false},
		"out of memory":  {workload.Outcome{Signal: "SIGKILL", OOM: true}, result.Workload, false},
		"out of time":    {workload.Outcome{Signal: "SIGKILL", Deadline: true}, result.Deadline, false},
		"OOM, survived?": {workload.Outcome{OOM: true}, result.Workload, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			f.outcome = c.outcome
			f.boot()
			o := f.ends("execute", c.reason, true)
			if (o.Exit != nil) != c.exit || c.exit && *o.Exit != c.outcome.Exit {
				t.Errorf("outcome has exit %v", o.Exit)
			}
			w := f.verdict().Statement.Predicate.Workload
			if w.OOM != c.outcome.OOM || w.Deadline != c.outcome.Deadline || w.Signal != c.outcome.Signal {
				t.Errorf("receipt says %+v, want %+v", w, c.outcome)
			}
			if b, err := os.ReadFile(filepath.Join(f.opened(), result.StdoutName)); err != nil || string(b) != "output of the workload\n" {
				t.Errorf("stdout %q, %v", b, err)
			}
		})
	}
}

// TestRefusals: each is found at its step, before the workload starts, and what the owner is told is sealed.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		set    func(*flow)
		step   string
		reason result.Reason
		log    string // in the owner's sealed log; "": nothing is delivered, for the recipients are not yet trusted
		asked  bool   // a broker was asked
	}{
		"HOST_DATA of another manifest": {func(f *flow) { f.bound = append(bytes.Clone(f.raw), ' ') }, "bind", result.NotBound, "", false},
		"HOST_DATA of zero":             {func(f *flow) { f.unbound = true }, "bind", result.NotBound, "", false},
		"a pin of another manifest":     {func(f *flow) { f.line += " ampoule.manifest-sha384=" + strings.Repeat("ab", 48) }, "bind", result.NotBound, "", false},
		"an unknown key":                {func(f *flow) { f.line += " ampoule.debug=1" }, "mount", result.BadManifest, "", false},
		"a repeated key":                {func(f *flow) { f.line += " ampoule.profile=simulation" }, "mount", result.BadManifest, "", false},
		"a simulation on a real kernel": {func(f *flow) { f.kernelIs = false }, "platform", result.NoTEE, "", false},
		"production on a simulated one": {func(f *flow) { f.line = "ampoule.profile=production" }, "platform", result.NoTEE, "", false},
		"a manifest that is not one":    {func(f *flow) { f.raw = []byte("{}") }, "manifest", result.BadManifest, "", false},
		"nobody to seal to":             {func(f *flow) { f.nobody() }, "manifest", result.BadManifest, "", false},
		"a recipient that is not one":   {func(f *flow) { f.edit(f.world.Identity.Recipient().String(), "age1qqqq") }, "manifest", result.BadManifest, "", false},
		"another key's path":            {func(f *flow) { f.edit(demo.AlgorithmKey, "default/key/other") }, "resolve", result.BadImage, "grants it", false},
		"encryption not asked for":      {func(f *flow) { f.plain() }, "resolve", result.BadImage, "is encrypted and the manifest does not say", false},
		"an image that is not there":    {func(f *flow) { f.edit("/dataset@", "/datasets@") }, "resolve", result.BadImage, "datasets", false},
		"a measurement not allowed":     {func(f *flow) { f.allowed = evidence.Measurement{9} }, "attest", result.Denied, "PolicyDeny", true},
		"a key that is gone":            {func(f *flow) { f.removeKey() }, "attest", result.Denied, "PluginInternalError", true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			c.set(f)
			f.boot()
			f.ends(c.step, c.reason, false)
			if f.asked != c.asked {
				t.Errorf("a broker was asked: %v, want %v", f.asked, c.asked)
			}
			if c.log == "" && f.peer.result != nil {
				t.Error("something was delivered")
			}
			if log := f.log(); !strings.Contains(log, c.log) {
				t.Errorf("the sealed log does not say %q:\n%s", c.log, log)
			}
			if c.log != "" && strings.Contains(f.console.String(), c.log) {
				t.Errorf("the console says it:\n%s", f.console)
			}
			if f.peer.receipt != nil {
				t.Error("a receipt was delivered")
			}
		})
	}
}

// plain takes encryption out of the manifest; the image stays encrypted.
func (f *flow) plain() {
	var m map[string]any
	if err := json.Unmarshal(f.raw, &m); err != nil {
		f.Fatal(err)
	}
	a := m["algorithm"].(map[string]any)
	delete(a, "encrypted")
	delete(a, "kbs_resource_path")
	f.raw, _ = json.Marshal(m)
}

func (f *flow) removeKey() {
	if err := os.Remove(filepath.Join(f.world.Dir, "kbs", "keys", filepath.FromSlash(demo.DatasetKey))); err != nil {
		f.Fatal(err)
	}
}

// TestResultOverTheLimit is the workload's failure; the owner is told by how much.
func TestResultOverTheLimit(t *testing.T) {
	f := newFlow(t)
	f.edit(`"results": {`, `"results": {"limit_bytes": 100,`)
	f.boot()
	f.ends("seal", result.Workload, true)
	if log := f.log(); !strings.Contains(log, "100") {
		t.Errorf("the sealed log does not name the limit:\n%s", log)
	}
}

// TestTDXBoot: the same boot on the other TEE, bound by MRCONFIGID; under the vendors' own roots its receipt is worth nothing.
func TestTDXBoot(t *testing.T) {
	f := newFlow(t)
	f.tamper = func(m *machine) {
		m.openTEE = func([]tee.Driver) (tee.Device, error) { return quoteDevice{chipDevice{f.world.PSP, f.launch}}, nil }
	}
	f.boot()
	f.ends("", result.OK, true)
	root, err := verify.LoadIntelRoot(f.world.PSP.TDXRootPEM())
	if err != nil {
		t.Fatal(err)
	}
	want := verify.Expect{Intel: root, Measurements: []evidence.Measurement{f.launch.Measurement}, Manifest: f.raw}
	if v, err := verify.Receipt(f.peer.receipt, want); err != nil || !v.Proven || !v.Simulated || v.Statement.Predicate.Binding != result.BindLaunch {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := verify.Receipt(f.peer.receipt, verify.Expect{}); err == nil {
		t.Error("the receipt holds under Intel's root")
	}
	other := newFlow(t)
	other.bound = []byte("another manifest")
	other.tamper = func(m *machine) {
		m.openTEE = func([]tee.Driver) (tee.Device, error) {
			return quoteDevice{chipDevice{other.world.PSP, other.launch}}, nil
		}
	}
	other.boot()
	other.ends("bind", result.NotBound, false)
}
