package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// sequence is all this machine ever does, in this order. A step that fails ends the boot; whatever happens, the
// outcome is then reported and the power cut.
var sequence = []step{
	{"mount", result.Internal, 30 * time.Second, (*run).mount},         // file systems, environment → opts
	{"lockdown", result.Internal, 30 * time.Second, (*run).lockdown},   // kernel
	{"platform", result.NoTEE, 30 * time.Second, (*run).platform},      // hardware           → dev
	{"network", result.Unreachable, 2 * time.Minute, (*run).network},   // opts               → addresses, routes
	{"manifest", result.BadManifest, 2 * time.Minute, (*run).manifest}, // source             → doc
	{"bind", result.NotBound, time.Minute, (*run).bind},                // doc, dev           → initdata, binding, launch
	{"swap", result.Internal, time.Minute, (*run).swap},                // opts               → room beyond memory
	{"resolve", result.BadImage, 5 * time.Minute, (*run).resolve},      // doc                → inputs
	{"attest", result.Denied, 5 * time.Minute, (*run).attest},          // inputs, dev        → grant
	{"pull", result.BadImage, time.Hour, (*run).pull},                  // inputs, grant      → root, datasets
	{"execute", result.Workload, 30 * 24 * time.Hour, (*run).execute},  // root, datasets     → output
	{"seal", result.Internal, 30 * time.Minute, (*run).seal},           // output, dev        → parcel
	{"deliver", result.Undelivered, 30 * time.Minute, (*run).deliver},  // parcel             → sinks
}

// A step is one line of the boot.
type step struct {
	name   string
	reason result.Reason // what an unclassified failure here means to the host
	limit  time.Duration // deadline of the step; the whole run has one too
	do     func(*run, context.Context) error
}

// reportLimit bounds each of the two things after the sequence: telling the owner why it failed, and the host how it ended.
const reportLimit = 20 * time.Second

// boot runs steps in order and reports how that ended, once.
func boot(ctx context.Context, m *machine, steps []step) {
	r := newRun(m)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.stop = cancel

	outcome := result.Event{Event: result.OutcomeEvent, Reason: result.OK}
	for i, s := range steps {
		if err := r.step(ctx, i, len(steps), s); err != nil {
			outcome.Step, outcome.Reason = s.name, reasonOf(err)
			r.explain(s.name, err)
			break
		}
	}
	if outcome.Reason == result.OK {
		outcome.Step, outcome.Reason = r.verdict()
	}
	outcome.Exit = r.exitStatus()
	r.forget()
	r.report(outcome)
}

// step runs one line of the table, and writes one to the console.
func (r *run) step(ctx context.Context, i, n int, s step) error {
	took, err := r.timed(ctx, s)
	state := "ok"
	if err != nil {
		state = "failed " + string(reasonOf(err))
	}
	r.line(i, n, s.name, state, took)
	return err
}

// timed runs a step: announced, timed, bounded in time, and with a panic turned into an error.
func (r *run) timed(ctx context.Context, s step) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	start, used := r.uptime(), r.cpu()
	r.emit(result.Event{Event: result.StepEvent, Step: s.name, State: result.Start})

	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- &stepError{s.name, result.Internal, fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
			}
		}()
		if err := context.Cause(ctx); err != nil {
			done <- err // stopped between two steps
			return
		}
		done <- s.do(r, ctx)
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		// A step that honours its context ends now; one that hangs is left behind, and the power cut ends it.
		select {
		case err = <-done:
		case <-time.After(r.patience(s)):
			err = fmt.Errorf("hangs: %w", context.Cause(ctx))
		}
	}
	took = r.uptime() - start
	busy := (r.cpu() - used).Microseconds()
	if err == nil {
		r.emit(result.Event{Event: result.StepEvent, Step: s.name, State: result.Done, Micros: took.Microseconds(), CPU: busy})
		return took, nil
	}
	e := classify(ctx, s, err)
	r.emit(result.Event{Event: result.StepEvent, Step: s.name, State: result.Failed, Reason: e.reason, Micros: took.Microseconds(), CPU: busy})
	return took, e
}

// hangGrace is how long a step may take to notice that its time is over.
const hangGrace = 5 * time.Second

// patience is hangGrace, and for execute also what its workload has to end in, for it must be gone when all is wiped. The run's deadline leaves
// that time anyway; a server that stops the run does not.
func (r *run) patience(s step) time.Duration {
	if s.name == "execute" && r.doc != nil {
		return hangGrace + r.grace()
	}
	return hangGrace
}

// A stepError is a failure with the two things that the host may know of it. The rest is for the owner.
type stepError struct {
	step   string
	reason result.Reason
	err    error
}

func (e *stepError) Error() string { return fmt.Sprintf("%s: %v", e.step, e.err) }
func (e *stepError) Unwrap() error { return e.err }

// because gives err a reason other than its step's.
func because(reason result.Reason, err error) error {
	if err == nil {
		return nil
	}
	return &stepError{reason: reason, err: err}
}

func classify(ctx context.Context, s step, err error) *stepError {
	reason := s.reason
	if known, ok := errors.AsType[*stepError](err); ok {
		if known.step != "" {
			return known
		}
		reason, err = known.reason, known.err
	} else if ctx.Err() != nil {
		reason = result.Deadline
	}
	return &stepError{s.name, reason, err}
}

func reasonOf(err error) result.Reason {
	if e, ok := errors.AsType[*stepError](err); ok {
		return e.reason
	}
	return result.Internal
}
