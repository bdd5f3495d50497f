package test

import (
	"crypto/sha256"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
	"github.com/ampoule-vm/ampoule/mkimage"
	"github.com/ampoule-vm/ampoule/qemu"
)

// TestRegression is the demo: Python in a VM with OVMF fits what an independent method fits here.
func TestRegression(t *testing.T) {
	r := newTrial(t, nil)
	r.cfg.Shape = qemu.Shape{VCPUs: 2, MemoryMiB: 1024, Firmware: ovmf}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	algo, data, err := demo.Inputs(t.Context(), filepath.Join(cache, "ampoule"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	r.job = demo.Job{Algorithm: r.publish("fit", demo.AlgorithmKey, algo, true), Dataset: r.publish("houses", demo.DatasetKey, data, true)}
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("", result.OK, 0)

	v := r.verified()
	if !v.Proven || !v.Simulated || v.Statement.Predicate.Binding != result.BindLaunch {
		t.Errorf("verdict proven=%v simulated=%v binding=%q", v.Proven, v.Simulated, v.Statement.Predicate.Binding)
	}
	if _, err := verify.Receipt([]byte(r.read(r.report.ReceiptPath)), verify.Expect{}); err == nil {
		t.Error("AMD's roots take the receipt of a simulated TEE")
	}
	var got struct {
		Intercept, Area, Rooms float64
		Samples                int
	}
	if err := json.Unmarshal([]byte(r.read(filepath.Join(r.open(), "results/coefficients.json"))), &got); err != nil {
		t.Fatal(err)
	}
	want := fit(t, demo.Dataset())
	for i, g := range []float64{got.Intercept, got.Area, got.Rooms} {
		if math.Abs(g-want[i]) > 1e-6*math.Abs(want[i]) {
			t.Errorf("coefficient %d is %v, an independent fit gives %v", i, g, want[i])
		}
	}
	if got.Samples != 400 {
		t.Errorf("%d samples, want 400", got.Samples)
	}
}

// fit is least squares by centred covariances and Cramer's rule, unlike the algorithm's normal equations.
func fit(t *testing.T, table []byte) [3]float64 {
	t.Helper()
	rows, err := csv.NewReader(strings.NewReader(string(table))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var points [][3]float64 // area, rooms, price
	var mean [3]float64
	for _, row := range rows[1:] {
		var p [3]float64
		for i := range p {
			if p[i], err = strconv.ParseFloat(row[i], 64); err != nil {
				t.Fatal(err)
			}
			mean[i] += p[i] / float64(len(rows)-1)
		}
		points = append(points, p)
	}
	var c [3][3]float64
	for _, p := range points {
		for i := range 3 {
			for j := range 3 {
				c[i][j] += (p[i] - mean[i]) * (p[j] - mean[j])
			}
		}
	}
	det := c[0][0]*c[1][1] - c[0][1]*c[1][0]
	area := (c[0][2]*c[1][1] - c[1][2]*c[0][1]) / det
	rooms := (c[1][2]*c[0][0] - c[0][2]*c[1][0]) / det
	return [3]float64{mean[2] - area*mean[0] - rooms*mean[1], area, rooms}
}

// TestResult brings back what the workload wrote, more than any single vsock packet holds, and its output.
func TestResult(t *testing.T) {
	r := newTrial(t, nil, "say=hello", "copy=numbers.csv", "random=8388608")
	r.run()
	r.ends("", result.OK, 0)
	r.verified()
	dir := r.open()
	if sum := fmt.Sprintf("%x", sha256.Sum256([]byte(r.read(filepath.Join(dir, "results/random"))))); sum != r.read(filepath.Join(dir, "results/random.sha256")) {
		t.Error("8 MiB came back altered")
	}
	for file, want := range map[string]string{"results/numbers.csv": "1\n2\n3\n", "log/stdout": "hello\n", "log/stderr": "hello\n"} {
		if got := r.read(filepath.Join(dir, file)); got != want {
			t.Errorf("%s holds %q, want %q", file, got, want)
		}
	}
}

// TestSandbox tries the doors from inside.
func TestSandbox(t *testing.T) {
	r := newTrial(t, nil, "look")
	r.run()
	r.ends("", result.OK, 0)
	var seen map[string]string
	if err := json.Unmarshal([]byte(r.read(filepath.Join(r.open(), "results/look.json"))), &seen); err != nil {
		t.Fatal(err)
	}
	none := "0000000000000000"
	for name, want := range map[string]string{
		"Uid": "1000 1000 1000 1000", "CapEff": none, "CapPrm": none, "CapBnd": none, "CapInh": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2",
		"links": "lo", "processes": "1", "write result": "open", "command line": "",
	} {
		if seen[name] != want {
			t.Errorf("%s is %q, want %q", name, seen[name], want)
		}
	}
	for _, door := range []string{"vsock", "write dataset", "mount", "user namespace", "tsm", "dev vsock", "network"} {
		if got, ok := seen[door]; !ok || got == "open" {
			t.Errorf("%s: %q, want an error", door, got)
		}
	}
	for kv := range strings.FieldsSeq(seen["environment"]) {
		if name, _, _ := strings.Cut(kv, "="); name != "PATH" && name != "HOME" {
			t.Errorf("the environment has %q", kv)
		}
	}
}

// TestExitStatus: the workload's own status survives to the outcome and the receipt, and its result comes back.
func TestExitStatus(t *testing.T) {
	r := newTrial(t, nil, "ran", "exit=7")
	r.run()
	r.ends("execute", result.Workload, 4)
	if e := r.report.Outcome.Exit; e == nil || *e != 7 {
		t.Errorf("outcome has exit %v, want 7", e)
	}
	if w := r.verified().Statement.Predicate.Workload; w.Exit == nil || *w.Exit != 7 {
		t.Errorf("receipt has exit %v, want 7", w.Exit)
	}
	r.read(filepath.Join(r.open(), "results/ran"))
}

// TestHangingWorkload ends by its deadline, children and all, and keeps what was written until then. It knows no SIGTERM,
// so that is what ends it.
func TestHangingWorkload(t *testing.T) {
	r := newTrial(t, nil, "ran", "hang")
	r.job.Deadline = "10s"
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("execute", result.Deadline, 4)
	if w := r.verified().Statement.Predicate.Workload; !w.Deadline || w.Signal != "SIGTERM" {
		t.Errorf("the receipt does not say that SIGTERM ended the workload at its deadline, but %+v", w)
	}
	r.read(filepath.Join(r.open(), "results/ran"))
}

// TestMemoryLimit: a workload that takes more than the manifest gives is an outcome of its own.
func TestMemoryLimit(t *testing.T) {
	r := newTrial(t, nil, "allocate=200")
	r.job.MemoryBytes = 64 << 20
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("execute", result.Workload, 4)
	if !r.verified().Statement.Predicate.Workload.OOM {
		t.Error("the receipt does not say that memory ran out")
	}
}

// TestProcessLimit: a workload gets as many processes and threads as the manifest gives, its own among them.
func TestProcessLimit(t *testing.T) {
	r := newTrial(t, nil, "fork=60")
	r.job.PIDs = 40
	r.manifest = r.world.Manifest(r.job)
	r.run()
	r.ends("", result.OK, 0)
	forked, err := strconv.Atoi(r.read(filepath.Join(r.open(), "results/forked")))
	if err != nil || forked == 0 || forked >= 40 {
		t.Errorf("%d children started (%v), want some and fewer than 40", forked, err)
	}
}

// TestCocosManifest: the remote-resources spelling of the Cocos documentation, with tags, a plain-http broker and
// nobody to seal to, runs as it is in a simulation image; the receipt says what was lax.
func TestCocosManifest(t *testing.T) {
	r := newTrial(t, nil)
	algorithm, _, _ := strings.Cut(r.publish("lin-reg", demo.AlgorithmKey, r.probeImage(), true), "@")
	dataset, _, _ := strings.Cut(r.publish("iris", demo.DatasetKey, r.fileImage(map[string]string{"iris.csv": "5.1,3.5\n"}), true), "@")
	r.manifest = fmt.Appendf(nil, `{
  "computation_id": "1",
  "algorithm": {"type": "oci-image", "uri": %q, "encrypted": true, "kbs_resource_path": %q},
  "datasets": [{"type": "oci-image", "uri": %q, "encrypted": true, "kbs_resource_path": %q}],
  "kbs_url": %q
}`, algorithm+":latest", demo.AlgorithmKey, dataset+":latest", demo.DatasetKey, r.world.Broker)
	r.run()
	r.ends("", result.OK, 0)
	if filepath.Base(r.report.ResultPath) != qemu.PlainFile {
		t.Errorf("the result is %s, want %s: nobody to seal to", r.report.ResultPath, qemu.PlainFile)
	}
	notes := strings.Join(r.verified().Statement.Predicate.Notes, "\n")
	for _, want := range []string{"algorithm was named by tag", "datasets[0] was named by tag", "returned in clear", "plain http"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the receipt's notes do not say %q:\n%s", want, notes)
		}
	}
}

// TestPinned: without HOST_DATA, a digest on the measured command line binds the manifest, which the kernel carries.
func TestPinned(t *testing.T) {
	r := newTrial(t, nil)
	r.job = demo.Job{Algorithm: r.publish("open", "", r.probeImage(), false), Args: []string{"ran"}, Plain: true}
	r.manifest = r.world.Manifest(r.job)
	r.unbound = true
	m, err := manifest.Parse(r.manifest, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	o, err := cmdline.Parse(r.cfg.Cmdline)
	if err != nil {
		t.Fatal(err)
	}
	sum := m.SHA384()
	o.SHA384, o.Manifest = sum[:], inline(t, r.manifest)
	r.cfg.Cmdline = mkimage.Cmdline(o.Profile, o, "")
	r.accepted = r.cfg.Cmdline
	r.run()
	r.ends("", result.OK, 0)
	if b := r.verified().Statement.Predicate.Binding; b != result.BindPinned {
		t.Errorf("the receipt says binding %q, want %q", b, result.BindPinned)
	}
}
