// Package cvms is the guest's end of Cocos' protocol between an agent and a computation server (wire/SPEC.md §6.3 to §6.5): the
// manifest comes from there, and states go there.
//
// The server belongs to the host, as every source of a manifest does, and it learns what the host learns: states, reasons, and its own
// computation's id. Nothing here is authenticated. Whether a manifest is the right one is judged by its bytes, which are a function of the
// request alone. A server that stalls, breaks off or floods costs a run that has its manifest nothing.
package cvms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// What bounds a request in chunks.
const (
	maxChunks   = 1024
	maxID       = 256              // bytes of a computation's id
	chunkLimit  = 30 * time.Second // between two chunks
	maxQueued   = 64               // messages that wait for a server which does not read; later ones are dropped
	maxAnswered = 16               // of those, answers: no flood of questions displaces a state
)

// An Agent is one stream to a computation server. Open makes it.
type Agent struct {
	stop      func()
	cancel    context.CancelCauseFunc
	transport *http.Transport
	patience  time.Duration // chunkLimit, but in tests

	wake  chan struct{} // holds one token when there is something to send
	got   chan struct{} // closed when raw and problem are set
	ended chan struct{} // closed when the stream is over; err is set then
	err   error

	mu      sync.Mutex
	raw     []byte // the manifest
	problem error  // why there is none
	settled bool
	chunks  []byte // of the request
	count   int
	timer   *time.Timer
	id      string // of the computation
	data    bool   // it has datasets
	state   string
	stopped bool
	closing bool
	queue   [][]byte
}

// Open begins to speak with the server at addr, HOST:PORT. It returns at once: what is wrong with the server, Manifest says. stop is called
// once, if the server stops the computation that it sent; it must not block. The Agent lives until Close.
func Open(addr string, stop func()) *Agent { return start(addr, stop, chunkLimit) }

func start(addr string, stop func(), patience time.Duration) *Agent {
	ctx, cancel := context.WithCancelCause(context.Background()) // it outlives the step that opens it
	a := &Agent{
		stop: stop, cancel: cancel, transport: newTransport(), patience: patience, state: "ReceivingManifest",
		wake: make(chan struct{}, 1), got: make(chan struct{}), ended: make(chan struct{}),
	}
	body, messages := io.Pipe()
	a.send(reportMessage(), maxQueued)
	go a.write(messages)
	go func() {
		defer close(a.ended)
		defer a.transport.CloseIdleConnections()
		defer body.Close()
		defer cancel(nil)
		a.err = a.read(ctx, addr, body)
	}()
	return a
}

