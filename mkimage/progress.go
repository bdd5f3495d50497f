package mkimage

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress tells a waiting person how far a kernel is: on a terminal one line that is rewritten, elsewhere a line every
// half minute.
type progress struct {
	w        io.Writer
	what     string
	terminal bool
	every    time.Duration
	start    time.Time

	mu    sync.Mutex
	doing string
	files int
	stop  chan struct{}
	done  chan struct{}
}

func newProgress(w io.Writer, what string) *progress {
	p := &progress{w: w, what: what, every: 30 * time.Second, start: time.Now(), stop: make(chan struct{}), done: make(chan struct{})}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal, p.every = true, time.Second/2
	}
	go p.run()
	return p
}

func (p *progress) run() {
	defer close(p.done)
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.mu.Lock()
			p.print()
			p.mu.Unlock()
		case <-p.stop:
			return
		}
	}
}

// print needs the lock.
func (p *progress) print() {
	line := fmt.Sprintf("%s: %s", p.what, p.doing)
	if p.files > 0 {
		line += fmt.Sprintf(", %d files", p.files)
	}
	line += fmt.Sprintf(", %s", time.Since(p.start).Round(time.Second))
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", line)
	} else {
		fmt.Fprintln(p.w, line)
	}
}

// step names what happens from now on.
func (p *progress) step(doing string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doing, p.files = doing, 0
	p.print()
}

func (p *progress) end() {
	close(p.stop)
	<-p.done
	if p.terminal {
		fmt.Fprintln(p.w)
	}
}

// tee passes the output of make on to w and counts its lines, each of which names a file: "  CC      init/main.o".
func (p *progress) tee(w io.Writer) io.Writer { return &counter{p, w} }

type counter struct {
	p *progress
	w io.Writer
}

func (c *counter) Write(b []byte) (int, error) {
	c.p.mu.Lock()
	c.p.files += bytes.Count(b, []byte{'\n'})
	c.p.mu.Unlock()
	return c.w.Write(b)
}
