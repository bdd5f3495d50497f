package guest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestPowerOffAlwaysGetsToReboot(t *testing.T) {
	for _, tc := range []struct {
		name      string
		children  int  // that end when killed
		stuck     bool // one never ends
		syncHangs bool
		refuses   bool // reboot(2) fails
		took      time.Duration
		want      []string
	}{
		{"nobody is left", 0, false, false, false, 0,
			[]string{"kill", "wait", "sync", "reboot power-off"}},
		{"two children end", 2, false, false, false, 0,
			[]string{"kill", "wait", "wait", "wait", "sync", "reboot power-off"}},
		{"a child is stuck in the kernel", 0, true, false, false, killGrace,
			[]string{"kill", "wait", "sync", "reboot power-off"}},
		{"a file system does not answer", 0, false, true, false, syncGrace,
			[]string{"kill", "wait", "sync", "reboot power-off"}},
		{"all of it at once", 1, true, true, true, killGrace + syncGrace,
			[]string{"kill", "wait", "wait", "sync", "reboot power-off", "reboot restart"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var got []string
				note := func(s string) {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, s)
				}
				release := make(chan struct{}) // lets the hung calls end with the test
				children := tc.children
				begin := time.Now()
				power{
					kill: func() { note("kill") },
					wait: func() error {
						note("wait")
						if children > 0 {
							children--
							return nil
						}
						if tc.stuck {
							<-release
						}
						return unix.ECHILD
					},
					sync: func() {
						note("sync")
						if tc.syncHangs {
							<-release
						}
					},
					reboot: func(cmd int) error {
						name, known := map[int]string{unix.LINUX_REBOOT_CMD_POWER_OFF: "power-off", unix.LINUX_REBOOT_CMD_RESTART: "restart"}[cmd]
						if !known {
							name = fmt.Sprint(cmd)
						}
						note("reboot " + name)
						if tc.refuses {
							return errors.New("no")
						}
						return nil
					},
				}.off()
				if took := time.Since(begin); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				close(release)
				synctest.Wait()
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
			})
		})
	}
}
