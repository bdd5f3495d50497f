package progress

import (
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

// A screen is a terminal as far as this package uses one: CR, LF, cursor up and clear to the end of the line.
type screen struct {
	t             *testing.T
	columns, rows int
	cells         []string // lines, scrolled out ones included
	x, y          int
	top           int // index of the first line that is on the screen
}

func newScreen(t *testing.T, columns, rows int) *screen {
	return &screen{t: t, columns: columns, rows: rows, cells: []string{""}}
}

func (s *screen) size() (int, int, error) { return s.columns, s.rows, nil }

func (s *screen) Write(p []byte) (int, error) {
	for in := string(p); in != ""; {
		if after, ok := strings.CutPrefix(in, "\x1b[A"); ok {
			s.y = max(s.top, s.y-1)
			in = after
			continue
		}
		if after, ok := strings.CutPrefix(in, "\x1b[K"); ok {
			s.cells[s.y] = s.cells[s.y][:min(s.x, len(s.cells[s.y]))]
			in = after
			continue
		}
		switch c := in[0]; {
		case c == '\r':
			s.x = 0
		case c == '\n':
			s.x, s.y = 0, s.y+1
			if s.y == len(s.cells) {
				s.cells = append(s.cells, "")
			}
			s.top = max(s.top, s.y-s.rows+1)
		case c < ' ' || c > '~':
			s.t.Fatalf("byte %#x reached the terminal", c)
		default:
			if s.x >= s.columns {
				s.t.Fatalf("a line of more than %d columns: %q", s.columns, in)
			}
			if s.x != len(s.cells[s.y]) {
				s.t.Fatalf("text over text in column %d of %q", s.x, s.cells[s.y])
			}
			s.cells[s.y] += string(c)
			s.x++
		}
		in = in[1:]
	}
	return len(p), nil
}

// resize is to fewer columns: lines break, as in terminals that keep their text.
func (s *screen) resize(columns int) {
	s.columns = columns
	var broken []string
	for _, line := range s.cells {
		for len(line) > columns {
			broken, line = append(broken, line[:columns]), line[columns:]
		}
		broken = append(broken, line)
	}
	s.y += len(broken) - len(s.cells) // all of them are above the cursor
	s.cells = broken
	s.top = max(s.top, s.y-s.rows+1)
}

func (s *screen) shows(want ...string) {
	s.t.Helper()
	got := s.cells
	for len(got) > 0 && got[len(got)-1] == "" {
		got = got[:len(got)-1]
	}
	if s.x != 0 || s.y != len(got) {
		s.t.Errorf("the cursor is not on a line of its own below the text: column %d of line %d in %q", s.x, s.y, got)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		s.t.Errorf("the screen (-want +got):\n%s", d)
	}
}

// onScreen runs f in a bubble of time, on a terminal.
func onScreen(t *testing.T, columns, rows int, f func(*screen, *Live)) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(t, columns, rows)
		f(s, start(s, s.size))
	})
}

// pass lets time pass, and all that is due with it.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRowsAreDrawnInPlace(t *testing.T) {
	onScreen(t, 80, 24, func(s *screen, l *Live) {
		l.Say("1. Begin")
		step := l.Task(func() string { return "  pull" })
		a, b := l.Bar("    algorithm  ", 10e6), l.Bar("    datasets[0]", 0)
		s.shows("1. Begin", "  pull  0 s", "    algorithm    [.............]   0%  0 B of 10.0 MB, 0 B/s", "    datasets[0]  0 B, 0 B/s, 0 s")
		a.Add(2e6)
		a.Add(500e3)
		b.Set(1234)
		pass(2 * time.Second)
		s.shows("1. Begin", "  pull  2 s",
			"    algorithm    [###..........]  25%  2.5 MB of 10.0 MB, 1.2 MB/s, 6 s left",
			"    datasets[0]  1.2 kB, 617 B/s, 2 s")
		a.Add(7.5e6)
		b.End(true, 0)
		s.shows("1. Begin", "    datasets[0]  1.2 kB in 2.0 s, 617 B/s", "  pull  2 s",
			"    algorithm    [#############] 100%  10.0 MB of 10.0 MB, finishing")
		a.End(true, 2500*time.Millisecond)
		step.End()
		l.Say("  pull ok")
		l.Close()
		s.shows("1. Begin", "    datasets[0]  1.2 kB in 2.0 s, 617 B/s", "    algorithm    10.0 MB in 2.5 s, 4.0 MB/s", "  pull ok")
	})
}

func TestCloseLeavesNoRow(t *testing.T) {
	onScreen(t, 80, 24, func(s *screen, l *Live) {
		l.Say("line")
		l.Bar("bar", 10)
		l.Task(func() string { return "task" })
		s.Write([]byte("^C")) // as the terminal itself does
		l.Close()
		s.shows("line")
	})
}

