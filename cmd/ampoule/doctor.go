package main

import (
	"context"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/doctor"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/qemu"
)

const doctorHelp = `
usage: ampoule doctor [--tee snp|tdx] [--firmware FILE] [--kernel FILE] [--image DIR] [--json]

Examines this machine (KVM, SEV-SNP, TDX, vhost-vsock, QEMU and its objects), and what is named: a firmware (its metadata,
its table for hashes), a kernel (a .config, or a bzImage with its configuration in it, against the rules of
kernel-config/required.txt), a folder that ampoule build made. Prints what was found, how to mend it, and what risk is left.
With --tee, what that TEE needs has to be there. Exit code 1 if something is bad.

Examples:
  ampoule doctor
  ampoule doctor --tee snp --firmware OVMF.amdsev.fd --image out/production
  ampoule doctor --kernel /boot/config-6.12-cloud-amd64 --json`

func doctorVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("doctor", doctorHelp, std)
	tee := fs.String("tee", "", "TEE that this machine is to have: snp or tdx")
	firmware := fs.String("firmware", "", "OVMF image")
	kernel := fs.String("kernel", "", ".config or bzImage")
	image := fs.String("image", "", "folder that ampoule build made")
	program := fs.String("qemu", qemu.DefaultBinary, "QEMU")
	asJSON := fs.Bool("json", false, "print the report as JSON")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	want := evidence.Kind(*tee)
	if want != "" && want != evidence.SNP && want != evidence.TDX {
		return usagef("--tee %q: want snp or tdx", *tee)
	}
	var r doctor.Report
	host := doctor.Host{Root: "/", QEMU: *program, KVMWorks: func(ctx context.Context) bool { return qemu.Probe(ctx, *program) == qemu.KVM }}
	host.Examine(ctx, &r, want)
	for _, f := range []struct {
		path    string
		limit   int64
		examine func([]byte)
	}{
		{*firmware, 64 << 20, func(b []byte) { doctor.Firmware(&r, b, want) }},
		{*kernel, 256 << 20, func(b []byte) { doctor.Kernel(&r, b) }},
	} {
		if f.path == "" {
			continue
		}
		b, err := std.readFile(f.path, f.limit)
		if err != nil {
			return err
		}
		f.examine(b)
	}
	if *image != "" {
		doctor.Image(&r, *image)
	}
	r.General()
	if *asJSON {
		if err := std.json(r); err != nil {
			return err
		}
	} else if _, err := fmt.Fprint(std.out, r.Text()); err != nil {
		return err
	}
	if n := r.Bad(); n > 0 {
		return fmt.Errorf("findings that are bad: %d", n)
	}
	return nil
}
