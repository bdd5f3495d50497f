package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/object"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/sink"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// run is one boot. Each field is written by the one step that it names.
type run struct {
	*machine
	stop context.CancelCauseFunc // ends the boot: the total deadline

	opts        cmdline.Options                // mount
	simulated   bool                           // mount
	peer        host                           // mount
	dev         tee.Device                     // platform
	doc         *manifest.Manifest             // manifest
	server      server                         // manifest; nil: it comes from no such one
	initdata    []byte                         // bind
	launch      evidence.Measurement           // bind
	tcb         []byte                         // bind; as the hardware reports it, nil where it reports none
	register    string                         // bind; what the guest extended with the manifest's digest, or ""
	binding     string                         // bind; "" until the manifest is known to be the owner's
	inputs      []*input                       // resolve
	brokers     keyBrokers                     // resolve, or attest if that asks first
	logins      logins                         // resolve
	storeLogins map[string]*object.Credentials // resolve; by manifest.Store.URL
	policy      *admission                     // resolve; nil: digests alone count
	grant       *kbs.Grant                     // attest
	secrets     secrets                        // attest
	uploads     []*sink.Upload                 // attest; by the manifest's sinks
	output      *workload.Outcome              // execute
	started     time.Duration                  // execute
	ended       time.Duration                  // execute
	parcel      *parcel                        // seal
	pulled      atomic.Int64                   // pull; bytes

	buffers *image.Buffers // of all pulls together

	private *slog.Logger // the sealed log: error texts, names, URLs
	log     *boundedBuffer
	logs    workloadLogs // execute

	mu       sync.Mutex
	timeline []result.Event
	early    []result.Event // from before there was a peer
}

var errDeadline = fmt.Errorf("the run's total deadline: %w", context.DeadlineExceeded)

func newRun(m *machine) *run {
	log := &boundedBuffer{limit: 512 << 10}
	return &run{machine: m, buffers: image.NewBuffers(), log: log, private: slog.New(slog.NewTextHandler(log, nil))}
}

// inputsOf lists the images of a manifest: the algorithm first, the runtime last.
func inputsOf(doc *manifest.Manifest) []*input {
	inputs := []*input{{name: "algorithm", want: doc.Algorithm}}
	for i, d := range doc.Datasets {
		inputs = append(inputs, &input{name: fmt.Sprintf("datasets[%d]", i), want: d})
	}
	if doc.Runtime != nil {
		inputs = append(inputs, &input{name: "runtime", want: *doc.Runtime})
	}
	return inputs
}

func wantsOf(inputs []*input) []kbs.Want {
	var wants []kbs.Want
	seen := map[kbs.Want]bool{}
	for _, in := range inputs {
		for _, path := range in.keys {
			w := kbs.Want{Broker: in.want.Broker, Path: path}
			if !seen[w] {
				seen[w] = true
				wants = append(wants, w)
			}
		}
	}
	return wants
}

// brokersOf gives the brokers that a manifest names, with what it pins of each.
func brokersOf(doc *manifest.Manifest, http bool) []kbs.Broker {
	var all []kbs.Broker
	for _, b := range doc.Brokers {
		all = append(all, kbs.Broker{URL: b.URL, CA: b.CA, SPKI: b.SPKI, KeyType: b.KeyType, AllowHTTP: http})
	}
	return all
}

func (r *run) keysFor(in *input) image.Keys {
	keys := image.Keys{}
	for _, path := range in.keys {
		if k := r.grant.Key(in.want.Broker, path); k != nil {
			keys[path] = append([]byte(nil), k...)
		}
	}
	return keys
}

// imageOptions is how the registry in uri and its mirrors are reached: as the manifest says of each.
func (r *run) imageOptions(uri string) (o image.Options, err error) {
	host, repository, _ := strings.Cut(strings.TrimPrefix(uri, "docker://"), "/")
	main, mirrors, err := r.reach(host, uri)
	if err != nil {
		return o, err
	}
	o = image.Options{Transport: main.Transport, PlainHTTP: main.PlainHTTP, Login: main.Login, Log: r.private, Buffers: r.buffers}
	for _, at := range mirrors {
		mirror, _, _ := strings.Cut(at, "/")
		m, _, err := r.reach(mirror, at+"/"+repository)
		if err != nil {
			return o, err
		}
		m.At = at
		o.Mirrors = append(o.Mirrors, m)
	}
	return o, nil
}

