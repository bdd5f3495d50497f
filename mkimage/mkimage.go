// Package mkimage turns kernel source and init into a bootable image: kernel, initramfs, command line, build record.
//
// Everything is made unprivileged and is a function of its inputs: the same checkout, kernel source and compiler give
// the same bytes in any directory, at any time. What takes long, the kernel, is kept in a cache whose key is
// everything that enters it.
package mkimage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

// The files of an image.
const (
	KernelFile    = "vmlinuz"
	InitramfsFile = "initramfs.cpio.zst"
	CmdlineFile   = "cmdline"       // without a newline at its end, so that its bytes are those that are measured
	ManifestFile  = "manifest.json" // what was baked in
	InfoFile      = "build.json"
)

// Options say what to build. Only Profile and Out have to be set.
type Options struct {
	Profile string // cmdline.Production or cmdline.Simulation
	Out     string // directory of the image; made if need be

	Allow          []string      // what the image permits; nil: DefaultAllow
	Net            string        // ampoule.net; "": the guest's default, none
	Swap           string        // ampoule.swap, a disk; "": the guest's default, none
	ManifestSource string        // ampoule.manifest; "": the guest's default, vsock
	ManifestSHA384 []byte        // ampoule.manifest-sha384: the one manifest that this image will run; nil: any
	Deadline       time.Duration // ampoule.deadline; 0: the guest's default
	Extra          string        // further parameters of the kernel, none of them ampoule.*
	Manifest       []byte        // baked into the initramfs and pinned; nil: none

	Formats                       []string // what else to write it as, some of Formats; needs the EFI stub
	SecureBootKey, SecureBootCert string   // PEM files, to sign the UKI with; "": it stays unsigned
	Stub                          string   // an EFI stub; "": the pinned one, wherever it can be had
	Shapes                        []byte   // the VMs to predict measurements for (measure.ParseShapes); nil: those of clouds, or of ampoule run --firmware ''
	ShapesDir                     string   // that firmware in Shapes is seen from
	Resources                     []string // of a broker, that Manifest may have (keypolicy.Options); nil: there is no policy for resources

	KernelSource string    // a tarball of the kernel's source; "": the pinned one, wherever it can be had
	SourceDir    string    // root of the checkout; default "."
	InitPackage  string    // what becomes /init, relative to SourceDir; default "./init"
	With         []string  // what else it has, of Helpers
	Tags         []string  // build tags of init, for tests that break a step of it; simulation only
	Cache        string    // default: ampoule in the user's cache directory
	Fresh        bool      // build the kernel anew, and leave it out of the cache
	Progress     io.Writer // nil: silence

	signature []byte // of a UKI that was built before, to be put on this one
	signedBy  *SignInfo
}

func (o Options) withDefaults() (Options, error) {
	if o.Profile != cmdline.Production && o.Profile != cmdline.Simulation {
		return o, fmt.Errorf("%q is not a profile; want %s or %s", o.Profile, cmdline.Production, cmdline.Simulation)
	}
	if len(o.Tags) > 0 && !o.simulation() {
		return o, fmt.Errorf("build tags %q: only a simulation image can have another init", o.Tags)
	}
	if err := checkHelpers(o.With); err != nil {
		return o, err
	}
	if (o.SecureBootKey == "") != (o.SecureBootCert == "") || o.SecureBootKey != "" && len(o.Formats) == 0 {
		return o, errors.New("a Secure Boot key signs a UKI, with its certificate: give key, certificate and a format")
	}
	if o.InitPackage != "" && (!strings.HasPrefix(o.InitPackage, "./") || strings.Contains(o.InitPackage, "..")) {
		return o, fmt.Errorf("%q is no package of the checkout", o.InitPackage) // it may come from a stranger's record, and goes to go build
	}
	if err := o.bake(); err != nil {
		return o, err
	}
	o.SourceDir = cmp.Or(o.SourceDir, ".")
	o.InitPackage = cmp.Or(o.InitPackage, "./init")
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return o, fmt.Errorf("a place for the cache: %w", err)
		}
		o.Cache = filepath.Join(dir, "ampoule")
	}
	var err error
	o.Cache, err = filepath.Abs(o.Cache)
	return o, err
}

func (o Options) simulation() bool { return o.Profile == cmdline.Simulation }

// Build makes the image in o.Out and returns its build record, which it has also written there. The record is the last
// file to appear: a directory whose record can be loaded is complete.
func Build(ctx context.Context, o Options) (*Info, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.Out == "" {
		return nil, errors.New("no directory to write the image to")
	}
	line, allow, err := o.cmdline()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return nil, err
	}
	if err := o.discard(); err != nil {
		return nil, err
	}
	// Seconds, not minutes: a mistake in init shows before the kernel is built.
	initramfs, initInfo, err := Initramfs(ctx, o)
	if err != nil {
		return nil, err
	}
	kernel, err := o.kernel(ctx)
	if err != nil {
		return nil, err
	}
	info := &Info{
		Profile: o.Profile,
		Allow:   allow,
		Cmdline: line,
		Kernel:  kernel.KernelInfo,
		Init:    *initInfo,
		Request: o.request(),
	}
	if info.Source, err = o.sourceDigest(ctx); err != nil {
		return nil, err
	}
	files := []file{{KernelFile, kernel.image, 0}, {InitramfsFile, initramfs, 0}, {CmdlineFile, []byte(line), 0}}
	if o.Manifest != nil {
		files = append(files, file{ManifestFile, o.Manifest, 0})
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(o.Out, f.name), f.data); err != nil {
			return nil, err
		}
		info.Files = append(info.Files, describe(f.name, f.data))
	}
	if len(o.Formats) > 0 {
		names, err := o.unified(ctx, info, kernel.image, initramfs)
		if err != nil {
			return nil, err
		}
		if err := info.add(o.Out, names); err != nil {
			return nil, err
		}
	}
	return info, o.publishRecords(info)
}

// Kernel makes the kernel alone and returns its path: in o.Out if that is set, else in the cache.
func Kernel(ctx context.Context, o Options) (string, error) {
	o, err := o.withDefaults()
	if err != nil {
		return "", err
	}
	if o.Fresh && o.Out == "" {
		return "", errors.New("a kernel that bypasses the cache needs a directory of its own")
	}
	k, err := o.kernel(ctx)
	if err != nil {
		return "", err
	}
	if o.Out == "" {
		return k.path, nil
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(o.Out, KernelFile)
	return path, writeFile(path, k.image)
}

// writeFile writes beside path and renames, so that nobody sees half a file.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
