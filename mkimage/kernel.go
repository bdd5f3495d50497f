package mkimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// A kernelBuild is one source tree, with the simulated TSM provider's source in it, and one directory of objects. Both
// profiles are built from it, the second one from what the first has left: only the provider, and what is linked
// with it, is made again. The result is the same as from nothing, which Repro proves.
//
//	DIR/tree     the source
//	DIR/objects  the kernel's build output
//	DIR/make.log of the last command
type kernelBuild struct {
	dir      string
	src      source
	tools    toolchain
	progress *kernelProgress
}

func (b *kernelBuild) tree() string    { return filepath.Join(b.dir, "tree") }
func (b *kernelBuild) objects() string { return filepath.Join(b.dir, "objects") }

// built is what came out.
type built struct {
	KernelInfo
	image, config []byte
	path          string // of the image; "" when it is in no file yet
}

// run builds the kernel of one profile.
func (b *kernelBuild) run(ctx context.Context, simulation bool) (*built, error) {
	if runtime.GOARCH != "amd64" || runtime.GOOS != "linux" {
		return nil, fmt.Errorf("kernels for linux/amd64 are built on linux/amd64, not on %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	if err := b.unpack(ctx); err != nil {
		return nil, err
	}
	if err := b.discardUnsafe(); err != nil {
		return nil, err
	}
	if err := b.configure(ctx, simulation); err != nil {
		return nil, err
	}
	if err := b.compile(ctx); err != nil {
		return nil, err
	}
	if err := checkProvider(b.objects(), simulation); err != nil {
		return nil, err
	}
	return b.collect()
}

// unpack makes the tree, once. A tree that was not finished is made anew.
func (b *kernelBuild) unpack(ctx context.Context) error {
	if _, err := os.Stat(b.tree()); err == nil {
		return nil
	}
	b.progress.step("unpacking " + filepath.Base(b.src.path))
	half := b.tree() + ".half"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	if err := os.MkdirAll(half, 0o755); err != nil {
		return err
	}
	if _, err := output(ctx, "", "tar", "--extract", "--xz", "--file", b.src.path, "--directory", half,
		"--strip-components=1", "--no-same-owner"); err != nil {
		return err
	}
	for _, p := range kernelconfig.Patches() {
		if err := applyPatch(ctx, half, p); err != nil {
			return err
		}
	}
	if err := addProvider(filepath.Join(half, kernelconfig.ProviderDir)); err != nil {
		return err
	}
	return os.Rename(half, b.tree())
}

// applyPatch changes the tree in dir. A patch that is not meant for exactly this source is an error.
func applyPatch(ctx context.Context, dir string, p kernelconfig.File) error {
	cmd := exec.CommandContext(ctx, "patch", "--strip=1", "--fuzz=0", "--force", "--no-backup-if-mismatch", "--directory", dir)
	cmd.Stdin = bytes.NewReader(p.Text)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s does not fit this source: %w\n%s", p.Name, err, bytes.TrimSpace(said))
	}
	return nil
}

