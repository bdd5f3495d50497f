package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A setting is one file below /proc/sys and what it has to say.
type setting struct {
	path, value string
	mayBeAbsent bool // the feature that it restricts can be left out of a kernel
}

// settings are written and read back, in this order.
var settings = []setting{
	// What the kernel tells about itself.
	{"kernel/kptr_restrict", "2", false},
	{"kernel/dmesg_restrict", "1", false},
	{"kernel/perf_event_paranoid", "3", true},
	{"kernel/randomize_va_space", "2", false},

	// Ways to other code in ring 0. None can be undone.
	{"kernel/kexec_load_disabled", "1", true},
	{"kernel/modules_disabled", "1", true},
	{"kernel/unprivileged_bpf_disabled", "1", true},
	{"net/core/bpf_jit_harden", "2", true},
	{"kernel/io_uring_disabled", "2", true},
	{"vm/unprivileged_userfaultfd", "0", true},
	// The workload is in the one that there can be, which counts as root's: nobody in it can make another.
	{"user/max_user_namespaces", "1", false},
	{"kernel/unprivileged_userns_clone", "0", true}, // Debian's kernels
	{"kernel/sysrq", "0", true},

	// Memory of one process in the hands of another, or in a file.
	{"kernel/yama/ptrace_scope", "3", false},
	{"kernel/core_pattern", "|/nonexistent", true},
	{"fs/suid_dumpable", "0", false},

	// The network belongs to the host: it may not change addresses or routes that were not asked for.
	{"net/ipv4/conf/all/accept_redirects", "0", true},
	{"net/ipv4/conf/default/accept_redirects", "0", true},
	{"net/ipv4/conf/all/accept_source_route", "0", true},
	{"net/ipv4/conf/default/accept_source_route", "0", true},
	{"net/ipv4/conf/all/send_redirects", "0", true},
	{"net/ipv6/conf/all/accept_ra", "0", true},
	{"net/ipv6/conf/default/accept_ra", "0", true},
	{"net/ipv6/conf/all/accept_redirects", "0", true},
	{"net/ipv6/conf/default/accept_redirects", "0", true},
	{"net/ipv6/conf/default/autoconf", "0", true},
}

// Lockdown closes what a running kernel leaves open: sysctls, the lockdown LSM at "confidentiality" where the kernel
// offers it, and this process's own memory (not dumpable, no core). It returns every problem, not the first.
func Lockdown() error {
	errs := apply("/proc/sys", settings)
	errs = append(errs, lockLSM("/sys/kernel/security/lockdown"))
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("make the process not dumpable: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("set the core limit to 0: %w", err))
	}
	return errors.Join(errs...)
}

func apply(dir string, table []setting) (errs []error) {
	for _, s := range table {
		path := filepath.Join(dir, s.path)
		err := writeFile(path, s.value)
		if s.mayBeAbsent && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
		} else if got := strings.TrimSpace(string(now)); got != s.value {
			errs = append(errs, fmt.Errorf("%s is %q after %q was written", path, got, s.value))
		}
	}
	return errs
}

// lockLSM raises the lockdown LSM to its highest level. The file reads like "none [integrity] confidentiality".
func lockLSM(path string) error {
	const want = "confidentiality"
	levels, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not in this kernel
	}
	if err != nil {
		return err
	}
	for _, l := range strings.Fields(string(levels)) {
		switch l {
		case "[" + want + "]":
			return nil
		case want:
			return writeFile(path, want)
		}
	}
	return fmt.Errorf("%s offers %q, want %s among it", path, strings.TrimSpace(string(levels)), want)
}
