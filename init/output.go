package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// A boundedBuffer keeps the first limit bytes and the last limit bytes, and says how many it left out between them: what a
// program says first tells how it was started, and what it says last, why it ended.
type boundedBuffer struct {
	mu    sync.Mutex
	limit int
	head  []byte
	tail  []byte // a ring, once it is full
	next  int    // of the ring: where its oldest byte is
	lost  int64
}

// Write takes everything, for whoever writes must not be held up, and keeps what fits.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(p)
	keep := min(len(p), b.limit-len(b.head))
	b.head, p = append(b.head, p[:keep]...), p[keep:]
	keep = min(len(p), b.limit-len(b.tail))
	b.tail, p = append(b.tail, p[:keep]...), p[keep:]
	b.lost += int64(len(p))
	for p = p[max(0, len(p)-b.limit):]; len(p) > 0; { // none, if the limit is 0
		n := copy(b.tail[b.next:], p)
		b.next, p = (b.next+n)%b.limit, p[n:]
	}
	return n, nil
}

// Bytes is what was kept, with a line about what was not in its place.
func (b *boundedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	mark := ""
	if b.lost > 0 {
		mark = fmt.Sprintf("\n[ampoule: %d bytes not kept]\n", b.lost)
	}
	return slices.Concat(b.head, []byte(mark), b.tail[b.next:], b.tail[:b.next])
}

// wipe forgets what was kept, and keeps nothing more.
func (b *boundedBuffer) wipe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.head)
	clear(b.tail)
	b.head, b.tail, b.next, b.limit = nil, nil, 0, 0
}

// outputLimit is how much of the beginning, and how much of the end, of each of stdout and stderr is kept, bytes.
const outputLimit = 4 << 20

// workloadLogs hold the workload's output.
type workloadLogs struct {
	out, err boundedBuffer
	feed     *feed // to the host; nil unless the manifest opens the output
}

// open begins to take output. tell, if not nil, is handed what the host may see.
func (l *workloadLogs) open(tell telling) (stdout, stderr io.Writer) {
	l.out.limit, l.err.limit = outputLimit, outputLimit
	if tell == nil {
		return &l.out, &l.err
	}
	l.feed = newFeed(tell)
	return io.MultiWriter(&l.out, &l.feed.out), io.MultiWriter(&l.err, &l.feed.err)
}

// close hands over what is left, once the workload is gone.
func (l *workloadLogs) close() {
	if l.feed != nil {
		l.feed.close()
	}
}

// Bounds of the output that goes to the host: of each stream 16 KiB at a time, five times a second. As an event, text
// takes at most twice its bytes, so that all of it leaves half of the 16 MiB that a host keeps to steps and progress.
const (
	feedEvery = 200 * time.Millisecond
	feedLimit = 4 << 20         // bytes of text, of both streams together
	feedGrace = 2 * time.Second // for a console that does not take the last of it
)

// A telling is told text of a stream that ends at its byte upTo, and that lost bytes before it were left out. It may block.
type telling func(stream, text string, lost, upTo int64)

// A feed hands output on while the workload runs. Writers never wait for it: what comes faster than it goes is left out.
type feed struct {
	out, err feedStream
	tell     telling
	left     int // of feedLimit
	stop     chan struct{}
	done     chan struct{}
}

func newFeed(tell telling) *feed {
	f := &feed{tell: tell, left: feedLimit, stop: make(chan struct{}), done: make(chan struct{})}
	f.out.name, f.err.name = result.Stdout, result.Stderr
	go func() {
		defer close(f.done)
		tick := time.NewTicker(feedEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f.pass(&f.out, false)
				f.pass(&f.err, false)
			case <-f.stop:
				f.pass(&f.out, true)
				f.pass(&f.err, true)
				return
			}
		}
	}()
	return f
}

// close waits for the last of it, for as long as feedGrace.
func (f *feed) close() {
	close(f.stop)
	select {
	case <-f.done:
	case <-time.After(feedGrace):
	}
}

// pass hands on what a stream has, as far as it is still allowed. The last word says how much there was, if that is more.
func (f *feed) pass(s *feedStream, last bool) {
	text, upTo, written := s.take(f.left, last)
	f.left -= len(text)
	if len(text) > 0 {
		f.tell(s.name, result.Printable(text), upTo-int64(len(text))-s.told, upTo)
		s.told = upTo
	}
	if last && written > s.told {
		f.tell(s.name, "", written-s.told, written)
		s.told = written
	}
}

// A feedStream is what one stream has for the host.
type feedStream struct {
	name string
	told int64 // where the text ended that was handed on last

	mu      sync.Mutex
	pending []byte // without a gap
	end     int64  // of pending, in the stream
	written int64  // the stream's length; more than end is left out
	stale   bool   // pending was left for its line's end once
}

func (s *feedStream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		s.end = s.written
	}
	if s.end == s.written {
		keep := min(len(p), result.MaxOutputText-len(s.pending))
		s.pending = append(s.pending, p[:keep]...)
		s.end += int64(keep)
	}
	s.written += int64(len(p))
	return len(p), nil
}

// take gives at most limit bytes that end at upTo: whole lines where it can, for the begin of a line waits once for its end.
func (s *feedStream) take(limit int, last bool) (text []byte, upTo, written int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.pending)
	if !last && !s.stale && n < result.MaxOutputText {
		n = bytes.LastIndexByte(s.pending, '\n') + 1
	}
	s.stale = n < len(s.pending)
	n = min(n, limit)
	text, upTo = bytes.Clone(s.pending[:n]), s.end-int64(len(s.pending)-n)
	s.pending = s.pending[:copy(s.pending, s.pending[n:])]
	return text, upTo, s.written
}

// show tells the host of output: as an event, and on the console in lines that cannot be taken for PID 1's own.
func (r *run) show(stream, text string, lost, upTo int64) {
	r.emit(result.Event{Event: result.OutputEvent, Step: "execute", Stream: stream, Text: text, Bytes: upTo})
	prefix := r.banner() + " " + stream
	out := ""
	if lost > 0 {
		out = fmt.Sprintf("%s [%d bytes not shown]\n", prefix, lost)
	}
	if text = strings.TrimSuffix(text, "\n"); text != "" {
		out += prefix + " | " + strings.ReplaceAll(text, "\n", "\n"+prefix+" | ") + "\n"
	}
	io.WriteString(r.console, out)
}