// reach is how one host is reached, by its own entry in the manifest, if it has one, and which mirrors that names.
func (r *run) reach(host, uri string) (m image.Mirror, mirrors []string, err error) {
	m = image.Mirror{PlainHTTP: r.opts.Allow.Has(cmdline.AllowHTTP), Login: r.logins.find(host, uri)}
	for _, reg := range r.doc.Registries {
		if reg.Host != host {
			continue
		}
		mirrors = reg.Mirrors
		if m.Transport, err = image.NewTransport(reg.CA, reg.Proxy); err != nil {
			return m, nil, fmt.Errorf("registry %s: %w", reg.Host, err) // never without the pin
		}
		m.PlainHTTP = m.PlainHTTP && len(reg.CA) == 0 // nor around it
	}
	return m, mirrors, nil
}

// fits refuses images and files that this machine cannot hold, before a byte of them is pulled. What they unpack to is not known before
// they have: their compressed sizes are the least that is needed, and what the manifest says is the most.
func (r *run) fits() error {
	free, err := r.memory()
	if err != nil {
		return because(result.Internal, err)
	}
	var need int64
	for _, in := range r.inputs {
		need += in.size()
	}
	const fix = "start it with more memory (ampoule run --memory), or with a disk for swap (ampoule build --swap, run --swap)"
	limit := r.doc.Resources.InputBytes
	switch {
	case limit > 0 && need > limit:
		return fmt.Errorf("resources.input_bytes: the images and files have %d bytes as they are stored and the manifest allows %d", need, limit)
	case limit > free.total():
		return fmt.Errorf("resources.input_bytes: the images and files may need %d MiB and this machine has %v: %s", limit>>20, free, fix)
	case need > free.total():
		return fmt.Errorf("the images and files need at least %d MiB, which is their size as they are stored, and this machine has %v: %s", need>>20, free, fix)
	}
	_, err = limitsFor(r.doc, free, need)
	return because(result.BadManifest, err)
}

// workloadContext ends early enough that a workload which is killed leaves time to seal what it wrote.
func (r *run) workloadContext(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := r.opts.Deadline - r.uptime()
	limit -= min(limit/5, 2*time.Minute)
	limit -= min(limit/5, r.grace())
	if d := r.doc.Resources.Deadline; d > 0 && d < limit {
		limit = d
	}
	return context.WithTimeout(ctx, limit)
}

func (r *run) spec() (workload.Spec, error) {
	plan, err := r.plan()
	if err != nil {
		return workload.Spec{}, err
	}
	s := *plan
	s.Datasets, s.Results, s.Scratch = filepath.Join(r.dir, "datasets"), r.resultsDir(), filepath.Join(r.dir, "scratch")
	for _, dir := range []string{s.Datasets, s.Results, s.Scratch} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return s, because(result.Internal, err)
		}
	}
	l, err := r.limit(&s)
	if err != nil {
		return s, err
	}
	if err := r.boundResults(s.Results, l.results); err != nil {
		return s, because(result.Internal, err)
	}
	var sets []workload.Dataset
	for _, in := range r.datasets() {
		sets = append(sets, workload.Dataset{Name: in.name, Dir: in.dir, Filename: in.want.Filename})
	}
	if err := workload.LayDatasets(s.Datasets, sets); err != nil {
		return s, because(result.BadImage, err)
	}
	for _, f := range r.doc.Workload.Files {
		s.Files = append(s.Files, workload.File{Path: f.Path, Data: bytes.Clone(r.secrets.open(f.Value))})
	}
	var tell telling
	if r.doc.Logs == "host" {
		tell = r.show
	}
	s.Stdout, s.Stderr = r.logs.open(tell)
	return s, nil
}

func (r *run) resultsDir() string { return filepath.Join(r.dir, "results") }

// port is where the host's HTTP server listens.
func (r *run) port() uint32 {
	if r.opts.Manifest.Kind == "vsock" {
		if n, err := strconv.ParseUint(r.opts.Manifest.Arg, 10, 32); err == nil {
			return uint32(n)
		}
	}
	return cmdline.DefaultPort
}
