package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/object"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
	"github.com/ampoule-vm/ampoule/internal/tree"
	"github.com/ampoule-vm/ampoule/internal/workload"
	"golang.org/x/sync/errgroup"
)

// An input is one image of the manifest, or one file, on its way to the workload.
type input struct {
	name  string // "algorithm", "datasets[0]", … as the manifest's paths have it
	want  manifest.Resource
	image *image.Image
	keys  []string       // paths of the keys that open it, at its broker
	file  *object.Object // instead of image
	dir   string         // where it is unpacked, once it is verified
}

func (r *run) mount(context.Context) error {
	if err := r.machine.mount(); err != nil {
		return err
	}
	line, err := r.commandLine()
	if err != nil {
		return err
	}
	r.simulated = r.tsmSimulated() // before anything that can fail: every line says so
	line, foreign := r.baked.own(line)
	r.opts, err = cmdline.Parse(line)
	r.connect()
	time.AfterFunc(r.opts.Deadline, func() { r.stop(errDeadline) })
	return because(result.BadManifest, errors.Join(foreign, err))
}

func (r *run) lockdown(context.Context) error { return r.machine.lockdown() }

func (r *run) platform(context.Context) (err error) {
	if r.opts.Simulation() != r.simulated {
		return fmt.Errorf("the command line says %s and the kernel's TSM provider is simulated: %v", r.opts.Profile, r.simulated)
	}
	r.dev, err = r.openTEE(driversFor(r.opts))
	return err
}

func (r *run) network(ctx context.Context) error { return r.machine.network(ctx, r.opts.Net) }

func (r *run) manifest(ctx context.Context) error {
	raw, err := r.fetch(ctx)
	if err != nil {
		return err
	}
	if r.doc, err = manifest.Parse(raw, r.opts.Allow.Has); err != nil {
		return err
	}
	for i, to := range r.doc.Results.Recipients {
		if err := result.CheckRecipient(to); err != nil {
			return fmt.Errorf("results.recipients[%d]: %w", i, err)
		}
	}
	if !r.sealed() && !r.opts.Allow.Has(cmdline.AllowUnsealed) {
		return errors.New("results.recipients: is empty, so nobody could read the result; name an age recipient")
	}
	return checkSinks(r.doc.Results.Sinks, r.opts.Allow.Has(cmdline.AllowHTTP))
}

// bind holds the manifest against what the launch was bound to. Every binding that is there must hold; the strongest
// is reported. Until this step is over nothing in the manifest may be acted upon.
func (r *run) bind(ctx context.Context) error {
	r.initdata = manifest.Wrap(r.doc.Raw())
	digest := manifest.InitdataDigest(r.initdata)
	ev, err := r.dev.Evidence(ctx, [64]byte{})
	if err != nil {
		return because(result.NoTEE, err)
	}
	launch, err := ev.Launch()
	if err != nil {
		return because(result.NoTEE, err)
	}
	r.launch, r.tcb = launch.Measurement, ev.TCB()
	atStart, err := boundAtStart(launch, digest, r.opts, r.doc.SHA384())
	if err != nil {
		return err
	}
	if atStart != result.BindLaunch {
		if r.register, err = measure(ctx, r.dev, digest); err != nil {
			return err
		}
	}
	r.binding, err = binding(atStart, r.register, launch.Register, r.opts)
	return err
}

// boundAtStart tells how the launch itself fixed the manifest: BindLaunch, BindPinned, or BindNone for not at all.
func boundAtStart(l evidence.Launch, initdata [32]byte, o cmdline.Options, sha384 [48]byte) (string, error) {
	bound, pinned := !l.Empty(), o.SHA384 != nil
	switch {
	case bound && !l.FixedAtLaunch():
		return "", fmt.Errorf("%s is %x before this boot has extended it: something else measures into it", l.Register, l.InitData)
	case bound && !l.Holds(initdata):
		return "", fmt.Errorf("%s is %x and the manifest's initdata digest is %x: launch with the manifest that you send", l.Register, l.InitData, initdata)
	case pinned && !bytes.Equal(o.SHA384, sha384[:]):
		return "", fmt.Errorf("ampoule.manifest-sha384 is %x and the manifest's SHA-384 is %x", o.SHA384, sha384)
	case bound:
		return result.BindLaunch, nil
	case pinned:
		return result.BindPinned, nil
	}
	return result.BindNone, nil
}