// addProvider puts the provider's folder into dir and has the files of dir lead to it.
func addProvider(dir string) error {
	for _, f := range kernelconfig.Provider() {
		path := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.Text, 0o644); err != nil {
			return err
		}
	}
	for _, f := range kernelconfig.ProviderLines() {
		out, err := os.OpenFile(filepath.Join(dir, f.Name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return fmt.Errorf("this source has no place for the provider: %w", err)
		}
		_, err = out.Write(f.Text)
		if err = errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
	return nil
}

// configure writes .config and lets Kconfig complete it, from nothing every time.
func (b *kernelBuild) configure(ctx context.Context, simulation bool) error {
	b.progress.step("configuring")
	if err := os.MkdirAll(b.objects(), 0o755); err != nil {
		return err
	}
	if err := b.make(ctx, "tinyconfig"); err != nil {
		return err
	}
	path := filepath.Join(b.objects(), ".config")
	config, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, f := range kernelconfig.Fragments(simulation) {
		config = append(append(config, '\n'), f.Text...) // a later line overrides an earlier one
	}
	if err := os.WriteFile(path, config, 0o644); err != nil {
		return err
	}
	if err := b.make(ctx, "olddefconfig"); err != nil {
		return err
	}
	if config, err = os.ReadFile(path); err != nil {
		return err
	}
	want, err := wanted(simulation)
	if err != nil {
		return err
	}
	if !simulation {
		want = append(want, setting{"CONFIG_TSM_SIM", "", "the production profile"})
	}
	known, err := knownOptions(b.tree())
	if err != nil {
		return err
	}
	return checkConfig(config, want, known)
}

// unsafeMark stands in the objects while make runs. Ended in an orderly way, even by an error or a signal, make
// removes what it had not finished; found later, the mark means that it was not.
const unsafeMark = ".make-is-running"

func (b *kernelBuild) discardUnsafe() error {
	if _, err := os.Stat(filepath.Join(b.objects(), unsafeMark)); err != nil {
		return nil
	}
	return os.RemoveAll(b.objects())
}

func (b *kernelBuild) compile(ctx context.Context) error {
	b.progress.step("compiling")
	mark := filepath.Join(b.objects(), unsafeMark)
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		return err
	}
	err := b.make(ctx, "-j"+strconv.Itoa(runtime.NumCPU()), "bzImage")
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		if s, ok := e.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGKILL {
			return err
		}
	}
	return errors.Join(err, os.Remove(mark))
}

// make runs the kernel's build. Its environment is made from nothing: CFLAGS or MAKEFLAGS of the caller, which may be
// a make itself, have no business in it.
func (b *kernelBuild) make(ctx context.Context, args ...string) error {
	log, err := os.Create(filepath.Join(b.dir, "make.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "make", append([]string{"-C", b.tree(), "O=" + b.objects()}, args...)...)
	date := kernelconfig.Pin.Date.UTC()
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"LC_ALL=C", "TZ=UTC",
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(date.Unix(), 10),
		"KBUILD_BUILD_TIMESTAMP=" + date.Format(time.UnixDate),
		"KBUILD_BUILD_USER=ampoule", "KBUILD_BUILD_HOST=build", "KBUILD_BUILD_VERSION=1",
	}
	cmd.Stdout = b.progress.tee(log)
	cmd.Stderr = log
	// make hands SIGTERM on to its children and waits for them; a kill would leave compilers behind.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	// So does the death of this process, if it comes without a chance to cancel; it counts as the death of the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: make %s: %w", context.Cause(ctx), args[len(args)-1], err)
		}
		return fmt.Errorf("make %s: %w; the end of %s:\n%s", args[len(args)-1], err, log.Name(), lastLines(log.Name(), 20))
	}
	return nil
}

func lastLines(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (b *kernelBuild) collect() (*built, error) {
	k := &built{KernelInfo: KernelInfo{
		Package:        kernelconfig.Pin.Package,
		PackageVersion: b.src.version,
		SourceSHA256:   b.src.sha256,
		Label:          b.src.label,
		GCC:            b.tools.gcc,
		LD:             b.tools.ld,
		Zstd:           b.tools.zstd,
	}}
	release, err := os.ReadFile(filepath.Join(b.objects(), "include/config/kernel.release"))
	if err != nil {
		return nil, err
	}
	k.Version = string(bytes.TrimSpace(release))
	if k.config, err = os.ReadFile(filepath.Join(b.objects(), ".config")); err != nil {
		return nil, err
	}
	if k.image, err = os.ReadFile(filepath.Join(b.objects(), "arch/x86/boot/bzImage")); err != nil {
		return nil, err
	}
	k.ConfigSHA256 = hexSum(k.config)
	k.SHA256, k.Size = hexSum(k.image), int64(len(k.image))
	return k, nil
}
