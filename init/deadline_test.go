package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// TestDeadlines: a step is over when its own limit is, or the run's, whichever comes first. One that looks at its
// context ends at once; one that does not is left behind after a grace.
func TestDeadlines(t *testing.T) {
	waits := func(_ *run, ctx context.Context) error { <-ctx.Done(); return errors.New(secret) }
	hangs1 := func(*run, context.Context) error { return hang() }
	tidies := func(_ *run, ctx context.Context) error {
		<-ctx.Done()
		time.Sleep(hangGrace - 1)
		return errors.New(secret)
	}
	const line, total = testLine + " ampoule.deadline=10s", 10 * time.Second // shorter than every step's limit
	for name, c := range map[string]struct {
		do    func(*run, context.Context) error
		total bool // the command line sets a total deadline; else mount reads none
		grace time.Duration
	}{
		"waits to its limit":          {waits, false, 0},
		"waits to the run's deadline": {waits, true, 0},
		"hangs to its limit":          {hangs1, false, hangGrace},
		"hangs to the run's deadline": {hangs1, true, hangGrace},
		"tidies up within the grace":  {tidies, true, hangGrace - 1},
	} {
		for i, s := range sequence {
			if c.total && i == 0 {
				continue // the run's deadline is known only when mount has read the command line
			}
			t.Run(s.name+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m, peer, console := bareMachine()
					steps, ran := broken(i, c.do)
					want := s.limit
					if c.total {
						want = total
						m.mount = func() error { *ran = append(*ran, "mount"); return nil }
						m.commandLine = func() (string, error) { return line, nil }
						steps[0].do = sequence[0].do
					}
					begin := time.Now()
					boot(t.Context(), m, steps)
					took := time.Since(begin)
					time.Sleep(2 * hangs) // a bubble must not end before its goroutines

					if took != want+c.grace {
						t.Errorf("the boot took %v, want %v and %v of grace", took, want, c.grace)
					}
					if len(*ran) != i {
						t.Errorf("besides the broken one, steps %q ran; want the %d before it", *ran, i)
					}
					if o := peer.outcomes(); len(o) != 1 || o[0].Step != s.name || o[0].Reason != result.Deadline {
						t.Errorf("outcomes %+v, want one: deadline in %s", o, s.name)
					}
					if strings.Contains(console.String(), secret) {
						t.Errorf("the console has the error's text:\n%s", console)
					}
				})
			})
		}
	}
}

// TestWorkloadDeadline: a workload ends early enough that what it wrote can still be sealed and delivered.
func TestWorkloadDeadline(t *testing.T) {
	for name, c := range map[string]struct {
		total, own string // ampoule.deadline and the manifest's
		used       time.Duration
		want       time.Duration // that the workload has; negative: none
	}{
		"a fifth is kept, and the grace":    {"5m", "", 0, 4*time.Minute - defaultGrace},
		"two minutes are kept at most":      {"1h", "", 0, 58*time.Minute - defaultGrace},
		"the boot's own time counts":        {"5m", "", time.Minute, 192*time.Second - defaultGrace},
		"the manifest's is shorter":         {"1h", "7m", 0, 7 * time.Minute},
		"the manifest's cannot be longer":   {"5m", "1h", 0, 4*time.Minute - defaultGrace},
		"nothing is left when all was used": {"5m", "", 6 * time.Minute, -1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			f.line += " ampoule.deadline=" + c.total
			if c.own != "" {
				f.edit(`"version": 1`, `"version": 1, "resources": {"deadline": "`+c.own+`"}`)
			}
			var has time.Duration
			f.tamper = func(m *machine) {
				m.uptime = func() time.Duration { return c.used }
				m.runWorkload = func(ctx context.Context, _ workload.Spec) (workload.Outcome, error) {
					f.started = true
					at, ok := ctx.Deadline()
					if !ok {
						t.Error("the workload has no deadline")
					}
					has = time.Until(at)
					return workload.Outcome{Signal: "SIGKILL", Deadline: true}, nil
				}
			}
			f.boot()
			f.ends("execute", result.Deadline, true)
			if c.want < 0 && has > 0 || c.want > 0 && (has > c.want || has < c.want-10*time.Second) {
				t.Errorf("the workload had %v, want %v", has, c.want)
			}
			f.verdict() // the result and its receipt came all the same
		})
	}
}