// measure extends the register that a guest may extend itself, where this TEE has one; "" where it has none.
func measure(ctx context.Context, dev tee.Device, initdata [32]byte) (register string, err error) {
	m, ok := dev.(tee.Measurer)
	if !ok {
		return "", nil
	}
	register, err = m.Measure(ctx, initdata)
	if errors.Is(err, tee.ErrNotFound) {
		return "", nil
	}
	return register, err
}

// binding is the strongest one; not at all is an answer only where the image permits it.
func binding(atStart, measured, register string, o cmdline.Options) (string, error) {
	switch {
	case atStart != result.BindNone:
		return atStart, nil
	case measured != "":
		return result.BindRuntime, nil
	case o.Allow.Has(cmdline.AllowUnbound):
		return result.BindNone, nil
	case register == "":
		register = "there is no register for it"
	default:
		register += " is zero"
	}
	return "", fmt.Errorf("%s and the command line pins no manifest: nothing ties this manifest to this launch", register)
}

// swap makes room beyond the machine's memory, where the command line names a disk for it. It comes after bind, so that an owner learns
// what was wrong with the disk.
func (r *run) swap(ctx context.Context) error {
	if r.opts.Swap == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, diskWait)
	defer cancel()
	free, err := r.memory()
	if err != nil {
		return err
	}
	size, err := r.machine.swap(ctx, r.opts.Swap, free.memory)
	if err != nil {
		return err
	}
	r.private.Info("swap", "disk", r.opts.Swap, "mib", size>>20)
	return nil
}

// diskWait is how long a disk may take to be found: NVMe and SCSI are looked for while PID 1 runs already.
const diskWait = 20 * time.Second

func (r *run) resolve(ctx context.Context) error {
	if err := r.checkEgress(); err != nil {
		return because(result.BadManifest, err)
	}
	r.inputs = inputsOf(r.doc)
	if err := r.checkHelper(); err != nil {
		return err
	}
	if err := r.admit(ctx); err != nil {
		return err
	}
	var all errgroup.Group
	for i, in := range r.inputs {
		all.Go(guarded(func() error {
			if in.want.IsFile() {
				if err := r.resolveFile(ctx, in); err != nil {
					return fmt.Errorf("%s: %w", in.name, err)
				}
				r.resolved(i, in.size())
				return nil
			}
			o, err := r.imageOptions(in.want.URI)
			if err != nil {
				return err
			}
			if in.image, err = r.machine.resolve(ctx, in.want.URI, o); err != nil {
				return fmt.Errorf("%s: %w", in.name, err)
			}
			if err := in.checkResolved(r.kindOf(in.image)); err != nil {
				return err
			}
			if err := r.verified(ctx, in); err != nil {
				return err
			}
			r.resolved(i, in.size())
			return nil
		}))
	}
	if err := all.Wait(); err != nil {
		return err
	}
	if err := r.checkPolicy(); err != nil {
		return err
	}
	return r.fits()
}

// check holds an image against what the manifest says of it, before a key is asked for.
func (in *input) check() error {
	if !in.want.Encrypted {
		for _, l := range in.image.Layers {
			if l.Encrypted {
				return fmt.Errorf(`%s: %s is encrypted and the manifest does not say "encrypted": true`, in.name, in.want.URI)
			}
		}
		return nil
	}
	if err := in.image.RequireEncrypted(); err != nil {
		return fmt.Errorf("%s: %w", in.name, err)
	}
	// The image's annotations are the host's to write where a tag is allowed; the manifest's word is the owner's.
	var err error
	if in.keys, err = in.image.Wants(in.want.KeyPath); err != nil {
		return fmt.Errorf("%s: %w", in.name, err)
	}
	if err := contradicts(in.image.KeyHosts(in.keys), in.want.Broker); err != nil {
		return fmt.Errorf("%s: %w", in.name, err)
	}
	for _, l := range in.image.Layers {
		if l.ForKeyPair() && !in.image.Pinned {
			// A key packet is made by somebody who has its key; these, by whoever has a public one.
			return fmt.Errorf("%s: %s is a tag, and layers for a JWE or PKCS #7 key could be anybody's: name the image's digest", in.name, in.want.URI)
		}
	}
	return nil
}

// contradicts refuses an image whose key ids name another broker than the manifest. Asking that one would let the image
// choose its own judge; asking the manifest's would be a guess.
func contradicts(hosts []string, broker string) error {
	u, err := url.Parse(broker)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if !strings.EqualFold(h, u.Host) {
			return fmt.Errorf("the image's keys are at %q and the manifest's broker is %s: encrypt it with kbs:///repository/type/tag", h, broker)
		}
	}
	return nil
}

