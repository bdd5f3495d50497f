package guest

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	killGrace = 500 * time.Millisecond // for killed processes to be gone; one in state D never is
	syncGrace = time.Second            // for a file system that does not answer
)

// PowerOff kills every other process, writes back what there is to write, and cuts the power. It does not return, and
// nothing that a child, a device or the host does can keep it from getting to reboot(2): each wait is bounded.
// Only PID 1 may call it. A second caller waits for the first.
func PowerOff() {
	powerOnce.Do(system.off)
	os.Exit(1) // reboot(2) has returned: the kernel panics when PID 1 exits, and that ends the VM too
}

var powerOnce sync.Once

// power is what PowerOff does to the machine, as functions that a test can replace.
type power struct {
	kill   func()       // SIGKILL to all but this process
	wait   func() error // for one child; an error when there is none
	sync   func()
	reboot func(cmd int) error
}

var system = power{
	kill: func() { unix.Kill(-1, unix.SIGKILL) },
	wait: func() error {
		_, err := unix.Wait4(-1, nil, 0, nil)
		return err
	},
	sync:   unix.Sync,
	reboot: unix.Reboot,
}

func (p power) off() {
	p.kill()
	// The reaper may take some of these statuses; at this point nobody asks for one.
	within(killGrace, func() {
		for {
			if err := p.wait(); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	within(syncGrace, p.sync)
	if err := p.reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		p.reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}

// within returns when f does, or after d.
func within(d time.Duration, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}
