// Package qemu launches one VM, is its host while it runs, and ends it.
//
// It makes QEMU's command line, serves the host's side of the vsock protocol (manifest, events, result, receipt) and,
// for simulation images, the simulated secure processor. The guest is not trusted: what it sends is bounded and checked.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/internal/psp"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// DefaultBinary is the QEMU that is looked for where Config names none. Debian's package is qemu-system-x86.
const DefaultBinary = "qemu-system-x86_64"

// Names of the artefacts in Config.Dir.
const (
	ConsoleFile = "console.log"
	StderrFile  = "qemu.log"
	EventsFile  = "events.ndjson"
	ReceiptFile = "receipt.json"
	SealedFile  = "result.tar.zst.age"
	PlainFile   = "result.tar.zst" // where a simulation returned its result in clear
	SwapFile    = "swap.img"       // while the VM runs

	// What went wrong after the result was sealed, for its owner.
	LogFile      = "log.tar.zst.age"
	PlainLogFile = "log.tar.zst"
)

// Partial ends the name of an artefact that broke off: what came of it until then.
const Partial = ".partial"

// incoming begins the name of an artefact that is on its way.
const incoming = ".incoming-"

const (
	defaultTimeout     = time.Hour
	defaultResultLimit = 4 << 30
	powerOffGrace      = 5 * time.Second // from the outcome to the end of QEMU
	panicGrace         = time.Second     // from the first sign of a crash, for the rest of its text
)

// A Config is one run.
type Config struct {
	QEMU                    string // program; "" is DefaultBinary
	Shape                   Shape
	Kernel, Initrd, Cmdline string
	Disk                    string // raw, read-only: firmware boots from it. Kernel is then the UKI that is on it, and is measured alone
	Dir                     string // takes the artefacts; those of an earlier run are removed
	Manifest                []byte // given to the guest as it is
	HostData                [32]byte
	Simulated               bool          // serve the simulated secure processor on vsock port psp.Port
	TEE                     evidence.Kind // what it plays: evidence.SNP, which "" is as well, or evidence.TDX
	Hardware                *TEE          // nil: an ordinary VM. Its InitData is HostData
	PSPDir                  string        // where its chip is kept
	UserNet                 bool          // see Devices
	Azure                   *Azure        // see Devices
	SwapMiB                 int           // size of a disk that is there for this run; 0: none
	SwapDisk                string        // see Devices
	Timeout                 time.Duration // of the whole VM; 0 is an hour
	ResultLimit             int64         // bytes; 0 is 4 GiB
	// OnEvent is called for every event as it arrives, in order, one at a time. The guest waits meanwhile.
	OnEvent func(result.Event)
}

// End says how a VM ended.
type End string

const (
	PoweredOff End = "powered off" // or rebooted, which ends QEMU as well
	Killed     End = "killed: did not power off after its outcome"
	TimedOut   End = "killed: out of time"
	Panicked   End = "kernel panic"
	KVMFailed  End = "KVM internal error"
	Cancelled  End = "killed: cancelled"
	Broken     End = "killed: vsock device failed"
	Failed     End = "QEMU failed"
)

// A Report is what is known of a VM after its end.
type Report struct {
	Outcome     *result.Event // nil when the VM never reported one
	Events      []result.Event
	ResultPath  string // "" when none was delivered, and so for the receipt
	ReceiptPath string
	LogPath     string   // of a run whose result did not go everywhere
	Partial     []string // paths of artefacts that broke off and did not come again
	ConsolePath string
	Command     string // runs the same VM from a shell, without our end of its vsock
	Accel       Accel
	End         End
	Measurement evidence.Measurement // that the simulated processor signed; zero without one
	QEMUStart   time.Time
	FirstEvent  time.Time // zero when there was none
	Zero        time.Time // of the guest's clock: the earliest that its events allow, so it errs by the fastest one's way. Zero without events
	Exited      time.Time
}

// simulatesTDX has the simulation kernel register its reports as those of TDX.
const simulatesTDX = " tsm_sim.format=tdx"

// commandLine is what the kernel gets, and what is measured: which TEE is simulated is the launcher's choice, and one
// image serves for all.
func (cfg *Config) commandLine() string {
	if cfg.Disk != "" {
		return "" // that of the UKI
	}
	if cfg.TEE == evidence.TDX {
		return cfg.Cmdline + simulatesTDX
	}
	return cfg.Cmdline
}

// Command is QEMU's command line for a shell, without our end of the vsock.
func (cfg *Config) Command() string {
	shape := cfg.Shape
	if cfg.Hardware != nil {
		shape.Accel = KVM
	}
	program := cfg.QEMU
	if program == "" {
		program = DefaultBinary
	}
	d := cfg.devices()
	d.Console = filepath.Join(cfg.Dir, ConsoleFile)
	return ShellCommand(program, shape.Args(d))
}

