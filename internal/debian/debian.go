// Package debian gets programs of a Debian suite onto this machine without installing them, as peers for tests and
// benchmarks: packages with all they depend on, unpacked into a cache folder, each program run with the dynamic loader
// and the libraries that it was built with. No privileges are needed.
//
//	root, err := debian.Fetch(ctx, debian.CacheDir(), "trixie", []string{"skopeo", "umoci"}, os.Stderr)
//	if errors.Is(err, debian.ErrNotServed) {
//		t.Skip(err)
//	}
//	out, err := root.Command(ctx, "skopeo", "--version").CombinedOutput()
//
// Whom it trusts: the mirror is the one that this machine's apt fetches Debian from, and apt checks the suite's Release
// file against Debian's archive keyring as installed here, or against apt's own trusted keys where that keyring is not
// installed. A suite that is signed with a key that this machine does not have counts as not served.
package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrNotServed is wrapped in the error of a Fetch that found no archive, suite or package to fetch from: no Debian
// machine, no mirror, no network, no key.
var ErrNotServed = errors.New("the Debian archive does not serve this here")

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// A Root is a folder of unpacked packages.
type Root struct {
	dir      string
	versions map[string]string
}

// CacheDir is where a user's roots lie: ampoule/debian in the user's cache folder.
func CacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "ampoule", "debian")
}

// Fetch returns the root of packages and what they depend on, recommendations left out. The first call for these
// packages of this suite downloads and unpacks them, and says so on progress; later ones take what is in cacheDir,
// without asking whether the suite has newer. Calls from several processes wait for one another.
func Fetch(ctx context.Context, cacheDir, suite string, packages []string, progress io.Writer) (*Root, error) {
	sorted := slices.Compact(slices.Sorted(slices.Values(packages)))
	dir := filepath.Join(cacheDir, folder(suite, sorted))
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if root, err := open(dir); !errors.Is(err, os.ErrNotExist) {
		return root, err
	}
	// What an earlier call has left unfinished.
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return nil, err
	}
	defer os.RemoveAll(partial)
	if err := fill(ctx, partial, suite, sorted, progress); err != nil {
		return nil, fmt.Errorf("%s of Debian %s: %w", strings.Join(sorted, ", "), suite, err)
	}
	if err := os.Rename(partial, dir); err != nil {
		return nil, err
	}
	return open(dir)
}

// folder is the name of a root in a cache.
func folder(suite string, packages []string) string {
	sum := sha256.Sum256([]byte("ampoule debian root 1\n" + suite + "\n" + strings.Join(packages, "\n")))
	return suite + "-" + hex.EncodeToString(sum[:6])
}

// lock waits for the lock on a file, which the kernel drops when a process ends, however it does.
func lock(ctx context.Context, path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }()
	select {
	case err = <-locked:
	case <-ctx.Done():
		go func() { <-locked; f.Close() }()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}

const versionsFile = "packages"

func open(dir string) (*Root, error) {
	b, err := os.ReadFile(filepath.Join(dir, versionsFile))
	if err != nil {
		return nil, err
	}
	r := &Root{filepath.Join(dir, "root"), map[string]string{}}
	for line := range strings.Lines(string(b)) {
		name, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		r.versions[name] = version
	}
	return r, nil
}

// fill makes the folder dir: the packages' files in root, which is writable by and visible to nobody else, because some
// packages have setuid programs and root's unpacking keeps the bit.
func fill(ctx context.Context, dir, suite string, packages []string, progress io.Writer) error {
	apt := filepath.Join(dir, "apt")
	if err := setUp(ctx, apt, suite); err != nil {
		return err
	}
	fmt.Fprintf(progress, "debian: fetching %s and what they need from Debian %s\n", strings.Join(packages, ", "), suite)
	install := append([]string{"-qq", "-y", "--download-only", "--no-install-recommends", "install"}, packages...)
	for _, args := range [][]string{{"-qq", "--error-on=any", "update"}, install} {
		if err := aptGet(ctx, apt, args...); err != nil {
			return fmt.Errorf("%w: %w", ErrNotServed, err)
		}
	}
	debs, err := filepath.Glob(filepath.Join(apt, "archives", "*.deb"))
	if err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	var versions strings.Builder
	for _, deb := range debs {
		if err := run(exec.CommandContext(ctx, "dpkg-deb", "--extract", deb, root)); err != nil {
			return err
		}
		name, err := url.PathUnescape(filepath.Base(deb)) // NAME_VERSION_ARCHITECTURE.deb
		if err != nil {
			return err
		}
		if f := strings.Split(name, "_"); len(f) == 3 {
			fmt.Fprintf(&versions, "%s %s\n", f[0], f[1])
		}
	}
	fmt.Fprintf(progress, "debian: unpacked %d packages of Debian %s\n", len(debs), suite)
	if err := os.RemoveAll(apt); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, versionsFile), []byte(versions.String()), 0o600)
}

