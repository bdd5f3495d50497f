package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Machine is where something was measured.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"` // that were used
	Memory int64  `json:"memory_bytes"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Files  string `json:"files"` // kind of file system that blobs and files were on
}

func thisMachine(cores int, dir string) Machine {
	m := Machine{CPU: runtime.GOARCH, Cores: cores, Go: runtime.Version(), Files: "disk"}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range bytes.Lines(b) {
			if name, value, ok := bytes.Cut(line, []byte(":")); ok && string(bytes.TrimSpace(name)) == "model name" {
				m.CPU = string(bytes.TrimSpace(value))
				break
			}
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if isTmpfs(dir) {
		m.Files = "tmpfs"
	}
	return m
}

// ThisMachine is all of it.
func ThisMachine() Machine { return thisMachine(runtime.NumCPU(), os.TempDir()) }

// Load is how many processes wanted to run in the last minute, in five, and in fifteen.
func Load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return string(bytes.Join(bytes.Fields(b)[:3], []byte(", ")))
}

func isTmpfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// Dir makes a folder for a benchmark: in memory if there is room for need bytes twice over, and else where temporary
// files go.
func Dir(need int64) (string, error) {
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if isTmpfs(shm) && unix.Statfs(shm, &st) == nil && int64(st.Bavail)*st.Bsize > need && available() > 2*need {
		if dir, err := os.MkdirTemp(shm, "ampoule-bench-*"); err == nil {
			return dir, nil
		}
	}
	return os.MkdirTemp("", "ampoule-bench-*")
}

// available is how much memory the kernel could give, bytes.
func available() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return statusLine(b, "MemAvailable:")
}

// confine keeps this process, and what it starts, on the first cores processors that it may run on.
func confine(cores int) error {
	var all, some unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("processors: %w", err)
	}
	if all.Count() < cores {
		return fmt.Errorf("this machine gives %d processors, want %d", all.Count(), cores)
	}
	for n := 0; some.Count() < cores; n++ {
		if all.IsSet(n) {
			some.Set(n)
		}
	}
	// A thread that is started between the two lines comes from one that is confined, or is met by the second round.
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(tid, &some); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("confine to %d processors: %w", cores, err)
			}
		}
	}
	runtime.GOMAXPROCS(cores)
	return nil
}
