package main

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// wipeGrace bounds the time to wipe: the host is still to hear the outcome, and the power cut ends what is left.
const wipeGrace = 10 * time.Second

// wipe takes away all plaintext before the host hears how the run ended, and is there to see it hang or pause: images, datasets and
// results, the logs, and the heap that held parts of them. The keys are gone already. Memory that the kernel gets back it zeroes, by
// init_on_free on the measured command line.
func (r *run) wipe() {
	start := r.uptime()
	e := result.Event{Event: result.StepEvent, Step: "wipe", State: result.Start}
	r.emit(e)
	done := make(chan error, 1)
	go guarded(func() error { done <- r.discard(r.resultsDir(), r.dir); return nil })()
	var err error
	select {
	case err = <-done:
	case <-time.After(wipeGrace):
		err = context.DeadlineExceeded
	}
	r.logs.out.wipe()
	r.logs.err.wipe()
	r.log.wipe()
	r.buffers = image.NewBuffers() // the old ones are the collector's
	debug.FreeOSMemory()
	e.State, e.Micros = result.Done, (r.uptime() - start).Microseconds()
	if err != nil {
		e.State, e.Reason = result.Failed, result.Internal
	}
	r.emit(e)
}
