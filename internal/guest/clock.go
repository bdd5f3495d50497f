package guest

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Uptime is the time since the kernel booted, by CLOCK_BOOTTIME: the one clock whose zero the host cannot choose.
func Uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // only a bad clock id or pointer fails
	}
	return time.Duration(ts.Nano())
}

// CPUTime is what this process and the children that it has waited for have had of processors. That of PID 1 begins with the kernel's own
// start, which its first thread has run.
func CPUTime() (total time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0 // only a bad argument fails
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total
}

// FloorClock sets the wall clock forward to build, the time the image was made, when the host's clock is earlier
// than that: certificates that had expired by then stay expired. It never sets the clock back.
func FloorClock(build time.Time) error {
	return floorClock(time.Now(), build, func(t time.Time) error {
		ts, err := unix.TimeToTimespec(t)
		if err != nil {
			return err
		}
		return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	})
}

func floorClock(now, build time.Time, set func(time.Time) error) error {
	if !now.Before(build) {
		return nil
	}
	if err := set(build); err != nil {
		return fmt.Errorf("set the clock from %s to the build time %s: %w",
			now.UTC().Format(time.RFC3339), build.UTC().Format(time.RFC3339), err)
	}
	return nil
}
