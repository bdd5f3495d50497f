// Package progress tells a waiting person how far things are: on a terminal in rows that are drawn again in place, each
// with a bar where there is an end to it, and elsewhere in plain lines, rarely.
package progress

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// How often a row is told again.
const (
	onTerminal = 200 * time.Millisecond
	elsewhere  = 30 * time.Second
)

// A Live is a place for rows below lines that stay. Its methods, and those of its rows, are for any goroutine.
type Live struct {
	w    io.Writer
	size func() (columns, lines int, err error) // nil: not a terminal
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex
	rows  []row
	drawn []int // columns of each row that is on the terminal now
}

// A row is one line that changes, of at most width columns. Its Live's lock is held.
type row interface{ text(width int) string }

// New begins on w. It is a terminal if it is a file that is one, and not a dumb one.
func New(w io.Writer) *Live {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		return start(w, func() (int, int, error) { return term.GetSize(int(f.Fd())) })
	}
	return start(w, nil)
}

func start(w io.Writer, size func() (int, int, error)) *Live {
	l := &Live{w: w, size: size, stop: make(chan struct{}), done: make(chan struct{})}
	every := elsewhere
	if size != nil {
		every = onTerminal
	}
	go func() {
		defer close(l.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.mu.Lock()
				l.tell("")
				l.mu.Unlock()
			case <-l.stop:
				return
			}
		}
	}()
	return l
}

// Close takes the rows away and leaves the cursor on a line of its own.
func (l *Live) Close() {
	close(l.stop)
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows = nil
	if l.size != nil {
		l.tell("")
	}
}

// Say prints a line that stays.
func (l *Live) Say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.say(fmt.Sprintf(format, args...))
}

// say needs the lock, like all below.
func (l *Live) say(line string) {
	if l.size != nil {
		l.tell(line + "\n")
		return
	}
	fmt.Fprintln(l.w, line)
}

// tell says how far all is: on a terminal over what it said before, with stays above it.
func (l *Live) tell(stays string) {
	if l.size == nil {
		for _, r := range l.rows {
			fmt.Fprintln(l.w, r.text(200))
		}
		return
	}
	columns, lines, err := l.size()
	if err != nil || columns < 2 || lines < 2 {
		columns, lines = 80, 24
	}
	// In one write, so that nothing flickers. A terminal that became narrower has broken the rows into more lines.
	var b strings.Builder
	up := 0
	for _, n := range l.drawn {
		up += max(1, (n+columns-1)/columns)
	}
	if up > 0 {
		// Line by line: what clears a whole screen at once is kept in the history of some terminals.
		b.WriteString("\r\x1b[K" + strings.Repeat("\x1b[A\x1b[K", min(up, lines-1)))
	}
	b.WriteString(stays)
	l.drawn = l.drawn[:0]
	for i, r := range l.rows {
		text := r.text(columns - 1)
		if rest := len(l.rows) - i; i == lines-2 && rest > 1 { // the cursor has the last line
			text = clip(fmt.Sprintf("... and %d more", rest), columns-1)
		}
		fmt.Fprintf(&b, "%s\n", text)
		l.drawn = append(l.drawn, len(text))
		if i == lines-2 {
			break
		}
	}
	io.WriteString(l.w, b.String())
}

func (l *Live) add(r row) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows = append(l.rows, r)
	if l.size != nil {
		l.tell("")
	}
}

// remove takes a row away; line, if there is one, stays in its place.
func (l *Live) remove(r row, line string) {
	l.rows = slices.DeleteFunc(l.rows, func(other row) bool { return other == r })
	switch {
	case line != "":
		l.say(line)
	case l.size != nil:
		l.tell("")
	}
}

// clip cuts s to width, and replaces what is not printable ASCII: one byte that moves the cursor would spoil all.
func clip(s string, width int) string {
	clean := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
	return clean[:min(len(clean), max(width, 0))]
}
