package mkimage

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/progress"
)

// kernelProgress tells a waiting person how far a kernel is.
type kernelProgress struct {
	what  string
	live  *progress.Live
	task  *progress.Task
	start time.Time

	mu    sync.Mutex
	doing string
	files int
}

func newProgress(w io.Writer, what string) *kernelProgress {
	p := &kernelProgress{what: what, live: progress.New(w), start: time.Now(), doing: "starting"}
	p.task = p.live.Task(p.String)
	return p
}

func (p *kernelProgress) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf("%s: %s", p.what, p.doing)
	if p.files > 0 {
		line += fmt.Sprintf(", %d files", p.files)
	}
	return line
}

// step names what happens from now on.
func (p *kernelProgress) step(doing string) {
	p.mu.Lock()
	p.doing, p.files = doing, 0
	p.mu.Unlock()
	p.task.Tell()
}

// end leaves a line that says how long it took.
func (p *kernelProgress) end(err error) {
	if err == nil {
		p.task.End()
		p.live.Say("%s: built in %s", p.what, progress.Seconds(time.Since(p.start)))
	}
	p.live.Close()
}

// tee passes the output of make on to w and counts its lines, each of which names a file: "  CC      init/main.o".
func (p *kernelProgress) tee(w io.Writer) io.Writer { return &counter{p, w} }

type counter struct {
	p *kernelProgress
	w io.Writer
}

func (c *counter) Write(b []byte) (int, error) {
	c.p.mu.Lock()
	c.p.files += bytes.Count(b, []byte{'\n'})
	c.p.mu.Unlock()
	return c.w.Write(b)
}