// Manifest waits for the request and returns it as the JSON of agent.Computation, at most MaxRequest bytes.
func (a *Agent) Manifest(ctx context.Context) ([]byte, error) {
	select {
	case <-a.got:
	case <-a.ended:
		a.settle(nil, cmp.Or(a.err, errors.New("it ended the call and had sent no whole request"))) // unless it is settled
	case <-ctx.Done():
		a.settle(nil, context.Cause(ctx))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.problem != nil {
		return nil, fmt.Errorf("manifest from the computation server: %w", a.problem)
	}
	return a.raw, nil
}

// settle decides once what Manifest says. Of what comes later nothing is kept.
func (a *Agent) settle(raw []byte, problem error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.settleLocked(raw, problem)
}

func (a *Agent) settleLocked(raw []byte, problem error) {
	if a.settled {
		return
	}
	a.settled, a.raw, a.problem, a.chunks = true, raw, problem, nil
	if a.timer != nil {
		a.timer.Stop()
	}
	close(a.got)
}

// Close sends what is queued, and waits until the server has it and ends the call, or until ctx ends. The error says why the server may
// not have heard all. Nothing is left running.
func (a *Agent) Close(ctx context.Context) error {
	a.mu.Lock()
	a.closing = true
	a.poke()
	a.mu.Unlock()
	select {
	case <-a.ended:
	case <-ctx.Done():
		a.cancel(context.Cause(ctx))
		<-a.ended
	}
	a.settle(nil, errors.New("closed"))
	return a.err
}

// read is the call: it says why it is over.
func (a *Agent) read(ctx context.Context, addr string, body io.Reader) (err error) {
	defer func() {
		if p := recover(); p != nil { // a server must not end PID 1
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	resp, err := open(ctx, a.transport, addr, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var buf []byte
	for {
		if buf, err = readFrame(resp.Body, buf); errors.Is(err, io.EOF) {
			return ending(resp)
		}
		if err != nil {
			return err
		}
		m, err := parseServer(buf)
		if err != nil {
			return err
		}
		if m.disconnect {
			return errors.New("the server closed the stream")
		}
		if a.hear(m) {
			a.stop()
		}
	}
}

// hear takes in one message, and says whether it stops the computation.
func (a *Agent) hear(m serverMessage) (stop bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case m.state != nil && len(*m.state) <= maxID:
		a.sendLocked(stateMessage(*m.state, a.state), maxAnswered)
	case m.stop != nil && a.settled && a.id != "" && *m.stop == a.id && !a.stopped:
		a.sendLocked(eventMessage(a.id, "Stopped", "Stopped", time.Now()), maxQueued)
		a.sendLocked(stoppedMessage(a.id), maxQueued)
		a.stopped = true
		return true
	case a.settled: // a second request is none, as with Cocos' agent
	case m.request != nil:
		a.takeLocked(m.request)
	case m.chunk != nil:
		if err := a.joinLocked(m.chunk); err != nil {
			a.settleLocked(nil, err)
		}
	}
	return false
}

// joinLocked adds one chunk, and takes the request when it was the last.
func (a *Agent) joinLocked(c *chunk) error {
	if a.count++; a.count == 1 {
		if len(c.id) > maxID {
			return fmt.Errorf("a chunk's id has %d bytes, at most %d", len(c.id), maxID)
		}
		a.id = c.id
		a.timer = time.AfterFunc(a.patience, func() { a.settle(nil, fmt.Errorf("the next chunk of the request did not come within %v", a.patience)) })
	}
	switch {
	case c.id != a.id:
		return fmt.Errorf("a chunk of %.80q among those of %.80q", c.id, a.id)
	case a.count > maxChunks:
		return fmt.Errorf("more than %d chunks", maxChunks)
	case len(a.chunks)+len(c.data) > MaxRequest:
		return fmt.Errorf("chunks of more than %d bytes", MaxRequest)
	}
	a.chunks = append(a.chunks, c.data...)
	a.timer.Reset(a.patience)
	if c.last {
		a.takeLocked(a.chunks)
	}
	return nil
}

// takeLocked makes the manifest of a request.
func (a *Agent) takeLocked(request []byte) {
	c, err := parseRequest(request)
	if c.ID != "" && len(c.ID) <= maxID {
		a.id = c.ID
	}
	if err == nil && len(c.ID) > maxID {
		err = fmt.Errorf("run request: its id has %d bytes, at most %d", len(c.ID), maxID)
	}
	var raw []byte
	if err == nil {
		raw, err = c.manifest()
	}
	a.data = len(c.Datasets) > 0
	a.settleLocked(raw, err)
}

// A moment is what a server hears: an event's type, which is the state as well, and its status.
type moment struct{ state, status string }

// moments say what the steps of PID 1 are in Cocos' states (wire/SPEC.md §6.5).
var moments = map[[2]string][]moment{
	{"resolve", result.Start}: {{"ReceivingAlgorithm", "InProgress"}},
	{"pull", result.Start}:    {{"ReceivingData", "InProgress"}},
	{"execute", result.Start}: {{"Running", "Starting"}, {"Running", "InProgress"}},
	{"execute", result.Done}:  {{"Running", "Completed"}},
	{"deliver", result.Start}: {{"ConsumingResults", "Ready"}},
}

// Send tells the server what e means to it, if anything. It never waits for the server.
func (a *Agent) Send(e result.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.id == "" || a.stopped || a.closing: // nothing that a server could know of
	case e.Event == result.OutcomeEvent && e.Reason == result.OK:
		a.tellLocked(moment{"Complete", "Completed"})
	case e.Event == result.OutcomeEvent:
		a.tellLocked(moment{"Failed", "Failed"})
	case e.Event != result.StepEvent:
	case e.Step == "manifest" && e.State == result.Done:
		a.sendLocked(runMessage(a.id, ""), maxQueued)
	case e.Step == "manifest" && e.State == result.Failed:
		a.sendLocked(runMessage(a.id, string(e.Reason)), maxQueued)
	case e.Step == "pull" && !a.data:
	default:
		for _, m := range moments[[2]string{e.Step, e.State}] {
			a.tellLocked(m)
		}
	}
}

func (a *Agent) tellLocked(m moment) {
	a.state = m.state
	a.sendLocked(eventMessage(a.id, m.state, m.status, time.Now()), maxQueued)
}

func (a *Agent) send(m []byte, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sendLocked(m, most)
}

// sendLocked queues a message, or drops it where so many wait already.
func (a *Agent) sendLocked(m []byte, most int) {
	if len(a.queue) < most {
		a.queue = append(a.queue, frame(m))
		a.poke()
	}
}

// poke wakes the writer; the caller holds mu.
func (a *Agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// write sends what is queued until Close, or until the stream takes no more.
func (a *Agent) write(w *io.PipeWriter) {
	defer w.Close()
	for {
		a.mu.Lock()
		messages, closing := a.queue, a.closing
		a.queue = nil
		a.mu.Unlock()
		for _, m := range messages {
			if _, err := w.Write(m); err != nil {
				return
			}
		}
		if len(messages) > 0 {
			continue
		}
		if closing {
			return
		}
		select {
		case <-a.wake:
		case <-a.ended:
			return
		}
	}
}
