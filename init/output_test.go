package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

func TestBoundedBufferKeepsHeadAndTail(t *testing.T) {
	for name, c := range map[string]struct {
		writes []string
		want   string
	}{
		"nothing":                   {nil, ""},
		"less than the head":        {[]string{"ab"}, "ab"},
		"head and tail, in full":    {[]string{"abcd", "efgh"}, "abcdefgh"},
		"at once":                   {[]string{"abcdefgh"}, "abcdefgh"},
		"one byte too many":         {[]string{"abcdefgh", "i"}, "abcd\n[ampoule: 1 bytes not kept]\nfghi"},
		"many, in one write":        {[]string{"abcdefghijklmnop"}, "abcd\n[ampoule: 8 bytes not kept]\nmnop"},
		"many, in several":          {[]string{"abc", "defg", "hijklmn", "o", "p"}, "abcd\n[ampoule: 8 bytes not kept]\nmnop"},
		"the ring ends at its edge": {[]string{"abcdefgh", "ijkl", "mnop"}, "abcd\n[ampoule: 8 bytes not kept]\nmnop"},
	} {
		t.Run(name, func(t *testing.T) {
			b := boundedBuffer{limit: 4}
			for _, w := range c.writes {
				if n, err := b.Write([]byte(w)); n != len(w) || err != nil {
					t.Errorf("%d, %v", n, err)
				}
			}
			if got := string(b.Bytes()); got != c.want {
				t.Errorf("kept %q, want %q", got, c.want)
			}
		})
	}
}

// told is what a feed hands on, one line each.
type told struct{ lines []string }

func (h *told) tell(stream, text string, lost, upTo int64) {
	if len(text) > 20 {
		text = fmt.Sprintf("%s… %d bytes", text[:3], len(text))
	}
	h.lines = append(h.lines, fmt.Sprintf("%s -%d %q @%d", stream, lost, text, upTo))
}

func TestFeed(t *testing.T) {
	const wait = "" // of a write: until the feed has had its turn
	for name, c := range map[string]struct {
		writes []string
		want   []string
	}{
		"nothing":                         {nil, nil},
		"a line":                          {[]string{"a\n"}, []string{`stdout -0 "a\n" @2`}},
		"lines in one turn":               {[]string{"a\n", "b", "c\n"}, []string{`stdout -0 "a\nbc\n" @5`}},
		"the begin of a line waits":       {[]string{"a\nb", wait, "c\n", wait}, []string{`stdout -0 "a\n" @2`, `stdout -0 "bc\n" @5`}},
		"but not for ever":                {[]string{"100 %", wait, wait, wait, "!"}, []string{`stdout -0 "100 %" @5`, `stdout -0 "!" @6`}},
		"no line's end at all":            {[]string{"end"}, []string{`stdout -0 "end" @3`}},
		"escapes":                         {[]string{"\x1b[2J\n"}, []string{`stdout -0 "?[2J\n" @5`}},
		"more than there is room for":     {[]string{strings.Repeat("x", 20000)}, []string{`stdout -0 "xxx… 16384 bytes" @16384`, `stdout -3616 "" @20000`}},
		"what comes after a gap says so":  {[]string{strings.Repeat("x", 20000), wait, "b\n"}, []string{`stdout -0 "xxx… 16384 bytes" @16384`, `stdout -3616 "b\n" @20002`}},
		"a gap is not filled in mid-turn": {[]string{strings.Repeat("x", 20000), "y\n", wait}, []string{`stdout -0 "xxx… 16384 bytes" @16384`, `stdout -3618 "" @20002`}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var h told
				var l workloadLogs
				out, _ := l.open(h.tell)
				for _, w := range c.writes {
					if w == wait {
						time.Sleep(feedEvery)
						synctest.Wait()
					} else if n, err := io.WriteString(out, w); n != len(w) || err != nil {
						t.Errorf("%d, %v", n, err)
					}
				}
				l.close()
				if d := cmp.Diff(c.want, h.lines); d != "" {
					t.Errorf("told (-want +got):\n%s", d)
				}
				if want := strings.Join(c.writes, ""); string(l.out.Bytes()) != want {
					t.Error("the sealed log is not what was written")
				}
			})
		})
	}
}

// TestFeedIsBounded: an hour's flood costs the host no more than the limit, and it learns how much there was.
func TestFeedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var total, events, last int64
		f := newFeed(func(_, text string, _, upTo int64) { total, events, last = total+int64(len(text)), events+1, upTo })
		line := []byte(strings.Repeat("flood ", 1000) + "\n")
		var written int64
		for range 3600 * 5 {
			for range 4 {
				f.out.Write(line)
				written += int64(len(line))
			}
			time.Sleep(feedEvery)
		}
		f.close()
		if total > feedLimit || total < feedLimit-result.MaxOutputText || events > feedLimit/result.MaxOutputText*2 {
			t.Errorf("%d bytes in %d events, want at most %d", total, events, feedLimit)
		}
		if last != written {
			t.Errorf("the last event ends at %d of %d", last, written)
		}
	})
}

// TestNothingHoldsTheWorkloadUp: neither a console that never takes a byte nor one that is taken up at the end.
func TestNothingHoldsTheWorkloadUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		var l workloadLogs
		out, errs := l.open(func(string, string, int64, int64) { <-free })
		begin := time.Now()
		line := bytes.Repeat([]byte("x"), 32<<10)
		for range 1000 {
			out.Write(line)
			errs.Write(line)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("writing took %v", took)
		}
		l.close()
		if took := time.Since(begin); took != feedGrace {
			t.Errorf("the end took %v, want %v", took, feedGrace)
		}
		close(free)
	})
}

// TestLogsOfAnOpenWorkload: with "logs": "host" events and console have what a sealed log has as well, in lines that are
// nobody else's; without, they have nothing.
func TestLogsOfAnOpenWorkload(t *testing.T) {
	for _, open := range []bool{true, false} {
		t.Run(fmt.Sprint(open), func(t *testing.T) {
			f := newFlow(t)
			if open {
				f.edit(`"kbs":`, `"logs": "host", "kbs":`)
			}
			f.tamper = func(m *machine) {
				inner := m.runWorkload
				m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
					io.WriteString(s.Stderr, "two\x1b[2J")
					return inner(ctx, s)
				}
			}
			f.boot()
			var got []string
			for _, e := range f.peer.events {
				if e.Event == result.OutputEvent {
					got = append(got, e.Stream+" "+e.Text)
				}
			}
			said := "ampoule SIMULATION stdout | output of the workload\nampoule SIMULATION stderr | two?[2J\n"
			var want []string
			if open {
				want = []string{"stdout output of the workload\n", "stderr two?[2J"}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("events (-want +got):\n%s", d)
			}
			if strings.Contains(f.console.String(), said) != open {
				t.Errorf("the console says:\n%s", f.console)
			}
			dir := f.opened()
			for name, want := range map[string]string{result.StdoutName: "output of the workload\n", result.StderrName: "two\x1b[2J"} {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || string(b) != want {
					t.Errorf("%s is %q, %v", name, b, err)
				}
			}
		})
	}
}
