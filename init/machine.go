package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/egress"
	"github.com/ampoule-vm/ampoule/internal/guest"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/object"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/sink"
	"github.com/ampoule-vm/ampoule/internal/source"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// A machine is everything outside the boot, as functions, so that a test can be the outside.
type machine struct {
	console io.Writer
	baked   baked  // mount reads it
	dir     string // where images, results and logs live; memory only
	uptime  func() time.Duration
	cpu     func() time.Duration // used by this process and by children that it has waited for

	mount         func() error
	lockdown      func() error
	commandLine   func() (string, error)
	tsmSimulated  func() bool // the kernel's TSM provider is the simulated one
	openTEE       func([]tee.Driver) (tee.Device, error)
	network       func(context.Context, cmdline.Net) error
	fetchManifest func(context.Context, cmdline.Source) ([]byte, error)
	openServer    func(addr string, stop func()) server // nil: there is no such source
	resolve       func(context.Context, string, image.Options) (*image.Image, error)
	openBrokers   func(brokers []kbs.Broker, dev tee.Device, initdata []byte) (keyBrokers, error)
	unpack        func(context.Context, *image.Image, string, image.Keys, image.Limits, func(int64)) error
	unpackFile    func(context.Context, *object.Object, string, object.Want, image.Limits, func(int64)) error
	runWorkload   func(context.Context, workload.Spec) (workload.Outcome, error)
	outside       egress.Outside // where the workload's connections go, if it is let out
	boundResults  func(dir string, bytes int64) error
	swap          func(ctx context.Context, disk string, free int64) (int64, error) // makes swap space of it, of so many bytes
	memory        func() (room, error)                                              // free for images and results
	helper        *os.File                                                          // runs WebAssembly; nil: the image has none
	host          func(ctx context.Context, port uint32) host
	discard       func(mounts ...string) error // with all that is in them
	powerOff      func()
}

// A host is who started the machine: it takes events, and results that it cannot read.
type host interface {
	Send(result.Event)
	PutResult(ctx context.Context, r io.Reader, size int64) error
	PutReceipt(ctx context.Context, receipt []byte) error
	PutLog(ctx context.Context, r io.Reader, size int64) error
	Close(ctx context.Context) error // sends what is queued
}

// keyBrokers are all that the manifest names: a kbs.Client.
type keyBrokers interface {
	Fetch(context.Context, []kbs.Want) (*kbs.Grant, error)
	Token(ctx context.Context, broker string) (token string, keyPEM []byte, err error)
	Close()
}

func openBrokers(brokers []kbs.Broker, dev tee.Device, initdata []byte) (keyBrokers, error) {
	c, err := kbs.New(brokers, dev, initdata)
	if err != nil {
		return nil, err // not c: a nil *kbs.Client in an interface is not nil
	}
	return c, nil
}

// buildTime is the floor of the clock: the Unix seconds of the image's sources, set by the build.
var buildTime = "0"

// newMachine is the real one. Nothing is touched before the first step.
func newMachine() *machine {
	guest.ClearEnv()
	reaper := guest.NewReaper()
	m := &machine{
		dir:          guest.WorkDir,
		uptime:       guest.Uptime,
		cpu:          guest.CPUTime,
		lockdown:     guest.Lockdown,
		commandLine:  readCommandLine,
		tsmSimulated: func() bool { _, err := os.Stat("/sys/module/tsm_sim"); return err == nil },
		openTEE:      tee.Open,
		network: func(ctx context.Context, n cmdline.Net) error {
			trustPublicRoots() // before there is anybody to be asked for a certificate
			return guest.Network(ctx, n)
		},
		fetchManifest: fetchManifest,
		openServer:    openServer,
		resolve:       image.Resolve,
		openBrokers:   openBrokers,
		unpack: func(ctx context.Context, i *image.Image, dir string, k image.Keys, l image.Limits, progress func(int64)) error {
			return i.Unpack(ctx, dir, k, l, progress)
		},
		unpackFile: func(ctx context.Context, o *object.Object, dir string, w object.Want, l image.Limits, progress func(int64)) error {
			return o.Unpack(ctx, dir, w, l, progress)
		},
		runWorkload: func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
			return workload.Run(ctx, reaper, s)
		},
		outside:      egress.Internet,
		boundResults: boundResults,
		swap:         guest.Swap,
		memory:       readMachine,
		host:         newVsockHost,
		discard:      guest.Discard,
		powerOff:     guest.PowerOff,
	}
	console := &lateConsole{}
	m.console = console
	m.fetchManifest = m.baked.fetch
	m.mount = func() (err error) {
		if err := m.baked.read("/"); err != nil {
			return err
		}
		if m.helper, err = openHelper(wasmHelper); err != nil {
			return err
		}
		if err := guest.Mount(); err != nil {
			return err
		}
		console.Writer = guest.Console()
		if err := guest.Silence(); err != nil {
			return err
		}
		return floorClock()
	}
	return m
}

