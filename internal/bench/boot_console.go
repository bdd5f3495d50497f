package bench

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A KernelLog is what a kernel with ignore_loglevel and initcall_debug wrote to its console.
type KernelLog struct {
	Zero  time.Time // of the kernel's clock, on this machine's: the least difference, over all lines, between arrival and stamp
	lines []kernelLine
	other []otherLine
}

// An otherLine is not the kernel's.
type otherLine struct {
	came time.Time
	text string
}

type kernelLine struct {
	at   time.Duration // since Zero
	came time.Time
	text string
}

// An Initcall is one function that the kernel calls to set a part of itself up.
type Initcall struct {
	Name string        `json:"name"`
	Took time.Duration `json:"ns"`
}

// consolePause is how often a console is looked at, which is how late a line can be seen.
const consolePause = time.Millisecond

// FollowConsole reads the console at path, which may come to be later, until ctx ends.
func FollowConsole(ctx context.Context, path string) (*KernelLog, error) {
	l := &KernelLog{}
	var f *os.File
	var partial []byte
	tick := time.NewTicker(consolePause)
	defer tick.Stop()
	for ended := false; ; {
		var err error
		if f == nil {
			if f, err = os.Open(path); err != nil {
				f = nil
			}
		}
		if f != nil {
			var fresh []byte
			fresh, err = io.ReadAll(f)
			now := time.Now()
			partial = append(partial, fresh...)
			for line, rest, ok := bytes.Cut(partial, []byte("\n")); ok; line, rest, ok = bytes.Cut(partial, []byte("\n")) {
				l.add(now, string(bytes.TrimRight(line, "\r")))
				partial = rest
			}
		}
		if ended || err != nil && !errors.Is(err, fs.ErrNotExist) {
			if f != nil {
				f.Close()
			}
			return l, err
		}
		select {
		case <-ctx.Done():
			ended = true // once more, for what came since
		case <-tick.C:
		}
	}
}

var stamped = regexp.MustCompile(`^\[ *(\d+\.\d{6})\] (.*)$`)

func (l *KernelLog) add(now time.Time, line string) {
	m := stamped.FindStringSubmatch(line)
	if m == nil {
		l.other = append(l.other, otherLine{now, line})
		return
	}
	seconds, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return
	}
	at := time.Duration(seconds * float64(time.Second))
	if zero := now.Add(-at); l.Zero.IsZero() || zero.Before(l.Zero) {
		l.Zero = zero
	}
	l.lines = append(l.lines, kernelLine{at, now, m[2]})
}

// At is when the kernel wrote the first line that begins with text, and whether it did.
func (l *KernelLog) At(text string) (time.Duration, bool) {
	for _, line := range l.lines {
		if strings.HasPrefix(line.text, text) {
			return line.at, true
		}
	}
	return 0, false
}

// Between is how long after the kernel's line that begins with first another one came that is not the kernel's and has second in it.
func (l *KernelLog) Between(first, second string) (time.Duration, bool) {
	for _, line := range l.lines {
		if !strings.HasPrefix(line.text, first) {
			continue
		}
		for _, o := range l.other {
			if strings.Contains(o.text, second) {
				return o.came.Sub(line.came), true
			}
		}
	}
	return 0, false
}

var returned = regexp.MustCompile(`^initcall (\w+)\+\S+ returned \S+ after (\d+) usecs`)

// Initcalls are all that the kernel timed, in their order.
func (l *KernelLog) Initcalls() (all []Initcall) {
	for _, line := range l.lines {
		if m := returned.FindStringSubmatch(line.text); m != nil {
			us, err := strconv.Atoi(m[2])
			if err != nil {
				continue
			}
			all = append(all, Initcall{m[1], time.Duration(us) * time.Microsecond})
		}
	}
	return all
}

// Slowest are the n slowest initcalls of several boots, each with its least time: what delays one of them is the machine. It also gives
// the sum of all.
func Slowest(logs []*KernelLog, n int) (slowest []Initcall, sum time.Duration) {
	least := map[string]time.Duration{}
	for _, l := range logs {
		for _, c := range l.Initcalls() {
			if t, ok := least[c.Name]; !ok || c.Took < t {
				least[c.Name] = c.Took
			}
		}
	}
	for name, took := range least {
		slowest, sum = append(slowest, Initcall{name, took}), sum+took
	}
	slices.SortFunc(slowest, func(a, b Initcall) int { return cmp.Or(cmp.Compare(b.Took, a.Took), cmp.Compare(a.Name, b.Name)) })
	return slowest[:min(n, len(slowest))], sum
}
