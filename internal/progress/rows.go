package progress

import (
	"fmt"
	"strings"
	"time"
)

// A Task is a row for what has no known end: "NAME  7 s".
type Task struct {
	live  *Live
	start time.Time
	name  func() string
}

// Task adds a row. name is asked each time, with the lock of l held, so it must not call l.
func (l *Live) Task(name func() string) *Task {
	t := &Task{l, time.Now(), name}
	l.add(t)
	return t
}

func (t *Task) text(width int) string {
	return clip(fmt.Sprintf("%s  %s", t.name(), round(time.Since(t.start))), width)
}

// Tell says now what otherwise is said at the next tick.
func (t *Task) Tell() {
	t.live.mu.Lock()
	defer t.live.mu.Unlock()
	t.live.tell("")
}

// End takes the row away.
func (t *Task) End() {
	t.live.mu.Lock()
	defer t.live.mu.Unlock()
	t.live.remove(t, "")
}

// A Bar is a row for something of so many bytes.
type Bar struct {
	live        *Live
	name        string
	start       time.Time
	done, total int64
}

// Bar adds a row for total bytes; 0 is unknown.
func (l *Live) Bar(name string, total int64) *Bar {
	b := &Bar{live: l, name: name, start: time.Now(), total: total}
	l.add(b)
	return b
}

// Add counts n more bytes.
func (b *Bar) Add(n int64) {
	b.live.mu.Lock()
	defer b.live.mu.Unlock()
	b.done += n
}

// Set says how many bytes there are by now.
func (b *Bar) Set(n int64) {
	b.live.mu.Lock()
	defer b.live.mu.Unlock()
	b.done = n
}

// End puts a line in the place of the row: the bytes, the time (measured by us if took is 0), and the mean rate. What
// did not get to its end says how far it came. It returns the bytes.
func (b *Bar) End(ok bool, took time.Duration) int64 {
	b.live.mu.Lock()
	defer b.live.mu.Unlock()
	if took <= 0 {
		took = time.Since(b.start)
	}
	bytes := Bytes(b.done)
	if !ok && b.total > 0 {
		bytes += " of " + Bytes(b.total)
	}
	line := fmt.Sprintf("%s  %s in %s, %s", b.name, bytes, Seconds(took), Rate(b.done, took))
	b.live.remove(b, clip(line, 200))
	return b.done
}

const (
	minBar = 8  // columns; with less there is none
	maxBar = 40 // beyond it a bar only wanders from its numbers
	tail   = 47 // of most numbers, so that bars do not change their length
)

func (b *Bar) text(width int) string {
	took := time.Since(b.start)
	if b.total <= 0 {
		return clip(fmt.Sprintf("%s  %s, %s, %s", b.name, Bytes(b.done), Rate(b.done, took), round(took)), width)
	}
	part := min(1, max(0, float64(b.done)/float64(b.total)))
	rate := Rate(b.done, took)
	if part == 1 {
		rate = "finishing" // as what comes after the last byte may take longer than all bytes
	}
	numbers := fmt.Sprintf(" %3.0f%%  %s of %s, %s", 100*part, Bytes(b.done), Bytes(b.total), rate)
	// The first second says little of what is to come.
	if left := took.Seconds() * (1 - part) / part; took >= time.Second && left > 0 && left < (100*time.Hour).Seconds() {
		numbers += fmt.Sprintf(", %s left", round(time.Duration(left*float64(time.Second))))
	}
	bar := ""
	if room := min(maxBar, width-len(b.name)-max(tail, len(numbers))-4); room >= minBar && b.live.size != nil {
		full := int(part * float64(room))
		bar = "  [" + strings.Repeat("#", full) + strings.Repeat(".", room-full) + "]"
	}
	return clip(b.name+bar+numbers, width)
}

// Bytes is a size for people, in powers of 1000: "7.1 MB".
func Bytes(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n)
	for _, unit := range []string{"kB", "MB", "GB", "TB", "PB"} {
		if f /= 1000; f < 999.95 {
			return fmt.Sprintf("%.1f %s", f, unit)
		}
	}
	return fmt.Sprintf("%.1f EB", f/1000)
}

// Rate is the mean rate of n bytes in some time: "2.0 MB/s".
func Rate(n int64, took time.Duration) string {
	if took <= 0 || n <= 0 {
		return "0 B/s"
	}
	return Bytes(int64(min(float64(n)/took.Seconds(), 1<<62))) + "/s"
}

// Seconds is a time for people: "3.6 s".
func Seconds(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return round(d)
}

// round is a time in whole seconds: "7 s", "2m0s".
func round(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}