// A lateConsole is standard error until /dev is there.
type lateConsole struct{ io.Writer }

func (c *lateConsole) Write(p []byte) (int, error) {
	if c.Writer == nil {
		return os.Stderr.Write(p)
	}
	return c.Writer.Write(p)
}

func floorClock() error {
	var seconds int64
	if _, err := fmt.Sscan(buildTime, &seconds); err != nil {
		return fmt.Errorf("build time %q: %w", buildTime, err)
	}
	return guest.FloorClock(time.Unix(seconds, 0))
}

func readCommandLine() (string, error) {
	f, err := os.Open("/proc/cmdline")
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	return string(b), err
}

func fetchManifest(ctx context.Context, s cmdline.Source) ([]byte, error) {
	src, err := source.Open(s, guest.VsockClient)
	if err != nil {
		return nil, err
	}
	return src.Fetch(ctx)
}

// boundResults makes dir a file system of its own that holds the manifest's limit and what a file system needs on top,
// so that packing can tell "exactly full" from "over the limit".
func boundResults(dir string, bytes int64) error {
	return workload.MountBounded(dir, bytes+bytes/16+1<<20)
}

// A room is what the machine can hold, bytes.
type room struct {
	ram          int64 // all that there is
	memory, swap int64 // what is still free of it without pushing anything out, and of the swap space
	pids, cpus   int64 // that a workload can have; 0: unknown
}

func (r room) total() int64 { return r.memory + r.swap }

func (r room) String() string {
	if r.swap == 0 {
		return fmt.Sprintf("%d MiB free", r.memory>>20)
	}
	return fmt.Sprintf("%d MiB free (memory %d, swap %d)", r.total()>>20, r.memory>>20, r.swap>>20)
}

// readRoom reads /proc/meminfo.
func readRoom(path string) (r room, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return room{}, err
	}
	found := false
	for line := range strings.Lines(string(b)) {
		var name string
		var kib int64
		if n, _ := fmt.Sscanf(line, "%s %d kB", &name, &kib); n != 2 {
			continue
		}
		switch name {
		case "MemTotal:":
			r.ram = kib << 10
		case "MemAvailable:":
			r.memory, found = kib<<10, true
		case "SwapFree:":
			r.swap = kib << 10
		}
	}
	if !found {
		return room{}, fmt.Errorf("%s: no MemAvailable", path)
	}
	if r.swap > 0 {
		r.memory = max(0, r.memory-guest.SwapHeadroom(r.ram))
	}
	return r, nil
}

// vsockHost is the HTTP server behind CID 2.
type vsockHost struct {
	*sink.Vsock
	events *sink.EventStream
}

func newVsockHost(ctx context.Context, port uint32) host {
	v := sink.NewVsock(guest.VsockClient(port))
	return vsockHost{v, v.Events(ctx)}
}

func (h vsockHost) Send(e result.Event)             { h.events.Send(e) }
func (h vsockHost) Close(ctx context.Context) error { return h.events.Close(ctx) }
