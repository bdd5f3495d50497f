package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/result"
)

const secret = "SECRET-TEXT"

// broken is the sequence with step i replaced, and every other step only noting that it ran.
func broken(i int, do func(*run, context.Context) error) (steps []step, ran *[]string) {
	ran = new([]string)
	for j, s := range sequence {
		name := s.name
		s.do = func(*run, context.Context) error { *ran = append(*ran, name); return nil }
		if j == i {
			s.do = do
		}
		steps = append(steps, s)
	}
	return steps, ran
}

// TestBreakEveryStep: whatever a step dies of, the later ones do not run, one outcome is reported with step and reason,
// and the host learns nothing else.
func TestBreakEveryStep(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(*run, context.Context) error
		reason result.Reason // "": the step's own
	}{
		"an error":                   {func(*run, context.Context) error { return errors.New(secret) }, ""},
		"an error that knows better": {func(*run, context.Context) error { return because(result.NotBound, errors.New(secret)) }, result.NotBound},
		"such an error, wrapped": {func(*run, context.Context) error {
			return fmt.Errorf("%s: %w", secret, because(result.NotBound, errors.New(secret)))
		}, result.NotBound},
		"a panic":                {func(*run, context.Context) error { panic(secret) }, result.Internal},
		"a panic in a goroutine": {func(*run, context.Context) error { return inGoroutine(guarded(func() error { panic(secret) })) }, result.Internal},
		"a step that hangs":      {func(*run, context.Context) error { return hang() }, result.Deadline},
		"a step that times out":  {func(_ *run, ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("%s: %w", secret, ctx.Err()) }, result.Deadline},
		"the run's own deadline": {func(r *run, ctx context.Context) error { r.stop(errDeadline); <-ctx.Done(); return errors.New(secret) }, result.Deadline},
		"a hang beyond that":     {func(r *run, _ context.Context) error { r.stop(errDeadline); return hang() }, result.Deadline},
		"a panic with an error":  {func(*run, context.Context) error { panic(errors.New(secret)) }, result.Internal},
		"an index too high":      {func(*run, context.Context) error { return errors.New(os.Args[len(os.Args)]) }, result.Internal},
	} {
		for i, s := range sequence {
			t.Run(name+" in "+s.name, func(t *testing.T) {
				m, peer, console := bareMachine()
				cuts := 0
				m.powerOff = func() { cuts++ }
				steps, ran := broken(i, c.do)
				synctest.Test(t, func(t *testing.T) {
					defer time.Sleep(2 * hangs) // a bubble must not end before its goroutines
					live(t.Context(), m, steps)
				})

				if cuts != 1 {
					t.Errorf("the power was cut %d times", cuts)
				}
				if len(*ran) != i {
					t.Errorf("besides the broken one, steps %q ran; want the %d before it", *ran, i)
				}
				want := c.reason
				if want == "" {
					want = s.reason
				}
				outcomes := peer.outcomes()
				if len(outcomes) != 1 || outcomes[0].Step != s.name || outcomes[0].Reason != want {
					t.Errorf("outcomes %+v, want one: %s in %s", outcomes, want, s.name)
				}
				if strings.Contains(console.String(), secret) {
					t.Errorf("the console has the error's text:\n%s", console)
				}
				if end := fmt.Sprintf("outcome %s in %s\n", want, s.name); !strings.HasSuffix(console.String(), end) {
					t.Errorf("the console does not end in %q:\n%s", end, console)
				}
				if peer.result != nil || peer.receipt != nil {
					t.Error("a run that was bound to nothing delivered something")
				}
				for _, e := range peer.events {
					if bytes.Contains(e.Line(), []byte(secret)) {
						t.Errorf("event %s has the error's text", e.Line())
					}
				}
				if !peer.closed {
					t.Error("the events were not flushed")
				}
			})
		}
	}
}

// hangs is longer than any limit.
const hangs = 365 * 24 * time.Hour

// hang is what a step does that does not look at its context. Only in a synctest bubble, where a year is soon over.
func hang() error {
	time.Sleep(hangs)
	return errors.New(secret)
}

func inGoroutine(f func() error) error {
	err := make(chan error)
	go func() { err <- f() }()
	return <-err
}

// TestErrorsOnTheConsole only where the measured command line says so.
func TestErrorsOnTheConsole(t *testing.T) {
	m, _, console := bareMachine()
	steps, _ := broken(1, func(r *run, _ context.Context) error {
		r.opts.Allow = cmdline.Allow{cmdline.AllowErrors: true}
		return errors.New(secret)
	})
	boot(t.Context(), m, steps)
	if !strings.Contains(console.String(), secret) {
		t.Errorf("the console has no error's text although it is allowed:\n%s", console)
	}
}

// TestEveryStepHasALimit and a reason that the host may know.
func TestEveryStepHasALimit(t *testing.T) {
	for _, s := range sequence {
		known := false
		for _, r := range result.Reasons {
			known = known || r == s.reason
		}
		if s.limit <= 0 || !known || s.reason == result.OK {
			t.Errorf("step %s: limit %v, reason %q", s.name, s.limit, s.reason)
		}
	}
}

// TestPowerIsCut also when the boot itself panics.
func TestPowerIsCut(t *testing.T) {
	m, _, _ := bareMachine()
	cuts := 0
	m.powerOff = func() { cuts++ }
	m.host = func(context.Context, uint32) host { panic(secret) }
	func() {
		defer func() { recover() }()
		live(t.Context(), m, nil)
	}()
	if cuts != 1 {
		t.Errorf("the power was cut %d times", cuts)
	}
}

// TestStepsSayTheirCPU: the end of each step carries the processor time since its start, and so does wiping, which here takes none.
func TestStepsSayTheirCPU(t *testing.T) {
	m, peer, _ := bareMachine()
	used := time.Second // before PID 1 was a program of ours
	m.cpu = func() time.Duration { return used }
	nothing := func(*run, context.Context) error { used += 3 * time.Millisecond; return nil }
	fail := func(*run, context.Context) error { used += 5 * time.Millisecond; return errors.New("x") }
	steps := []step{
		{"mount", result.Internal, time.Minute, func(r *run, ctx context.Context) error { r.connect(); return nothing(r, ctx) }},
		{"bind", result.NotBound, time.Minute, nothing}, {"attest", result.Denied, time.Minute, fail},
	}
	boot(t.Context(), m, steps)
	var got []int64
	for _, e := range peer.events {
		if e.Event == result.StepEvent && e.State != result.Start {
			got = append(got, e.CPU)
		} else if e.CPU != 0 {
			t.Errorf("%+v has it", e)
		}
	}
	if want := []int64{3000, 3000, 5000, 0}; !slices.Equal(got, want) {
		t.Errorf("µs %v, want %v", got, want)
	}
}
