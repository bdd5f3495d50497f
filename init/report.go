package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// Three audiences: the console and the events are the host's and carry step, reason, counts and durations; the private
// log is the owner's and leaves the machine only inside the sealed result; the workload's output is the owner's too.

// line writes one line of the table to the console.
func (r *run) line(i, n int, step, state string, took time.Duration) {
	fmt.Fprintf(r.console, "%s %2d/%d %-8s %s %d ms\n", r.banner(), i+1, n, step, state, took.Milliseconds())
}

// banner begins every line: a simulated TEE says so on each.
func (r *run) banner() string {
	if r.simulated {
		return "ampoule SIMULATION"
	}
	return "ampoule"
}

// emit adds e to the timeline and hands it to the host, once there is one.
func (r *run) emit(e result.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Time, e.Profile = r.uptime().Microseconds(), r.opts.Profile // in order, whoever calls
	if e.Event == result.StepEvent && e.State != result.Start {
		r.timeline = append(r.timeline, e)
	}
	if r.peer == nil {
		r.early = append(r.early, e)
		return
	}
	r.peer.Send(e)
	if r.server != nil {
		r.server.Send(e)
	}
}

// connect opens the channel to the host and hands over what happened before.
func (r *run) connect() {
	// The stream outlives every deadline but its own: it carries the outcome.
	p := r.host(context.Background(), r.port())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peer = p
	for _, e := range r.early {
		e.Profile = r.opts.Profile
		p.Send(e)
	}
	r.early = nil
}

// progressEvery is the least time between two progress events of all inputs together: an hour of them is some
// 3 MB, of the 16 MiB that a host keeps.
const progressEvery = 200 * time.Millisecond

// A meter tells the host how far one input is.
type meter struct {
	r     *run
	event result.Event
	start time.Duration
	every time.Duration

	mu   sync.Mutex
	next time.Duration // when the next event is due
	sent bool          // event is as the host has it
}

// resolved announces input i, of total bytes.
func (r *run) resolved(i int, total int64) {
	r.emit(result.Event{Event: result.ProgressEvent, Step: "resolve", Input: &i, Phase: result.Resolved, Total: total})
}

// meter begins to measure the pull of input i, of total bytes.
func (r *run) meter(i int, total int64) *meter {
	e := result.Event{Event: result.ProgressEvent, Step: "pull", Input: &i, Phase: result.Pulling, Total: total}
	return &meter{r: r, event: e, start: r.uptime(), every: progressEvery * time.Duration(len(r.inputs)), sent: true}
}

// add counts fetched bytes. It is called from several goroutines and never waits for the host.
func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.event.Bytes += n
	m.r.pulled.Add(n)
	m.sent = false
	if now := m.r.uptime(); now >= m.next || m.event.Bytes == m.event.Total {
		m.next = now + m.every
		m.send()
	}
}

// verified says that the input is complete.
func (m *meter) verified() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.event.Phase = result.Verified
	m.send()
}

// stop says how far an input came that did not get to its end.
func (m *meter) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.sent {
		m.send()
	}
}

// send needs the lock: the numbers that the host sees only ever grow.
func (m *meter) send() {
	m.event.Micros = (m.r.uptime() - m.start).Microseconds()
	m.r.emit(m.event)
	m.sent = true
}

// explain writes an error down for the owner, and on the console only where the measured command line says so.
func (r *run) explain(step string, err error) {
	r.private.Error("step failed", "step", step, "error", err)
	if r.opts.Allow.Has(cmdline.AllowErrors) {
		fmt.Fprintf(r.console, "%s error: %v\n", r.banner(), err)
	}
}

// verdict is the outcome of a run whose steps all did their work.
func (r *run) verdict() (step string, reason result.Reason) {
	switch o := r.output; {
	case o == nil:
		return "", result.OK
	case o.Deadline:
		return "execute", result.Deadline
	case o.Exit != 0 || o.Signal != "" || o.OOM:
		return "execute", result.Workload
	}
	return "", result.OK
}

// exitStatus is the workload's own status, nil if it never ended by itself.
func (r *run) exitStatus() *int {
	if r.output == nil || r.output.Signal != "" || r.output.Deadline {
		return nil
	}
	return &r.output.Exit
}

// report tells the outcome. An owner whose manifest is bound also gets the private log of a run that failed, sealed;
// before that the recipients may be the host's own, so nothing is said.
func (r *run) report(outcome result.Event) {
	if r.peer == nil {
		r.connect()
	}
	if r.binding != "" && r.parcel == nil && len(r.doc.Results.Recipients) > 0 {
		// A time of its own: a host that is slow to take the log must still hear the outcome.
		ctx, cancel := context.WithTimeout(context.Background(), reportLimit)
		if err := r.sendLog(ctx); err != nil {
			r.private.Error("deliver the log", "error", err)
		}
		cancel()
	}
	_, _ = r.timed(context.Background(), wiping) // what it says is in the event
	r.emit(outcome)
	in := ""
	if outcome.Step != "" {
		in = " in " + outcome.Step
	}
	fmt.Fprintf(r.console, "%s outcome %s%s\n", r.banner(), outcome.Reason, in)
	ctx, cancel := context.WithTimeout(context.Background(), reportLimit)
	defer cancel()
	r.peer.Close(ctx) // an outcome that the host does not take is the host's loss
	r.hangUp()
}

