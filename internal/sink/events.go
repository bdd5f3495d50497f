package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// How many events wait for a host that does not read. Later ones are dropped: progress and output first, so that they do
// not displace the steps, and an outcome never.
const (
	maxQueued   = 256
	maxProgress = 128
)

// An EventStream carries events to the host in one request, in order, and in a second one at the end if the first broke off.
// Send never waits for the host.
type EventStream struct {
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the request is over; err is set then
	err    error
	wake   chan struct{} // holds one token when there is something to do
	pumped chan struct{} // closed when nothing more is taken from the queue
	post   func(context.Context, io.Reader) error

	mu      sync.Mutex
	queue   [][]byte
	closing bool
	dropped int
}

// Events opens the stream. It lives until Close, or until ctx ends; the outcome is sent last, so ctx should outlive the
// boot's own deadline.
func (v *Vsock) Events(ctx context.Context) *EventStream {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &EventStream{cancel: cancel, ended: make(chan struct{}), wake: make(chan struct{}, 1), pumped: make(chan struct{}), post: v.postEvents}
	body, lines := io.Pipe()
	go s.pump(lines)
	go func() {
		defer close(s.ended)
		defer cancel(nil)
		s.err = v.postEvents(ctx, body)
		body.CloseWithError(errors.New("the event stream is over"))
	}()
	return s
}

func (v *Vsock) postEvents(ctx context.Context, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://host/v1/events", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	return v.do(req)
}

// Send queues an event, or drops it when the host is too far behind. An outcome is never dropped.
func (s *EventStream) Send(e result.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	minor := e.Event == result.ProgressEvent || e.Event == result.OutputEvent
	full := len(s.queue) >= maxQueued && e.Event != result.OutcomeEvent || len(s.queue) >= maxProgress && minor
	if s.closing || full {
		s.dropped++
		return
	}
	s.queue = append(s.queue, e.Line())
	s.poke()
}

// Dropped is the number of events that were not queued.
func (s *EventStream) Dropped() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// Close sends what is queued and waits for the host to confirm it, until ctx ends at the latest. What waits since the request
// broke off, at a host's time-out for instance, is sent in another one: it has the outcome. Close returns why events were
// lost, if any that were queued were. Nothing is left running.
func (s *EventStream) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.poke()
	s.mu.Unlock()
	select {
	case <-s.ended:
	case <-ctx.Done():
		s.cancel(context.Cause(ctx))
		<-s.ended
	}
	<-s.pumped
	if left := slices.Concat(s.queue...); len(left) > 0 && ctx.Err() == nil {
		s.err = errors.Join(s.err, s.post(ctx, bytes.NewReader(left)))
	}
	if s.err != nil {
		return fmt.Errorf("events: %w", s.err)
	}
	return nil
}

// poke wakes the pump; the caller holds mu.
func (s *EventStream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// pump writes lines until Close, or until the request takes no more.
func (s *EventStream) pump(w *io.PipeWriter) {
	defer close(s.pumped)
	defer w.Close()
	for {
		s.mu.Lock()
		lines, closing := s.queue, s.closing
		s.queue = nil
		s.mu.Unlock()
		for i, l := range lines {
			if _, err := w.Write(l); err != nil {
				s.mu.Lock()
				s.queue = append(lines[i:], s.queue...)
				s.mu.Unlock()
				return
			}
		}
		if len(lines) > 0 {
			continue
		}
		if closing {
			return
		}
		select {
		case <-s.wake:
		case <-s.ended:
			return
		}
	}
}
