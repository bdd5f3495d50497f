package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/internal/guest"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const testUser = 4242

// sandbox gives a Spec that runs the probe, and what it writes.
func sandbox(t *testing.T, args ...string) (s Spec, stdout, stderr *bytes.Buffer) {
	t.Helper()
	needs(t)
	dir := t.TempDir()
	s = Spec{
		Root: filepath.Join(dir, "root"), Datasets: filepath.Join(dir, "datasets"),
		Results: filepath.Join(dir, "results"), Scratch: filepath.Join(dir, "scratch"),
		Args: append([]string{"/probe"}, args...), UID: testUser, GID: testUser,
		ScratchBytes: 64 << 20,
	}
	for _, d := range []string{s.Root, s.Datasets, s.Results, s.Scratch} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(program(t), filepath.Join(s.Root, "probe")); err != nil {
		t.Fatal(err)
	}
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	s.Stdout, s.Stderr = stdout, stderr
	return s, stdout, stderr
}

// needs skips a test where this machine or this user cannot make a sandbox.
func needs(t *testing.T) {
	t.Helper()
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); e == unix.ENOTSUP {
		t.Skip("the stub is linked to the host's C library, which is not in the sandbox: run this with CGO_ENABLED=0")
	}
	if !hasCapability(t, unix.CAP_SYS_ADMIN) {
		t.Skip("making namespaces needs CAP_SYS_ADMIN")
	}
	if err := userNamespace(); err != nil {
		t.Skipf("no user namespace can be made here, as in a chroot: %v", err)
	}
	if !onCgroup2() {
		return
	}
	on, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"))
	if err != nil || !bytes.Contains(on, []byte("memory")) || !bytes.Contains(on, []byte("pids")) || unix.Access(cgroupRoot, unix.W_OK) != nil {
		t.Skipf("%s has not the memory and pids controllers to give, or is not ours to write to", cgroupRoot)
	}
}

func hasCapability(t *testing.T, c int) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := strings.Cut(string(status), "CapEff:")
	var have uint64
	fmt.Sscanf(caps, "%x", &have)
	return have&(1<<c) != 0
}

func onCgroup2() bool {
	var fs unix.Statfs_t
	return unix.Statfs(cgroupRoot, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

func needsCgroup(t *testing.T) {
	t.Helper()
	if !onCgroup2() {
		t.Skipf("no cgroup2 on %s", cgroupRoot)
	}
}

// program is the test binary as a static file that can be linked into roots.
var program = func() func(*testing.T) string {
	var once sync.Once
	var path string
	var err error
	return func(t *testing.T) string {
		t.Helper()
		once.Do(func() { path, err = makeProgram() })
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
}()

func makeProgram() (string, error) {
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		return "", err
	}
	cleanups = append(cleanups, func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "probe")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, b, 0o755)
}

// cleanups run after all tests.
var cleanups []func()

func run(t *testing.T, ctx context.Context, s Spec) (Outcome, error) {
	t.Helper()
	r := guest.NewReaper()
	defer r.Close()
	out, err := Run(ctx, r, s)
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte(s.Scratch)) {
		t.Errorf("a mount got out of the sandbox:\n%s", mounts)
	}
	if left, _ := filepath.Glob(cgroupRoot + "/workload-*"); left != nil {
		t.Errorf("cgroups left: %q", left)
	}
	return out, err
}

func mustRun(t *testing.T, s Spec, want Outcome) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := run(t, ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("outcome (-want +got):\n%s", diff)
	}
}

