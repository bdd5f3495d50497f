package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

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
	go guarded(func() error { done <- r.wipeFiles(); return nil })()
	var err error
	select {
	case err = <-done:
	case <-time.After(wipeGrace):
		err = fmt.Errorf("%s is not empty after %v", r.dir, wipeGrace)
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

// wipeFiles empties the folder of images, results and logs.
func (r *run) wipeFiles() error {
	if r.dir == "" {
		return nil
	}
	// A file system of its own, if the boot came that far. What is wrong with it shows below.
	_ = unix.Unmount(r.resultsDir(), unix.MNT_DETACH)
	all, err := os.ReadDir(r.dir)
	if os.IsNotExist(err) {
		return nil
	}
	for _, e := range all {
		if err := os.RemoveAll(filepath.Join(r.dir, e.Name())); err != nil {
			return err
		}
	}
	return err
}
