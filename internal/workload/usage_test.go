package workload

import (
	"os"
	"path/filepath"
	"testing"
)

// TestUsage: numbers as the kernel writes them, and none where it writes none.
func TestUsage(t *testing.T) {
	g := &cgroup{dir: t.TempDir()}
	if got := g.usage(); got != (Usage{}) {
		t.Errorf("of a kernel that counts nothing: %+v", got)
	}
	for name, text := range map[string]string{
		"memory.peak": "1048576\n", "pids.peak": "7\n", "memory.events": "low 0\noom 2\noom_kill 1\n",
		"cpu.stat": "usage_usec 2500\nuser_usec 2000\nsystem_usec 500\n",
	} {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := g.usage(), (Usage{1 << 20, 2500, 7, 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := (*cgroup)(nil).usage(); got != (Usage{}) {
		t.Errorf("without cgroup2: %+v", got)
	}
}
