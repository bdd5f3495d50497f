// Package result is what leaves the machine: events and reasons that anyone may see, the sealed result, and the receipt.
//
// PID 1 writes all of it and the host reads it back, so every reader here is bounded and strict. Nothing of ours is
// imported.
package result

// Reason is the public part of an outcome. It is all that an untrusted host may learn of why a run ended.
type Reason string

const (
	OK          Reason = "ok"
	Internal    Reason = "internal"     // a fault of the image or the machine, or a panic
	NoTEE       Reason = "no-tee"       // no TEE, or a broken one
	Unreachable Reason = "unreachable"  // the network did not come up as the command line asks
	BadManifest Reason = "bad-manifest" // the manifest or the command line was refused
	NotBound    Reason = "not-bound"    // the manifest is not the one that the launch is bound to
	BadImage    Reason = "bad-image"    // an image is missing, altered, or not as the manifest says
	Denied      Reason = "denied"       // a key broker refused, or could not be reached
	Workload    Reason = "workload"     // the workload ran and did not end with status 0
	Undelivered Reason = "undelivered"  // a sink did not take the result
	Deadline    Reason = "deadline"     // a step, or the whole run, ran out of time
)

// Reasons lists every Reason that may appear on the console or in an event.
var Reasons = []Reason{OK, Internal, NoTEE, Unreachable, BadManifest, NotBound, BadImage, Denied, Workload, Undelivered, Deadline}

// ExitCode is the exit status of `ampoule run` for a run with outcome e. It is that of the reason, but for a workload that
// ran out of its own time: it has failed as a workload.
func (e Event) ExitCode() int {
	if e.Reason == Deadline && e.Step == "execute" {
		return Workload.ExitCode()
	}
	return e.Reason.ExitCode()
}

// ExitCode is the exit status of `ampoule run` for a run that ended with r: 0 ok, 1 failure, 3 evidence or policy
// refused, 4 workload failed. Usage errors (2) and a VM that never reported (5) have no reason.
func (r Reason) ExitCode() int {
	switch r {
	case OK:
		return 0
	case Denied, NotBound:
		return 3
	case Workload:
		return 4
	}
	return 1
}