func TestNarrowTerminal(t *testing.T) {
	for _, c := range []struct {
		columns int
		want    string
	}{
		{200, "algorithm  [" + strings.Repeat("#", 20) + strings.Repeat(".", 20) + "]  50%  5 B of 10 B, 5 B/s, 1 s left"},
		{70, "algorithm  [" + strings.Repeat("#", 4) + strings.Repeat(".", 5) + "]  50%  5 B of 10 B, 5 B/s, 1 s left"},
		{50, "algorithm  50%  5 B of 10 B, 5 B/s, 1 s left"},
		{20, "algorithm  50%  5 B"},
		{2, "a"},
		{1, "algorithm  [" + strings.Repeat("#", 9) + strings.Repeat(".", 10) + "]  50%  5 B of 10 B, 5 B/s, 1 s left"}, // says nonsense: taken as 80
	} {
		t.Run(strconv.Itoa(c.columns), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScreen(t, max(c.columns, 80), 24)
				l := start(s, func() (int, int, error) { return c.columns, 24, nil })
				b := l.Bar("algorithm", 10)
				b.Set(5)
				pass(time.Second)
				s.shows(c.want)
				l.Close()
				s.shows()
			})
		})
	}
}

func TestResizing(t *testing.T) {
	onScreen(t, 80, 24, func(s *screen, l *Live) {
		l.Say("a line that stays")
		l.Bar("one", 10)
		l.Bar("two", 10)
		s.resize(40)
		pass(onTerminal)
		s.shows("a line that stays", "one   0%  0 B of 10 B, 0 B/s", "two   0%  0 B of 10 B, 0 B/s")
		s.columns = 63
		pass(onTerminal)
		s.shows("a line that stays", "one  [........]   0%  0 B of 10 B, 0 B/s", "two  [........]   0%  0 B of 10 B, 0 B/s")
		l.Close()
	})
}

func TestMoreRowsThanLines(t *testing.T) {
	onScreen(t, 40, 5, func(s *screen, l *Live) {
		for i := range 10 {
			l.Bar(strconv.Itoa(i), 0)
		}
		want := []string{"0  0 B, 0 B/s, 0 s", "1  0 B, 0 B/s, 0 s", "2  0 B, 0 B/s, 0 s", "... and 7 more"}
		s.shows(want...)
		l.Say("a line that stays")
		pass(onTerminal)
		s.shows(append([]string{"a line that stays"}, want...)...)
		l.Close()
		s.shows("a line that stays")
	})
}

func TestNamesDoNotMoveTheCursor(t *testing.T) {
	onScreen(t, 80, 24, func(s *screen, l *Live) {
		b := l.Bar("\x1b[2Jnäme\n", 0)
		s.shows("?[2Jn?me?  0 B, 0 B/s, 0 s")
		b.End(true, time.Second)
		s.shows("?[2Jn?me?  0 B in 1.0 s, 0 B/s")
		l.Close()
	})
}

func TestAwayFromATerminalLinesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		l := start(&out, nil)
		task := l.Task(func() string { return "pull" })
		b := l.Bar("algorithm", 70e6)
		for range 35 {
			b.Add(1e6)
			pass(time.Second)
		}
		b.End(false, 0)
		task.Tell()
		task.End()
		l.Say("%s", "failed")
		l.Close()
		const want = "pull  30 s\nalgorithm  43%  30.0 MB of 70.0 MB, 1.0 MB/s, 40 s left\n" +
			"algorithm  35.0 MB of 70.0 MB in 35 s, 1.0 MB/s\npull  35 s\nfailed\n"
		if d := cmp.Diff(want, out.String()); d != "" {
			t.Errorf("output (-want +got):\n%s", d)
		}
	})
}

func TestNumbersOfAGuestThatLies(t *testing.T) {
	onScreen(t, 300, 24, func(s *screen, l *Live) {
		for _, n := range []struct{ done, total int64 }{{math.MaxInt64, 1}, {1, math.MaxInt64}, {-5, 10}, {5, -1}, {math.MaxInt64, math.MaxInt64}} {
			b := l.Bar("x", n.total)
			b.Set(n.done)
			pass(onTerminal) // the screen fails for a line that is too long
			b.End(false, 1)
		}
		l.Close()
		if s.y != 5 {
			t.Errorf("%q", s.cells)
		}
	})
}

func TestForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 7_100_000: "7.1 MB", 999_940: "999.9 kB", 999_960: "1.0 MB", 1 << 40: "1.1 TB", math.MaxInt64: "9.2 EB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d bytes are %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0.0 s", 3634 * time.Millisecond: "3.6 s", 12400 * time.Millisecond: "12 s", 2 * time.Minute: "2m0s"} {
		if got := Seconds(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
	if got := Rate(math.MaxInt64, 1); got != "4.6 EB/s" {
		t.Errorf("the highest rate is %q", got)
	}
}

// TestRealTerminal: a pseudoterminal is taken for one, with its width.
func TestRealTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudoterminals here: %v", err)
	}
	defer master.Close()
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 10, Col: 30})
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	l := New(slave)
	l.Bar("a name that is far too long for it", 10)
	l.Close()
	const want = "a name that is far too long f\r\n\r\x1b[K\x1b[A\x1b[K"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(master, got); err != nil || string(got) != want {
		t.Errorf("the terminal got %q, want %q: %v", got, want, err)
	}
	t.Setenv("TERM", "dumb")
	if dumb := New(slave); dumb.size != nil {
		t.Error("a dumb terminal is to be drawn on")
	} else {
		dumb.Close()
	}
}
