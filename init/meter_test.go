package main

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// progress are the events of one input.
func (h *fakeHost) progress(input int) []result.Event {
	var all []result.Event
	for _, e := range h.events {
		if e.Event == result.ProgressEvent && *e.Input == input {
			all = append(all, e)
		}
	}
	return all
}

func TestABootTellsHowFarEachInputIs(t *testing.T) {
	f := newFlow(t)
	sizes := make([]int64, 2)
	f.tamper = func(m *machine) {
		unpack := m.unpack
		m.unpack = func(ctx context.Context, i *image.Image, dir string, k image.Keys, l image.Limits, progress func(int64)) error {
			sizes[int(dir[len(dir)-1]-'0')] = i.Size()
			return unpack(ctx, i, dir, k, l, progress)
		}
	}
	f.boot()
	f.ends("", result.OK, true)
	for i, size := range sizes {
		all := f.peer.progress(i)
		if len(all) < 3 || size == 0 {
			t.Fatalf("input %d of %d bytes: events %+v, want at least three", i, size, all)
		}
		first, last := all[0], all[len(all)-1]
		if first.Step != "resolve" || first.Phase != result.Resolved || first.Bytes != 0 {
			t.Errorf("input %d begins with %s", i, first.Line())
		}
		if last.Step != "pull" || last.Phase != result.Verified || last.Bytes != size || last.Micros == 0 {
			t.Errorf("input %d of %d bytes ends with %s", i, size, last.Line())
		}
		for n, e := range all {
			if e.Total != size {
				t.Errorf("input %d has %d bytes: %s", i, size, e.Line())
			}
			if _, err := result.ParseEvent(e.Line()); err != nil {
				t.Error(err)
			}
			if n > 0 && n < len(all)-1 && (e.Phase != result.Pulling || e.Bytes < all[n-1].Bytes) {
				t.Errorf("after %s comes %s", all[n-1].Line(), e.Line())
			}
		}
	}
}

// clocked is a run of n inputs whose clock the test sets.
func clocked(n int) (*run, *fakeHost, *time.Duration) {
	m, peer, _ := bareMachine()
	now := new(time.Duration)
	m.uptime = func() time.Duration { return *now }
	r := newRun(m)
	r.inputs = make([]*input, n)
	r.connect()
	return r, peer, now
}

func TestProgressIsRare(t *testing.T) {
	r, peer, now := clocked(3)
	m := r.meter(1, 1000)
	for range 1000 { // a byte a millisecond
		m.add(1)
		*now += time.Millisecond
	}
	*now += time.Second // it is still being unpacked
	m.verified()
	m.stop()
	var got []int64
	for _, e := range peer.progress(1) {
		got = append(got, e.Bytes)
	}
	// Of three inputs, each has a third of five a second. That all is fetched is told at once.
	if d := cmp.Diff([]int64{1, 601, 1000, 1000}, got); d != "" {
		t.Errorf("bytes (-want +got):\n%s", d)
	}
	last := peer.progress(1)[3]
	if d := cmp.Diff(result.Event{Time: 2e6, Event: result.ProgressEvent, Step: "pull", Input: new(1), Phase: result.Verified, Micros: 2e6, Bytes: 1000, Total: 1000}, last); d != "" {
		t.Errorf("the last (-want +got):\n%s", d)
	}
}

func TestAnInputThatFailsTellsHowFarItCame(t *testing.T) {
	r, peer, _ := clocked(1)
	m := r.meter(0, 10)
	m.add(3)
	m.add(4) // too soon for an event of its own
	m.stop()
	m.stop()
	all := peer.progress(0)
	if len(all) != 2 || all[1].Bytes != 7 || all[1].Phase != result.Pulling {
		t.Errorf("events %+v, want a second and last one of 7 bytes", all)
	}
	if r.meter(0, 10).stop(); len(peer.progress(0)) != 2 {
		t.Error("an input that never began has an event")
	}
}

func TestProgressOfManyGoroutinesGrows(t *testing.T) {
	r, peer, _ := clocked(1)
	m := r.meter(0, 0)
	m.every = 0
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				m.add(1)
			}
		})
	}
	all.Wait()
	for i, e := range peer.progress(0) {
		if e.Bytes != int64(i+1) {
			t.Fatalf("event %d has %d bytes", i, e.Bytes)
		}
	}
}
