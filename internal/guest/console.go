package guest

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// ClearEnv empties the environment, which the kernel filled with every word of the command line it did not know. It
// also has the Go runtime print no goroutine traces when it crashes: the host reads what it prints.
//
// The runtime reads GOGC, GOMEMLIMIT, GOTRACEBACK and parts of GODEBUG before main. They can slow the program down or
// print more, and come from a command line that is measured where that matters.
func ClearEnv() {
	os.Clearenv()
	debug.SetTraceback("none")
}

// Console opens the console of the machine, which the host reads. Until Mount has made /dev, or if there is no
// console, it is standard error.
func Console() io.Writer {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return os.Stderr
	}
	return f
}

// Silence points standard input, output and error at /dev/null, so that neither a library nor the Go runtime can put
// text on the console. Console opens a descriptor of its own and goes on to work.
func Silence() error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return fmt.Errorf("point descriptor %d at /dev/null: %w", fd, err)
		}
	}
	return nil
}
