package mkimage

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestProgressAwayFromATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, log strings.Builder
		p := newProgress(&out, "test kernel")
		p.step("compiling")
		w := p.tee(&log)
		for range 3 {
			w.Write([]byte("  CC      init/main.o\n"))
		}
		time.Sleep(61 * time.Second) // of the bubble's clock
		p.end(nil)
		const want = "test kernel: compiling  0 s\ntest kernel: compiling, 3 files  30 s\ntest kernel: compiling, 3 files  1m0s\ntest kernel: built in 1m1s\n"
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
		if strings.Count(log.String(), "\n") != 3 {
			t.Errorf("the log got %q", log.String())
		}
	})
}
