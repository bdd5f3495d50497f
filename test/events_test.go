package test

import (
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/timeline"
)

// TestEnd shows what is between the end of the workload and the end of the VM, and in which order. How long it takes is
// printed and not judged: ampoule bench measures it.
func TestEnd(t *testing.T) {
	r := newTrial(t, nil, "ran")
	r.run()
	r.ends("", result.OK, 0)
	run := timeline.Run{Events: r.report.Events, Before: r.report.Zero.Sub(r.report.QEMUStart), End: r.report.Exited.Sub(r.report.Zero)}
	ended := time.Duration(r.verified().Statement.Predicate.Workload.Ended) * time.Microsecond
	t.Logf("%s from the end of the workload to the end of the VM: %v (%s)", run.Table(), run.End-ended, r.report.Accel)
}
