package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/mkimage"
)

const buildHelp = `
usage: ampoule build --profile production|simulation --out DIR [flags]
       ampoule build --check DIR [--fresh]

Makes an image from pinned sources: DIR/vmlinuz, DIR/initramfs.cpio.zst and DIR/cmdline, for machines that are started
with a kernel; DIR/ampoule.efi, the three in one file for UEFI; and disks with that file. --formats says which of
uki, raw (disk.raw), gcp (disk.tar.gz), azure (disk.vhd), qcow2 (disk.qcow2) and containerdisk (an OCI layout for
KubeVirt) to make; they need systemd's EFI stub, which is fetched from Debian once, or given with --stub. What is
known of the image is in DIR/build.json, measurements.json, sbom.cdx.json, provenance.intoto.json and SHA256SUMS; what
brokers take of it is in DIR/policy: reference values and a policy in Rego that compares evidence with them.
--check builds the image in DIR again, elsewhere, and says which byte of what differs.
What an image permits beyond the strict default is baked into its measured command line by --allow:
tag (references without digest), http (brokers and registries over plain http), errors (error texts on the
console), unsealed (results without recipients come back in clear), unbound (a manifest that the launch is
not bound to). A production image permits nothing. KERNEL_SOURCE names a kernel source tarball to use; it must be
the pinned one for production. --with wasm adds the runtime for WebAssembly workloads, 5 MB; --with cocos, the
manifest source cvms:HOST:PORT, a computation server of Cocos. --bake puts a manifest into
the image, which then runs that one alone, and --resource adds the policy that says what it may have. With --kernel only DIR/vmlinuz is made.
docs/IMAGES.md says how each cloud takes its file.

Examples:
  ampoule build --profile simulation --net dhcp --out out/simulation
  ampoule build --profile production --formats none --out out/production
  ampoule build --profile production --net dhcp --bake job.json --resource 'default/key/*' --out out/job
  ampoule build --profile simulation --net dhcp --with cocos --manifest-source cvms:10.0.2.2:7001 --out out/cocos
  ampoule build --check out/job`

func buildVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("build", buildHelp, std)
	o := mkimage.Options{Progress: std.err, SourceDir: ".", KernelSource: os.Getenv("KERNEL_SOURCE")}
	fs.StringVar(&o.Profile, "profile", "", "production or simulation")
	fs.StringVar(&o.Out, "out", "", "folder to write")
	allow := fs.String("allow", "", "what a simulation image permits: tag,http,errors,unsealed,unbound,sample, or none (default: tag,http,unsealed)")
	fs.StringVar(&o.Net, "net", "none", "network: none, dhcp or static:ADDR/BITS,GATEWAY[,DNS]")
	fs.StringVar(&o.Swap, "swap", "", "disk of the VM that becomes encrypted swap: vda, sda or nvme0n1, …; none unless named (ampoule run --swap)")
	fs.StringVar(&o.ManifestSource, "manifest-source", "", "where the VM reads its manifest: vsock:PORT, cmdline:BASE64URL, image: with --bake, or cvms:HOST:PORT with --with cocos (default vsock:1024)")
	with := fs.String("with", "", "what else the image has: wasm, cocos, or both as wasm,cocos")
	fs.StringVar(&o.Extra, "cmdline", "", "further kernel parameters")
	fs.DurationVar(&o.Deadline, "deadline", 0, "deadline of a whole run (default 1h)")
	fs.BoolVar(&o.Fresh, "fresh", false, "build the kernel although it is cached")
	fs.StringVar(&o.SourceDir, "source", ".", "folder of Ampoule's own source")
	formats := fs.String("formats", "all", "what to write the image as besides: all, none, or some of uki,raw,gcp,azure,qcow2,containerdisk")
	bake := fs.String("bake", "", "manifest to put into the image")
	resources := fs.String("resource", "", "with --bake, what a broker may release to the job: REPO/TYPE/TAG, of which each can be *; with commas")
	fs.StringVar(&o.SecureBootKey, "secure-boot-key", "", "PEM key to sign ampoule.efi with, for Secure Boot")
	fs.StringVar(&o.SecureBootCert, "secure-boot-cert", "", "PEM certificate of that key")
	fs.StringVar(&o.Stub, "stub", "", "systemd's linuxx64.efi.stub; for production it must be the pinned one")
	shapes := fs.String("shapes", "", "JSON list of the VMs to predict measurements for, as for ampoule measure; else those of the clouds")
	check := fs.String("check", "", "folder of an image to build again and compare")
	kernelOnly := fs.Bool("kernel", false, "make the kernel alone")
	asJSON := fs.Bool("json", false, "print build.json; with --kernel, the kernel's path")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if *shapes != "" {
		o.ShapesDir = filepath.Dir(*shapes)
	}
	if *check != "" {
		return checkImage(ctx, *check, o, std, *asJSON)
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
	if *resources != "" {
		o.Resources = strings.Split(*resources, ",")
	}
	switch *allow {
	case "":
	case "none":
		o.Allow = []string{}
	default:
		o.Allow = strings.Split(*allow, ",")
	}
	var err error
	if o.Formats, err = mkimage.ParseFormats(*formats); err != nil {
		return usagef("--formats: %v", err)
	}
	if *shapes != "" {
		if o.Shapes, err = std.readFile(*shapes, maxDisk); err != nil {
			return err
		}
	}
	if *bake != "" {
		if o.Manifest, err = std.readFile(*bake, manifest.MaxSize); err != nil {
			return err
		}
	} else if o.ManifestSource == "" {
		o.ManifestSource = fmt.Sprintf("vsock:%d", cmdline.DefaultPort)
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
	for _, f := range info.Files {
		std.say("  %10d  %s", f.Size, f.Name)
	}
	return nil
}