func (r *run) attest(ctx context.Context) (err error) {
	wants := append(append(wantsOf(r.inputs), r.workloadWants()...), r.sinkWants()...)
	if len(wants) == 0 {
		return r.keepUploads() // nothing is encrypted, nothing granted: there is nobody to ask
	}
	if r.grant, err = r.ask(ctx, wants); err != nil {
		return err
	}
	if err := r.keepUploads(); err != nil {
		return err
	}
	return r.unseal(ctx)
}

func (r *run) pull(ctx context.Context) error {
	if r.grant != nil {
		defer r.grant.Zero()
	}
	defer r.zeroStoreLogins()
	free, err := r.memory()
	if err != nil {
		return because(result.Internal, err)
	}
	most := free.total()
	if limit := r.doc.Resources.InputBytes; limit > 0 {
		most = min(most, limit)
	}
	limits := image.Limits{Chown: true, Bytes: most, Pool: tree.NewPool(most)} // each alone can have it all, but not each of them
	all, ctx := errgroup.WithContext(ctx)
	for i, in := range r.inputs {
		in.dir = filepath.Join(r.dir, "input-"+strconv.Itoa(i))
		all.Go(guarded(func() error {
			m := r.meter(i, in.size())
			defer m.stop()
			if err := r.pullOne(ctx, in, limits, m.add); err != nil {
				return fmt.Errorf("%s: %w", in.name, err)
			}
			m.verified()
			return nil
		}))
	}
	return all.Wait()
}

func (r *run) pullOne(ctx context.Context, in *input, limits image.Limits, progress func(int64)) error {
	if in.file != nil {
		return r.pullFile(ctx, in, limits, progress)
	}
	keys := r.keysFor(in)
	defer keys.Zero()
	if err := r.unpack(ctx, in.image, in.dir, keys, limits, progress); err != nil {
		return err
	}
	if in == r.inputs[0] {
		return nil // plan knows which file is meant
	}
	return checkFile(in, "")
}

// execute fails only when the workload could not be started as asked. How it ended is output, and the verdict.
func (r *run) execute(ctx context.Context) error {
	ctx, cancel := r.workloadContext(ctx)
	defer cancel()
	spec, err := r.spec()
	if err != nil {
		return err
	}
	defer r.secrets.zero()
	if api := r.guestAPI(); api != nil {
		spec.Services = append(spec.Services, workload.Service{Addr: guestAPIAddress, Serve: func(l net.Listener) {
			defer func() {
				if p := recover(); p != nil { // the workload can ask again, and learns nothing
					r.private.Error("guest API", "panic", p)
				}
			}()
			if err := api.Serve(ctx, l); err != nil && !errors.Is(err, net.ErrClosed) {
				r.private.Warn("guest API", "error", err)
			}
		}})
	}
	report, err := r.openGate(ctx, &spec)
	if err != nil {
		return because(result.Internal, err)
	}
	r.started = r.uptime()
	out, err := r.runWorkload(ctx, spec)
	r.ended = r.uptime()
	report()
	r.logs.close()
	switch {
	case errors.Is(err, workload.ErrProgram):
		return err
	case err != nil:
		return because(result.Internal, err)
	}
	r.output = &out
	return nil
}

func (r *run) seal(ctx context.Context) (err error) {
	p := &parcel{path: filepath.Join(r.dir, "result")}
	r.private.Info("memory", "peak_kib", peakMemory()) // ampoule bench reads it
	if r.opts.Swap != "" {
		in, out, err := readTraffic("/sys/block/" + r.opts.Swap + "/stat")
		r.private.Info("swapped", "in_mib", in>>20, "out_mib", out>>20, "error", err)
	}
	p.digests, err = r.pack(p.path, true)
	if errors.Is(err, result.ErrLimit) || errors.Is(err, result.ErrEntry) {
		return because(result.Workload, err) // it wrote more than the manifest takes, or what is no file
	}
	if err != nil {
		return err
	}
	if p.receipt, err = r.receipt(ctx, p.digests); err != nil {
		return err
	}
	r.parcel = p
	return nil
}

// guarded turns a panic of a goroutine into an error: one that got out would end PID 1 unreported.
func guarded(f func() error) func() error {
	return func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = because(result.Internal, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
			}
		}()
		return f()
	}
}
