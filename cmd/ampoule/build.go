package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/mkimage"
)

const buildHelp = `
usage: ampoule build --profile production|simulation --out DIR [flags]

Makes DIR/vmlinuz, DIR/initramfs.cpio.zst, DIR/cmdline and DIR/build.json from pinned sources.
What an image permits beyond the strict default is baked into its measured command line by --allow:
tag (references without digest), http (brokers and registries over plain http), errors (error texts on the
console), unsealed (results without recipients come back in clear), unbound (a manifest that the launch is
not bound to). A production image permits nothing. KERNEL_SOURCE names a kernel source tarball to use; it must be
the pinned one for production. --with wasm adds the runtime for WebAssembly workloads, 5 MB. With --kernel only DIR/vmlinuz is made.

Examples:
  ampoule build --profile simulation --net dhcp --out out/simulation
  ampoule build --profile production --manifest-source vsock:1024 --out out/production`

func buildVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("build", buildHelp, std)
	o := mkimage.Options{Progress: std.err, SourceDir: ".", KernelSource: os.Getenv("KERNEL_SOURCE")}
	fs.StringVar(&o.Profile, "profile", "", "production or simulation")
	fs.StringVar(&o.Out, "out", "", "folder to write")
	allow := fs.String("allow", "", "what a simulation image permits: tag,http,errors,unsealed,unbound,sample, or none (default: tag,http,unsealed)")
	fs.StringVar(&o.Net, "net", "none", "network: none, dhcp or static:ADDR/BITS,GATEWAY[,DNS]")
	fs.StringVar(&o.Swap, "swap", "", "disk of the VM that becomes encrypted swap: vda, sda or nvme0n1, …; none unless named (ampoule run --swap)")
	fs.StringVar(&o.ManifestSource, "manifest-source", "vsock:1024", "where the VM reads its manifest: vsock:PORT or cmdline:BASE64URL")
	with := fs.String("with", "", "programs beside init, for workloads that need them: wasm")
	fs.StringVar(&o.Extra, "cmdline", "", "further kernel parameters")
	fs.DurationVar(&o.Deadline, "deadline", 0, "deadline of a whole run (default 1h)")
	fs.BoolVar(&o.Fresh, "fresh", false, "build the kernel although it is cached")
	fs.StringVar(&o.SourceDir, "source", ".", "folder of Ampoule's own source")
	kernelOnly := fs.Bool("kernel", false, "make the kernel alone")
	asJSON := fs.Bool("json", false, "print build.json; with --kernel, the kernel's path")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if err := required(fs, "profile", "out"); err != nil {
		return err
	}
	if o.Profile != cmdline.Production && o.Profile != cmdline.Simulation {
		return usagef("--profile %q: want %s or %s", o.Profile, cmdline.Production, cmdline.Simulation)
	}
	if *with != "" {
		o.With = strings.Split(*with, ",")
	}
	switch *allow {
	case "":
	case "none":
		o.Allow = []string{}
	default:
		o.Allow = strings.Split(*allow, ",")
	}
	if *kernelOnly {
		path, err := mkimage.Kernel(ctx, o)
		if err != nil {
			return err
		}
		if *asJSON {
			return std.json(map[string]string{"kernel": path})
		}
		_, err = fmt.Fprintln(std.out, path)
		return err
	}
	info, err := mkimage.Build(ctx, o)
	if err != nil {
		return err
	}
	if *asJSON {
		return std.json(info)
	}
	std.say("build: %s image in %s, kernel %s (%s)", info.Profile, o.Out, info.Kernel.Version, info.Kernel.Label)
	return nil
}