func TestStatusAndOutputComeBack(t *testing.T) {
	s, stdout, stderr := sandbox(t, "exit", "7")
	mustRun(t, s, Outcome{Exit: 7})
	if stdout.String() != "out\n" || stderr.String() != "err\n" {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}

func TestWhatTheProgramSees(t *testing.T) {
	signal.Ignore(unix.SIGHUP) // what was ignored here is not ignored there
	t.Cleanup(func() { signal.Reset(unix.SIGHUP) })
	s, stdout, stderr := sandbox(t, "facts")
	s.Env = []string{"A=1", "PATH=/bin"}
	if err := os.WriteFile(filepath.Join(s.Datasets, "houses.csv"), []byte("area,price\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET", "of PID 1")
	mustRun(t, s, Outcome{})
	var f facts
	if err := json.Unmarshal(stdout.Bytes(), &f); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	ids := fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", testUser)
	const none = "0000000000000000"
	for key, want := range map[string]string{
		"Uid": ids, "Gid": ids, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		"SigBlk": none, "SigIgn": none, "NSpid": strconv.Itoa(f.PID), "Umask": "0022",
	} {
		if got := f.Status[key]; got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	const ro, rw, dev = "ro,nosuid,nodev", "rw,nosuid,nodev", "rw,nosuid,noexec"
	hidden := func(mount string) bool { // /proc differs from kernel to kernel
		return strings.HasPrefix(mount, "/proc/")
	}
	var mounts []string
	for _, m := range f.Mounts {
		m, _, _ = strings.Cut(m, ",relatime")
		if !hidden(m) {
			mounts = append(mounts, m)
		}
	}
	slices.Sort(mounts)
	var wantMounts []string
	for _, m := range mounts {
		if strings.HasPrefix(m, "/dev/") && m != "/dev/shm "+rw+",noexec" {
			wantMounts = append(wantMounts, m) // flags are those of the host's /dev
		}
	}
	wantMounts = append(wantMounts, "/ "+rw, "/cocos/datasets "+ro+",noexec", "/cocos/results "+rw+",noexec", "/dev "+dev,
		"/dev/shm "+rw+",noexec", "/proc "+rw+",noexec")
	slices.Sort(wantMounts)
	f.Status, f.Mounts = nil, mounts
	for i, d := range f.Descriptors {
		if strings.HasSuffix(d, "/dev/null") {
			f.Descriptors[i] = "0 /dev/null" // in a chroot the kernel names it from outside
		}
	}
	want := facts{
		PID: f.PID, Session: f.PID, Hostname: "ampoule", Cwd: "/cocos",
		Args: []string{"/probe", "facts"}, Env: []string{"A=1", "PATH=/bin"},
		Links:     []string{"lo up|loopback|running"},
		Processes: []string{strconv.Itoa(f.PID)},
		Dev:       []string{"fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"},
		Root:      []string{"cocos", "dev", "etc", "probe", "proc", "tmp"},
		Mounts:    wantMounts,
		// The last one is the listing itself.
		Descriptors: []string{"0 /dev/null", "1 pipe", "2 pipe"},
		Blocking:    true,
		Files:       f.Files, Core: 0,
		Cgroup:   f.Cgroup,
		Hosts:    "127.0.0.1 localhost\n::1 localhost\n",
		Dataset:  "area,price\n",
		Loopback: []string{"<nil>", "<nil>"},
	}
	if diff := cmp.Diff(want, f); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	if f.PID == 1 {
		t.Error("the program is the first process of its namespace, whose signals go astray")
	}
	if f.Files != maxFiles && hasCapability(t, unix.CAP_SYS_RESOURCE) {
		t.Errorf("limit of open files is %d, want %d", f.Files, maxFiles)
	}
	if onCgroup2() && f.Cgroup != "0::/\n" {
		t.Errorf("cgroup is %q, want the root of its own tree", f.Cgroup)
	}
}

func TestWhatTheProgramCannotDo(t *testing.T) {
	s, stdout, stderr := sandbox(t, "attack")
	data := filepath.Join(s.Datasets, "houses.csv")
	if err := os.WriteFile(data, []byte("area,price\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(data, 0o666)
	os.Chmod(s.Datasets, 0o777)
	mustRun(t, s, Outcome{})
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout, stderr)
	}
	const family, perm, access, ro, missing, ok = "EAFNOSUPPORT", "EPERM", "EACCES", "EROFS", "ENOENT", "ok"
	want := map[string]string{
		"vsock": family, "packet": family, "alg": family, "netlink uevent": family, "vsock with a high half": family, "vsock pair": family,
		"raw": perm, "inet": ok, "inet6": ok, "unix": ok, "netlink route": ok, "unix pair": ok,
		"mount": perm, "unmount": perm, "remount": perm, "chroot": perm, "unshare user": perm, "clone user": perm, "clone3": "ENOSYS",
		"setns": perm, "keyctl": perm, "bpf": perm, "perf": perm, "io_uring": perm, "userfaultfd": perm, "ptrace": perm,
		"kexec": perm, "handle": perm, "become root": "EINVAL", "mknod": perm, "hostname": perm,
		"write /cocos/datasets/x": ro, "write /cocos/datasets/houses.csv": ro, "write /etc/x": access, "write /x": access,
		"write /dev/x": access, "write /probe": access, "write /proc/sys/kernel/hostname": ro,
		"write /tmp/x": ok, "write /cocos/x": ok, "write /cocos/results/x": ok, "write /dev/shm/x": ok, "write /dev/null": ok,
		"see /sys/kernel": missing, "see /dev/vsock": missing, "see /dev/sev-guest": missing, "see /dev/kvm": missing,
		"see /dev/mem": missing, "see /dev/console": missing,
		"read /proc/cmdline": ok, "read /proc/kallsyms": ok, // empty
		"exec in /cocos/results": access, "exec in /dev/shm": access, "exec in /tmp": ok,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the attacks got (-want +got):\n%s", diff)
	}
	if b, err := os.ReadFile(filepath.Join(s.Results, "x")); err != nil || string(b) != "x" {
		t.Errorf("result: %q, %v", b, err)
	}
	if got := names(s.Root); !slices.Equal(got, []string{"probe"}) {
		t.Errorf("the image was written to: %q", got)
	}
}

func TestAnImageCannotSteerTheMounts(t *testing.T) {
	s, stdout, _ := sandbox(t, "facts")
	outside := t.TempDir()
	for name, target := range map[string]string{"cocos": outside, "dev": "/", "proc": "../../..", "tmp": outside, "etc": outside} {
		if err := os.Symlink(target, filepath.Join(s.Root, name)); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, s, Outcome{})
	var f facts
	if err := json.Unmarshal(stdout.Bytes(), &f); err != nil {
		t.Fatal(err)
	}
	if f.Cwd != "/cocos" || !slices.Contains(f.Dev, "null") || len(f.Processes) != 1 {
		t.Errorf("cwd %q, /dev %q, processes %q", f.Cwd, f.Dev, f.Processes)
	}
	if got := names(outside); got != nil {
		t.Errorf("the sandbox wrote %q outside of itself", got)
	}
	if fi, err := os.Lstat(filepath.Join(s.Root, "tmp")); err != nil || fi.Mode().Type() != os.ModeSymlink {
		t.Errorf("the image was written to: %v, %v", fi, err)
	}
}

// A lineCounter calls do when it has seen n lines.
type lineCounter struct {
	n  int
	do func()
}

func (c *lineCounter) Write(p []byte) (int, error) {
	before := c.n
	c.n -= bytes.Count(p, []byte("\n"))
	if before > 0 && c.n <= 0 {
		c.do()
	}
	return len(p), nil
}

// processes counts those that have token as an argument.
func processes(t *testing.T, token string) (n int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("\x00"+token+"\x00")) {
			n++
		}
	}
	return n
}

func TestDeadlineKillsTheProgramAndItsGrandchildren(t *testing.T) {
	token := fmt.Sprintf("brood-%d", os.Getpid())
	s, _, _ := sandbox(t, "brood", "2", token)
	ctx, cancel := context.WithCancel(t.Context())
	var before int
	var killed time.Time
	s.Stdout = &lineCounter{n: 4, do: func() {
		before, killed = processes(t, token), time.Now()
		cancel()
	}}
	out, err := run(t, ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Outcome{Signal: "SIGKILL", Deadline: true}); out != want {
		t.Errorf("outcome %+v, want %+v", out, want)
	}
	if before != 7 {
		t.Errorf("%d processes before the deadline, want 7", before)
	}
	if n := processes(t, token); n != 0 {
		t.Errorf("%d processes survived", n)
	}
	if d := time.Since(killed); d > drainGrace {
		t.Errorf("the end took %v", d)
	}
}

func TestTheLeastLimitsAreEnough(t *testing.T) {
	needsCgroup(t)
	for range 10 {
		s, _, _ := sandbox(t, "exit", "7")
		s.PIDs, s.MemoryBytes = minPIDs, minMemory
		mustRun(t, s, Outcome{Exit: 7})
	}
}

func TestMemoryLimit(t *testing.T) {
	needsCgroup(t)
	s, _, _ := sandbox(t, "eat")
	s.MemoryBytes = 64 << 20
	mustRun(t, s, Outcome{Signal: "SIGKILL", OOM: true})
}

func TestProcessLimit(t *testing.T) {
	needsCgroup(t)
	s, stdout, _ := sandbox(t, "threads")
	s.PIDs = 50
	mustRun(t, s, Outcome{})
	var n int
	if _, err := fmt.Sscan(stdout.String(), &n); err != nil || n < 1 || n > 50 {
		t.Errorf("%q children within 50 processes and threads (%v)", stdout, err)
	}
}

func TestWhatIsWrittenIsBounded(t *testing.T) {
	s, stdout, _ := sandbox(t, "fill")
	s.ScratchBytes = 8 << 20
	if err := MountBounded(s.Results, 4<<20); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(s.Results, unix.MNT_DETACH)
	mustRun(t, s, Outcome{})
	var got map[string]int64
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"/tmp": 7, "/dev/shm": 7, "/cocos/results": 4}, got); diff != "" {
		t.Errorf("MiB written (-want +got):\n%s", diff)
	}
}

func TestMountBoundedRefuses(t *testing.T) {
	if err := MountBounded(t.TempDir(), 0); err == nil || !strings.Contains(err.Error(), "0 bytes") {
		t.Errorf("bound of 0 bytes: %v", err)
	}
}

func TestAFullWriterDoesNotStopTheProgram(t *testing.T) {
	s, _, _ := sandbox(t, "say", "something")
	s.Stdout = failingWriter{}
	mustRun(t, s, Outcome{})
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestNoWriters(t *testing.T) {
	s, _, _ := sandbox(t, "exit", "0")
	s.Stdout, s.Stderr = nil, nil
	mustRun(t, s, Outcome{})
}
