package mkimage

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"

	kernelconfig "github.com/ampoule-vm/ampoule/kernel-config"
)

// Initramfs builds o.InitPackage and returns the compressed initramfs that holds it, what o.With names, and nothing else.
func Initramfs(ctx context.Context, o Options) ([]byte, *InitInfo, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	init, info, err := buildInit(ctx, o.SourceDir, o.InitPackage, o.initTags(), inlined)
	if err != nil {
		return nil, nil, err
	}
	beside, err := buildHelpers(ctx, o, info)
	if err != nil {
		return nil, nil, err
	}
	archive, err := pack(init, append(beside, o.baked()...)...)
	if err != nil {
		return nil, nil, err
	}
	window := smallWindow
	if len(beside) > 0 {
		window = largeWindow
	}
	packed, err := compress(archive, window)
	return packed, info, err
}

// inlined are the packages whose functions the compiler may inline. Elsewhere that is 700 kB of code that runs once: only what every
// byte of an image goes through is worth it, and the runtime.
var inlined = []string{
	"runtime", "runtime/...", "internal/runtime/...", "internal/abi", "internal/bytealg", "sync", "sync/atomic", "internal/sync",
	"crypto/internal/fips140/...", "crypto/cipher", "crypto/subtle", "crypto/sha256", "crypto/aes", "crypto/hmac", "math/big", "math/bits",
	"golang.org/x/crypto/...", "github.com/klauspost/compress/...", "archive/tar", "bufio", "bytes", "hash/crc32", "io", "slices",
	"github.com/ampoule-vm/ampoule/image", "github.com/ampoule-vm/ampoule/internal/inflate", "github.com/ampoule-vm/ampoule/internal/tree",
}

// buildInit compiles one main package of the module in dir for the guest; functions of the packages in inlined may be inlined. Neither the directory nor the machine's
// settings for Go leave a trace in the result.
func buildInit(ctx context.Context, dir, pkg string, tags, inlined []string) ([]byte, *InitInfo, error) {
	tmp, err := os.MkdirTemp("", "ampoule-init-*")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "init")
	args := []string{"build", "-trimpath", "-buildvcs=false",
		"-tags", guestTags(tags),
		"-ldflags", fmt.Sprintf("-s -w -buildid= -X main.buildTime=%d", kernelconfig.Pin.Date.Unix()),
		"-o", path, "-gcflags=all=-l"}
	for _, pattern := range inlined {
		args = append(args, "-gcflags="+pattern+"=") // the last that matches a package counts
	}
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = dir
	cmd.Env = goEnviron(os.Environ())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return nil, nil, fmt.Errorf("go build %s: %w\n%s", pkg, err, bytes.TrimSpace(stderr.Bytes()))
	}
	init, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	info := &InitInfo{SHA256: hexSum(init), Size: int64(len(init))}
	bi, err := buildinfo.Read(bytes.NewReader(init))
	if err != nil {
		return nil, nil, fmt.Errorf("build record of %s: %w", pkg, err)
	}
	info.Go, info.Modules = bi.GoVersion, len(bi.Deps)
	var sums []string
	for _, m := range bi.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		info.Linked = append(info.Linked, Module{m.Path, m.Version, m.Sum})
		sums = append(sums, fmt.Sprintf("%s %s %s\n", m.Path, m.Version, m.Sum))
	}
	slices.SortFunc(info.Linked, func(a, b Module) int { return strings.Compare(a.Path, b.Path) })
	slices.Sort(sums)
	info.ModuleSums = hexSum([]byte(strings.Join(sums, "")))
	return init, info, nil
}

// goEnviron is env with everything replaced that would change what the compiler puts out. Where modules come from and
// where they are kept stays the caller's business.
func goEnviron(env []string) []string {
	fixed := map[string]string{
		"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": "amd64", "GOAMD64": "v1",
		"GOFLAGS": "-mod=readonly", "GOWORK": "off", "GO111MODULE": "on", "GOFIPS140": "off",
	}
	var out []string
	for _, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		if _, ok := fixed[k]; !ok && k != "GOEXPERIMENT" && k != "GODEBUG" {
			out = append(out, kv)
		}
	}
	for k, v := range fixed {
		out = append(out, k+"="+v)
	}
	return out
}

// pack makes the archive. /dev/console is there because the kernel opens it for init before anything is mounted.
func pack(init []byte, more ...file) ([]byte, error) {
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("init", string(init), 0o755),
	}
	for _, f := range more {
		records = append(records, cpio.StaticFile(f.name, string(f.data), f.mode))
	}
	return packRecords(records)
}

// cpioOf is an archive of files alone, uncompressed, for the kernel to read before another one.
func cpioOf(files ...file) ([]byte, error) {
	var records []cpio.Record
	for _, f := range files {
		records = append(records, cpio.StaticFile(f.name, string(f.data), f.mode))
	}
	b, err := packRecords(records)
	return append(b, make([]byte, -len(b)&3)...), err
}

func packRecords(records []cpio.Record) ([]byte, error) {
	var buf bytes.Buffer
	w := cpio.Newc.Writer(&buf)
	for _, r := range records {
		if err := w.WriteRecord(cpio.MakeReproducible(r)); err != nil {
			return nil, fmt.Errorf("pack %s: %w", r.Name, err)
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// The windows of zstd, in bytes. The kernel allocates all of it to unpack a frame. From one program to the next, which is linked
// from much of the same, it takes the larger.
const (
	smallWindow = 8 << 20
	largeWindow = 16 << 20
)

// compress makes one zstd frame.
func compress(archive []byte, window int) ([]byte, error) {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window))
	if err != nil {
		return nil, err
	}
	defer e.Close()
	return e.EncodeAll(archive, nil), nil
}