// devices are all but the console and the vsock.
func (cfg *Config) devices() Devices {
	d := Devices{
		Disk: cfg.Disk, Kernel: cfg.Kernel, Initrd: cfg.Initrd, Cmdline: cfg.commandLine(), UserNet: cfg.UserNet, Azure: cfg.Azure, SwapDisk: cfg.SwapDisk,
	}
	if cfg.SwapMiB > 0 {
		d.Swap = filepath.Join(cfg.Dir, SwapFile)
	}
	if cfg.Hardware != nil {
		t := *cfg.Hardware
		t.InitData = cfg.HostData
		d.TEE = &t
	}
	return d
}

// Measurement predicts what the simulated processor will report for cfg.
func (cfg *Config) Measurement() (evidence.Measurement, error) {
	l := measure.Launch{Cmdline: cfg.commandLine(), VCPUs: cfg.Shape.VCPUs}
	for _, f := range []struct {
		dst  *[]byte
		path string
	}{{&l.Firmware, cfg.Shape.Firmware}, {&l.Kernel, cfg.Kernel}, {&l.Initrd, cfg.Initrd}} {
		if f.path == "" {
			continue
		}
		b, err := os.ReadFile(f.path)
		if err != nil {
			return evidence.Measurement{}, fmt.Errorf("measure launch: %w", err)
		}
		if len(b) == 0 {
			return evidence.Measurement{}, fmt.Errorf("measure launch: %s is empty", f.path)
		}
		*f.dst = b
	}
	return measure.Simulated(l), nil
}

// Run launches the VM and returns when QEMU has exited or was killed: by ctx, by the timeout, on a crash, or because the
// guest did not power off in time. Nothing of it is left running. The Report is there as soon as QEMU was started, also
// beside an error; that the guest failed is no error.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.prepare(); err != nil {
		return nil, err
	}
	if cfg.Shape.Accel == "" {
		cfg.Shape.Accel = Probe(ctx, cfg.QEMU)
	}
	if cfg.Hardware != nil {
		if err := cfg.Hardware.check(cfg.Shape); err != nil {
			return nil, err
		}
	}
	h, err := newHost(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	rep := &Report{Accel: cfg.Shape.Accel, ConsolePath: filepath.Join(cfg.Dir, ConsoleFile), Measurement: h.measurement}
	if err = h.makeSwap(); err == nil {
		err = h.boot(ctx, rep)
	}
	err = errors.Join(err, h.close(), os.RemoveAll(filepath.Join(cfg.Dir, SwapFile)))
	h.server.report(rep)
	return rep, err
}

func (cfg *Config) prepare() error {
	if err := cfg.Shape.check(); err != nil {
		return err
	}
	switch {
	case cfg.TEE != "" && cfg.TEE != evidence.SNP && cfg.TEE != evidence.TDX:
		return fmt.Errorf("TEE %q: want %s, %s or none", cfg.TEE, evidence.SNP, evidence.TDX)
	case cfg.TEE != "" && !cfg.Simulated:
		return fmt.Errorf("TEE %q: is for the simulated processor, which was not asked for", cfg.TEE)
	case cfg.Hardware != nil && cfg.Simulated:
		return fmt.Errorf("TEE %s: either on hardware or simulated", cfg.Hardware.Kind)
	case cfg.Disk != "" && (cfg.Shape.Firmware == "" || cfg.Kernel == "" || cfg.Initrd != "" || cfg.TEE == evidence.TDX || cfg.Hardware != nil):
		return errors.New("disk: it takes firmware to boot from it, the UKI that is on it, and no initramfs; simulated TDX and a TEE of hardware are started with a kernel")
	}
	if cfg.QEMU == "" {
		cfg.QEMU = DefaultBinary
	}
	path, err := exec.LookPath(cfg.QEMU)
	if err != nil {
		return fmt.Errorf("QEMU: %w; on Debian: apt install qemu-system-x86", err)
	}
	cfg.QEMU = path
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.ResultLimit <= 0 {
		cfg.ResultLimit = defaultResultLimit
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("artefacts: %w", err)
	}
	for _, name := range []string{ConsoleFile, StderrFile, EventsFile, ReceiptFile, SealedFile, PlainFile, LogFile, PlainLogFile, SwapFile,
		ReceiptFile + Partial, SealedFile + Partial, PlainFile + Partial, LogFile + Partial, PlainLogFile + Partial} {
		if err := os.RemoveAll(filepath.Join(cfg.Dir, name)); err != nil {
			return fmt.Errorf("artefacts of an earlier run: %w", err)
		}
	}
	unfinished, err := filepath.Glob(filepath.Join(cfg.Dir, incoming+"*")) // of a host that was killed
	if err != nil {
		return err
	}
	for _, path := range unfinished {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("artefacts of an earlier run: %w", err)
		}
	}
	return nil
}

// pspLaunch is the simulated processor of a run, and what it will say of it.
func (cfg *Config) pspLaunch() (*psp.PSP, psp.Launch, error) {
	m, err := cfg.Measurement()
	if err != nil {
		return nil, psp.Launch{}, err
	}
	p, err := psp.New(cfg.PSPDir)
	return p, psp.Launch{Measurement: m, HostData: cfg.HostData}, err
}
