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
