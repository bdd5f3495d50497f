package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// TestEscape tries the ways out of the sandbox from inside, one by one, as the workload.
func TestEscape(t *testing.T) {
	r := newTrial(t, nil, "escape", "litter")
	r.run()
	r.ends("", result.OK, 0)
	// What it left in the results for whoever opens them does no harm either.
	dir := t.TempDir()
	err := r.unseal(dir)
	for _, link := range []string{"passwd", "environ", "up", "root"} {
		if err == nil || !strings.Contains(err.Error(), `"results/`+link+`" was left out`) {
			t.Errorf("of the link %s: %v", link, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "results", link)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the link %s is there: %v", link, err)
		}
	}
	var got map[string]string
	if err := json.Unmarshal([]byte(r.read(filepath.Join(dir, "results/escape.json"))), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(answers, got); d != "" {
		t.Errorf("answers to attempts (-want +got):\n%s", d)
	}
}

// TestBombs takes all there is of everything, within what the manifest gives, and the machine is none the worse.
func TestBombs(t *testing.T) {
	r := newTrial(t, nil, "bombs")
	r.cfg.Shape.VCPUs = 2
	r.limits(`"resources": {"disk_bytes": 16777216, "pids": 40, "cpus": 1},`, 4<<20)
	r.run()
	r.ends("", result.OK, 0)
	dir := r.open()
	var took map[string]int
	if err := json.Unmarshal([]byte(r.read(filepath.Join(dir, "results/bombs.json"))), &took); err != nil {
		t.Fatal(err)
	}
	for name, bound := range map[string][2]int{
		"MiB in /tmp": {10, 16}, "MiB in /dev/shm": {10, 16}, "MiB in results": {4, 5},
		"files in /tmp": {1000, 1024 + 4096}, "files in /dev/shm": {1000, 1024 + 4096}, "files in results": {1000, 1024 + 5*256 + 64},
		"open files": {1000, 65536}, "MiB of log": {39, 40}, "processes": {5, 40}, "CPU of one, per cent": {1, 150},
	} {
		if n, ok := took[name]; !ok || n < bound[0] || n > bound[1] {
			t.Errorf("%s: %d, want %d to %d", name, n, bound[0], bound[1])
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, result.StdoutName)); err != nil || fi.Size() > 17<<20 {
		t.Errorf("stdout: %v, %v; want 16 MiB of it", fi, err)
	}
}

// TestLeastLimits: what a manifest must give at least is enough for a small program to start and to end.
func TestLeastLimits(t *testing.T) {
	r := newTrial(t, nil, "ran", "exit=7")
	r.limits(`"resources": {"memory_bytes": 8388608, "disk_bytes": 1048576, "pids": 16, "cpus": 1},`, 1<<20)
	r.run()
	r.ends("execute", result.Workload, 4)
	if w := r.verified().Statement.Predicate.Workload; w.Exit == nil || *w.Exit != 7 || w.OOM {
		t.Errorf("the receipt has %+v", w)
	}
	r.read(filepath.Join(r.open(), "results/ran"))
}

// limits puts limits into the manifest.
func (r *trial) limits(resources string, results int) {
	r.Helper()
	for from, to := range map[string]string{`"version": 1`: resources + `"version": 1`, `"results": {`: fmt.Sprintf(`"results": {"limit_bytes": %d,`, results)} {
		if !bytes.Contains(r.manifest, []byte(from)) {
			r.Fatalf("the manifest has no %s", from)
		}
		r.manifest = bytes.Replace(r.manifest, []byte(from), []byte(to), 1)
	}
}

// TestStubbornWorkload: what does not stop when it is asked to is killed after its grace, however many there are and however busy.
func TestStubbornWorkload(t *testing.T) {
	r := newTrial(t, nil, "ran", "stubborn=30")
	r.limits(`"resources": {"deadline": "10s", "grace": "2s"},`, 1<<20)
	r.run()
	r.ends("execute", result.Deadline, 4)
	w := r.verified().Statement.Predicate.Workload
	if !w.Deadline || w.Signal != "SIGKILL" {
		t.Errorf("the receipt has %+v", w)
	}
	if took := time.Duration(w.Ended-w.Started) * time.Microsecond; took < 12*time.Second || took > 40*time.Second {
		t.Errorf("it took %v, want a deadline of 10 s, a grace of 2 s and little more", took)
	}
	r.read(filepath.Join(r.open(), "results/ran"))
}

// TestSocketInResults: nothing but files, folders and links can be a result.
func TestSocketInResults(t *testing.T) {
	r := newTrial(t, nil, "socket")
	r.run()
	r.ends("seal", result.Workload, 4)
	if log := r.ownersLog(); !strings.Contains(log, `\"socket\" is a socket, pipe or device`) {
		t.Errorf("the owner's log does not say why:\n%s", log)
	}
}

// answers are what each attempt gets, by answer.
var answers = func() map[string]string {
	const none = "0000000000000000"
	all := map[string]string{
		"Uid": "1000 1000 1000 1000", "Gid": "65532 65532 65532 65532", "Groups": "", "NoNewPrivs": "1", "Seccomp": "2",
		"CapAmb": none, "CapBnd": none, "CapEff": none, "CapInh": none, "CapPrm": none, "links": "lo",
		"tcp": "ok", "netlink routes": "ok", // what programs need
	}
	for answer, names := range map[string][]string{
		// The system call is refused, or a capability is missing.
		"EPERM": {
			"mount", "unmount", "move a mount", "open a tree of mounts", "new mount API", "attributes of mounts", "pivot_root", "chroot",
			"unshare user", "unshare mount", "unshare pid", "unshare network", "unshare ipc", "unshare uts", "unshare cgroup", "clone with a user namespace", "setns",
			"a file by its handle", "fanotify", "keyctl", "add a key", "request a key", "bpf", "perf", "io_uring", "io_uring_register", "userfaultfd",
			"kexec", "kexec of a file", "reboot", "a module", "a module of a file", "swap", "accounting", "set the time", "adjust the time", "host name", "kernel log",
			"another personality", "memory layout", "type on a terminal", "paste on a console", "ports", "port level", "segments",
			"ptrace of PID 1", "memory of PID 1", "descriptors of PID 1", "compare processes", "signal PID 1",
			"raw socket", "raw IPv6 socket", "set up a link", "other groups", "a capability", "an ambient capability", "secure bits", "more open files",
			"real-time priority", "write uid_map", "write gid_map", "make a device", "make a disk", "make a device in the results", "make a disk in the results",
		},
		"ENOSYS":       {"clone3", "old asynchronous reads", "pages of its own choice into a pipe"},
		"EINVAL":       {"become root", "become root's group"}, // who are nobody in the user namespace
		"EAFNOSUPPORT": {"vsock", "vsock with a high half", "vsock datagrams", "packet socket", "the kernel's ciphers", "netlink uevents", "netlink netfilter", "netlink audit"},
		"EACCES": {
			"talk to a device", "execute in results", "execute in /dev/shm", "change /probe", "change /etc/hosts", "change /cocos/datasets/numbers.csv",
			"change /proc/sys/kernel/hostname", "change /proc/sys/vm/drop_caches", "change /proc/sys/net/ipv4/ip_forward", "change /proc/sys/user/max_user_namespaces",
		},
		"EISDIR": {"change /dev"},
		"ENOENT": {
			"open /sys", "open /sys/kernel/config/tsm/report", "open /sys/kernel/security", "open /sys/fs/cgroup", "open /sys/firmware", "open /sys/class",
			"open /work", "open /init", "open /proc/kcore", "open /proc/config.gz", "read /proc/keys", "read /proc/modules",
			"change /proc/sysrq-trigger", "change /proc/sys/kernel/core_pattern",
		},
		"empty": {"read /proc/cmdline", "read /proc/kallsyms", "read /proc/iomem", "read /proc/kmsg", "read /proc/swaps", "read /proc/partitions"},
	} {
		for _, name := range names {
			all[name] = answer
		}
	}
	for _, name := range []string{"mem", "environ", "maps", "root", "cwd", "exe", "fd", "ns/net", "cmdline"} {
		all["see /proc/1/"+name] = "ENOENT"
	}
	for _, name := range []string{"mem", "kmem", "port", "kmsg", "console", "tty", "ttyS0", "hvc0", "vsock", "sev-guest", "tdx_guest", "tpm0", "tpmrm0",
		"vda", "sda", "nvme0n1", "mapper/control", "ram0", "loop-control", "fuse", "kvm", "net/tun", "ptmx", "hwrng", "snapshot", "cpu_dma_latency"} {
		all["open /dev/"+name] = "ENOENT"
	}
	return all
}()

// TestAttemptsGoOtherwiseOutside: root without a sandbox gets other answers, so that those in TestEscape are the sandbox's.
func TestAttemptsGoOtherwiseOutside(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() != 0 || !bytes.Contains(status, []byte("\nSeccomp:\t0\n")) || unix.Prctl(unix.PR_CAPBSET_READ, unix.CAP_SYS_ADMIN, 0, 0, 0) != nil {
		t.Skip("this takes root that nothing confines")
	}
	if _, err := probe(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "results"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(work, "probe"), "escape")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "results/escape.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	for name, inside := range answers {
		switch word, _, _ := strings.Cut(name, " "); {
		case word == "open" || word == "change" || word == "read" || word == "see" || inside == "ok": // what there is differs from machine to machine
		case alike[name]:
		case got[name] == inside || got[name] == "":
			t.Errorf("%s: %q without a sandbox as well", name, inside)
		}
	}
}

// alike are attempts that can fail the same way where nothing stops them: for what is switched off in this machine's kernel, or because
// the kernel has a rule of its own.
var alike = map[string]bool{
	"write uid_map": true, "write gid_map": true, "an ambient capability": true, "memory layout": true, "the kernel's ciphers": true,
	"more open files": true, "Groups": true, "CapInh": true, "CapAmb": true, "links": true, "real-time priority": true, "secure bits": true,
}