// setUp makes a folder in which apt keeps everything, so that it touches nothing of the machine's.
func setUp(ctx context.Context, dir, suite string) error {
	for _, tool := range []string{"apt-get", "dpkg", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: %w", ErrNotServed, err)
		}
	}
	site, err := mirror(ctx)
	if err != nil {
		return err
	}
	for _, sub := range []string{"state/lists/partial", "cache", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	source := "deb " + site + " " + suite + " main\n"
	if _, err := os.Stat(keyring); err == nil {
		source = "deb [signed-by=" + keyring + "] " + site + " " + suite + " main\n"
	}
	// The machine's own settings hold besides, such as a proxy; its hooks do not run.
	conf := fmt.Sprintf(`Dir::State "%[1]s/state"; Dir::State::status "%[1]s/state/status";
Dir::Cache "%[1]s/cache"; Dir::Cache::archives "%[1]s/archives"; Dir::Log "%[1]s";
Dir::Etc::sourcelist "%[1]s/sources.list"; Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none"; Acquire::PDiffs "false"; Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "root"; APT::Keep-Downloaded-Packages "true";
#clear APT::Update::Pre-Invoke; #clear APT::Update::Post-Invoke; #clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke; #clear DPkg::Post-Invoke; #clear DPkg::Pre-Install-Pkgs;
`, dir)
	for name, text := range map[string]string{"apt.conf": conf, "sources.list": source, "state/status": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// mirror is where this machine's apt fetches Debian itself from.
func mirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)").Output()
	if err != nil {
		return "", fmt.Errorf("%w: apt-get indextargets: %w", ErrNotServed, err)
	}
	for line := range strings.Lines(string(out)) {
		if site, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian|Debian|main|"); ok {
			return site, nil
		}
	}
	return "", fmt.Errorf("%w: the package lists know no mirror of Debian: this is no Debian machine, or apt-get update never ran", ErrNotServed)
}

func aptGet(ctx context.Context, dir string, args ...string) error {
	return run(exec.CommandContext(ctx, "apt-get", append([]string{"-c", filepath.Join(dir, "apt.conf")}, args...)...))
}

// run runs a program whose output matters only when it fails.
func run(cmd *exec.Cmd) error {
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(cmd.Path), cmd.Args[len(cmd.Args)-1], err, bytes.TrimSpace(out))
	}
	return nil
}

// Version is the version of a package in the root, or "".
func (r *Root) Version(name string) string { return r.versions[name] }

// Path is where the root has a program.
func (r *Root) Path(name string) (string, error) {
	for _, dir := range []string{"usr/bin", "bin", "usr/sbin", "sbin"} {
		path := filepath.Join(r.dir, dir, name)
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s has no program %s", r.dir, name)
}

// File is where the root has a file, which is named as its package has it, without a slash at the beginning.
func (r *Root) File(name string) (string, error) {
	path := filepath.Join(r.dir, name)
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s has no file %s", r.dir, name)
	}
	return path, nil
}

// Command runs a program of the root with the root's own dynamic loader and libraries. Other than those, it sees this
// machine's files: give skopeo --insecure-policy, for one. An error in finding it is Run's and Start's.
func (r *Root) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, err := r.Path(name)
	var loader string
	if err == nil {
		loader, err = r.loader(path)
	}
	if err != nil {
		return &exec.Cmd{Path: name, Args: append([]string{name}, args...), Err: err}
	}
	if loader == "" {
		return exec.CommandContext(ctx, path, args...)
	}
	return exec.CommandContext(ctx, loader, append([]string{"--library-path", strings.Join(r.libraries(), ":"), path}, args...)...)
}

// loader is the root's dynamic loader that a program names, or "" for a static one. The name is an absolute one, and may
// be a link to another in Debian, so that only its last element is looked for.
func (r *Root) loader(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(p.Open(), 1<<10))
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		name := filepath.Base(string(bytes.TrimRight(b, "\x00")))
		for _, dir := range r.libraries() {
			if info, err := os.Lstat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() {
				return filepath.Join(dir, name), nil
			}
		}
		return "", fmt.Errorf("%s: its dynamic loader %s is not among the packages", path, name)
	}
	return "", nil
}

// libraries are the folders that hold shared libraries.
func (r *Root) libraries() []string {
	var dirs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu*", "lib/*-linux-gnu*", "usr/lib64", "lib64", "usr/lib", "lib"} {
		found, _ := filepath.Glob(filepath.Join(r.dir, pattern)) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	return dirs
}