// sealed says whether results are encrypted; parsing refused a manifest without recipients where that is not permitted.
func (r *run) sealed() bool { return len(r.doc.Results.Recipients) > 0 }

// peakMemory is the most memory that PID 1 itself has held, KiB: code and heap, not what lies in its file systems.
func peakMemory() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // cannot be, with these arguments
	}
	return u.Maxrss
}

// readTraffic is what has been read from a disk and written to it since the machine started, bytes. path is its stat file below
// /sys/block, whose third and seventh fields count sectors.
func readTraffic(path string) (read, written int64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	var skip int64
	if _, err := fmt.Sscan(string(b), &skip, &skip, &read, &skip, &skip, &skip, &written); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	return read * 512, written * 512, nil
}

// pack writes logs, timeline and, if asked, results to path, sealed to the manifest's recipients. The results are gone then:
// memory does not hold them twice.
func (r *run) pack(path string, results bool) (result.Digests, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return result.Digests{}, err
	}
	defer f.Close()
	var tree result.Tree
	if results {
		tree = result.Tree{Dir: r.resultsDir(), Limit: r.doc.Results.LimitBytes, Consume: true}
	}
	d, err := result.Pack(f, r.doc.Results.Recipients, tree, r.attachments())
	if err != nil {
		return result.Digests{}, err
	}
	return d, f.Close()
}

func (r *run) attachments() []result.File {
	r.mu.Lock()
	events := slices.Clone(r.timeline)
	r.mu.Unlock()
	return []result.File{
		{Name: result.BootLogName, Data: r.log.Bytes()},
		{Name: result.StdoutName, Data: r.logs.out.Bytes()},
		{Name: result.StderrName, Data: r.logs.err.Bytes()},
		{Name: result.TimelineName, Data: result.Lines(events)},
	}
}

func (r *run) sendLog(ctx context.Context) error {
	path := filepath.Join(r.dir, "log")
	if _, err := r.pack(path, false); err != nil {
		return err
	}
	return r.send(ctx, path)
}

func (r *run) send(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return r.peer.PutResult(ctx, f, fi.Size())
}

// predicate is what the receipt says of this run.
func (r *run) predicate() result.Predicate {
	_, reason := r.verdict()
	sha384 := r.doc.SHA384()
	p := result.Predicate{
		ComputationID: r.doc.ComputationID, Profile: r.opts.Profile,
		ManifestSHA384: fmt.Sprintf("%x", sha384), InitdataSHA256: fmt.Sprintf("%x", r.initdataDigest()),
		Binding: r.binding, Measurement: r.launch.String(), Sealed: r.sealed(), Reason: reason,
		Workload: result.Ending{
			Exit: r.exitStatus(), Signal: r.output.Signal, Deadline: r.output.Deadline, OOM: r.output.OOM,
			Started: r.started.Microseconds(), Ended: r.ended.Microseconds(),
		},
	}
	r.mu.Lock()
	p.Timeline = slices.Clone(r.timeline)
	r.mu.Unlock()
	for _, in := range r.inputs {
		p.Images = append(p.Images, in.described())
	}
	p.Notes = r.notes()
	r.provenance(&p)
	return p
}

// notes lists what was laxer than the strict default.
func (r *run) notes() []string {
	var notes []string
	if r.simulated {
		notes = append(notes, "the TEE is simulated: nothing here was confidential")
	}
	if r.binding == result.BindNone {
		notes = append(notes, "the manifest was bound to nothing")
	}
	if !r.sealed() {
		notes = append(notes, "the result was returned in clear: the manifest names no recipients")
	}
	for _, in := range r.inputs {
		d := in.described()
		switch {
		case d.Pinned:
		case in.file != nil:
			notes = append(notes, in.name+" was neither encrypted nor named by digest")
		default:
			notes = append(notes, in.name+" was named by tag, not by digest")
		}
		switch {
		case d.PlainHTTP && in.file != nil:
			notes = append(notes, in.name+" came over plain http")
		case d.PlainHTTP:
			notes = append(notes, in.name+" came from a registry over plain http")
		}
	}
	if note := r.egressNote(); note != "" {
		notes = append(notes, note)
	}
	for _, b := range r.doc.Brokers {
		if isPlainHTTP(b.URL) {
			notes = append(notes, "key broker "+b.URL+" was asked over plain http")
		}
	}
	return notes
}
