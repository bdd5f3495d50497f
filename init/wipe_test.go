package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// A lookingHost looks at the machine when it hears something.
type lookingHost struct {
	*fakeHost
	look func(result.Event)
}

func (h *lookingHost) Send(e result.Event) {
	h.look(e)
	h.fakeHost.Send(e)
}

// TestWipedBeforeTheOutcome: keys first, then all plaintext, and only then does the host hear how the run ended.
func TestWipedBeforeTheOutcome(t *testing.T) {
	for name, fails := range map[string]bool{"a run": false, "a run that fails in pull": true} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			var grants []*kbs.Grant
			var order []string
			f.tamper = func(m *machine) {
				m.onFetch(func(ctx context.Context, w []kbs.Want, next fetch) (*kbs.Grant, error) {
					g, err := next(ctx, w)
					grants = append(grants, g)
					return g, err
				})
				keyless := func() bool {
					for _, g := range grants {
						for _, k := range [][]byte{g.Key(f.world.Broker, demo.AlgorithmKey), g.Key(f.world.Broker, demo.DatasetKey)} {
							if len(bytes.Trim(k, "\x00")) > 0 {
								return false
							}
						}
					}
					return len(grants) > 0
				}
				empty := func() bool { all, err := os.ReadDir(m.dir); return err == nil && len(all) == 0 }
				m.host = func(context.Context, uint32) host {
					return &lookingHost{f.peer, func(e result.Event) {
						switch {
						case e.Step == "wipe" && e.State == result.Start && keyless() && !empty():
							order = append(order, "keys are gone")
						case e.Step == "wipe" && e.State == result.Done && empty():
							order = append(order, "plaintext is gone")
						case e.Event == result.OutcomeEvent:
							order = append(order, "outcome")
						}
					}}
				}
				if fails {
					inner := m.unpack
					m.unpack = func(ctx context.Context, i *image.Image, dir string, k image.Keys, l image.Limits, p func(int64)) error {
						return errors.Join(inner(ctx, i, dir, k, l, p), errors.New(secret))
					}
				}
			}
			f.boot()
			if d := cmp.Diff([]string{"keys are gone", "plaintext is gone", "outcome"}, order); d != "" {
				t.Errorf("order (-want +got):\n%s", d)
			}
			f.opened() // what was sealed is delivered all the same
		})
	}
}

// TestWipeHasAnEnd: a file system that hangs does not keep the outcome from the host, which hears that it was not all.
func TestWipeHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, peer, _ := bareMachine()
		m.discard = func(...string) error { time.Sleep(hangs); return nil }
		r := newRun(m)
		r.peer = peer
		begin := time.Now()
		r.timed(t.Context(), wiping)
		if e := peer.events[len(peer.events)-1]; e.State != result.Failed || e.Reason != result.Deadline {
			t.Errorf("said %+v", e)
		}
		if time.Since(begin) > wiping.limit+hangGrace {
			t.Errorf("took %v", time.Since(begin))
		}
		time.Sleep(hangs) // a bubble must not end before its goroutines
	})
}

// TestWipeOfLogs: their bytes are gone from where they were, and what comes later goes nowhere.
func TestWipeOfLogs(t *testing.T) {
	b := boundedBuffer{limit: 8}
	b.Write([]byte("0123456789abcdefgh"))
	head, tail := b.head, b.tail
	b.wipe()
	b.Write([]byte("later"))
	if len(bytes.Trim(append(head, tail...), "\x00")) > 0 || len(b.head)+len(b.tail) > 0 {
		t.Errorf("left: %q %q %q", head, tail, b.Bytes())
	}
}
