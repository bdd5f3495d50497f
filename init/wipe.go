package main

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// wiping comes after the table, whatever became of it. Its limit leaves the host time to hear the outcome; the power cut ends what is left.
var wiping = step{"wipe", result.Internal, 10 * time.Second, (*run).wipe}

// wipe takes away all plaintext before the host hears how the run ended, and is there to see it hang or pause: the logs, the heap that
// held parts of images, and the file system of images, datasets and results. The keys are gone already. Memory that the kernel gets back
// it zeroes, by init_on_free on the measured command line.
func (r *run) wipe(context.Context) error {
	for _, b := range []*boundedBuffer{&r.logs.out, &r.logs.err, r.log} {
		b.wipe()
	}
	r.buffers = image.NewBuffers() // the old ones are the collector's
	debug.FreeOSMemory()
	return r.discard(r.resultsDir(), r.dir)
}
