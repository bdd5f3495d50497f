package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// A fakeHost takes everything, as a host that behaves would.
type fakeHost struct {
	mu      sync.Mutex
	events  []result.Event
	result  []byte
	receipt []byte
	late    []byte // the log of what came after the result
	closed  bool
	refuse  error // of PutResult
}

func (h *fakeHost) Send(e result.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *fakeHost) PutResult(_ context.Context, r io.Reader, size int64) error {
	b, err := io.ReadAll(io.LimitReader(r, size))
	h.result = b
	if h.refuse != nil {
		h.result, err = nil, h.refuse
	}
	return err
}

func (h *fakeHost) PutLog(_ context.Context, r io.Reader, size int64) (err error) {
	h.late, err = io.ReadAll(io.LimitReader(r, size))
	return err
}

func (h *fakeHost) PutReceipt(_ context.Context, b []byte) error { h.receipt = b; return nil }
func (h *fakeHost) Close(context.Context) error                  { h.closed = true; return nil }

func (h *fakeHost) outcomes() []result.Event {
	var all []result.Event
	for _, e := range h.events {
		if e.Event == result.OutcomeEvent {
			all = append(all, e)
		}
	}
	return all
}

// A lockedBuffer is a console that a step which hangs may still write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// removeAll is discard, where nothing is mounted.
func removeAll(dirs ...string) error {
	for _, dir := range dirs {
		all, err := os.ReadDir(dir)
		if err != nil {
			continue // the boot did not come so far
		}
		for _, e := range all {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// bareMachine has a host, a console and a clock that goes a millisecond at each look, and nothing else: a step that
// reaches for more panics.
func bareMachine() (*machine, *fakeHost, *lockedBuffer) {
	peer, console := &fakeHost{}, &lockedBuffer{}
	var mu sync.Mutex
	now := time.Duration(0)
	m := &machine{
		console:  console,
		uptime:   func() time.Duration { mu.Lock(); defer mu.Unlock(); now += time.Millisecond; return now },
		cpu:      func() time.Duration { return 0 },
		host:     func(context.Context, uint32) host { return peer },
		discard:  removeAll,
		powerOff: func() {},
		// Every line of the console is to say it.
		tsmSimulated: func() bool { return true },
	}
	return m, peer, console
}
