package qemu

import (
	"os"
	"strings"
)

// maxOutput bounds what is kept of console and stderr each, bytes.
const maxOutput = 16 << 20

// A watcher stores output and looks for a sign in it.
type watcher struct {
	f    *os.File
	left int
	tail []byte // of what was written: the sign may be split
	seen bool
	sign string
	end  End
	to   chan<- End
}

const watcherTail = 2048

func newWatcher(path string, to chan<- End, sign string, end End) (*watcher, error) {
	f, err := os.Create(path)
	return &watcher{f: f, left: maxOutput, sign: sign, end: end, to: to}, err
}

func (w *watcher) Write(b []byte) (int, error) {
	keep := b[:min(len(b), w.left)]
	if w.left -= len(keep); len(keep) > 0 && w.left == 0 {
		keep = append(keep[:len(keep):len(keep)], "\n[the rest was not kept]\n"...)
	}
	// What does not fit on the disk is lost; QEMU must not block on it.
	_, _ = w.f.Write(keep)
	w.tail = append(w.tail, b...)
	if !w.seen && strings.Contains(string(w.tail), w.sign) {
		w.seen = true
		w.to <- w.end
	}
	w.tail = w.tail[max(0, len(w.tail)-watcherTail):]
	return len(b), nil
}

// lastLines is the end of the output, for an error message.
func (w *watcher) lastLines() string {
	s := strings.TrimSpace(string(w.tail))
	if s == "" {
		return "it printed nothing"
	}
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

func (w *watcher) Close() error {
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}
