package manifest

import "time"

// MaxGrace is the longest time that a workload may have to tidy up.
const MaxGrace = 10 * time.Minute

// duration reads one of 1s at least and most at most; absent is 0.
func (r *reader) duration(o *object, name string, most time.Duration, written string) time.Duration {
	s := o.text(name)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second || d > most {
		r.problem(o.path(name), "%.40q: want 1s to %s, as in 10m", s, written)
	}
	return d
}

// together refuses limits that contradict one another: what is written lies in the workload's memory.
func (r *reader) together(o *object, m *Manifest) {
	l := m.Resources
	if l.MemoryBytes > 0 && l.DiskBytes > l.MemoryBytes {
		r.problem(o.path("disk_bytes"), "is %d, and memory_bytes, in which it lies, %d: want less, or more memory", l.DiskBytes, l.MemoryBytes)
	}
}
