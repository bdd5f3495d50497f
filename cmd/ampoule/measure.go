package main

import (
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/mkimage"
)

const measureHelp = `
usage: ampoule measure --mode snp|seves|sev|tdx|pcr [--firmware FILE] [--kernel FILE --initrd FILE --cmdline LINE | --uki FILE] [flags]
       ampoule measure --shapes FILE --image DIR|--uki FILE [--out FILE]

Says what a VM will measure, before it boots: the launch digest of an SNP, SEV-ES or SEV guest, MRTD and RTMRs of a TDX
guest, or PCRs 4, 7, 8, 9, 11, 12 and 14 of a TPM. With --image the kernel, initramfs and command line are those of an
image of ampoule build.

What cannot be right is refused, with the reason: a kernel that firmware does not check against its measured hash, a
firmware without the metadata, a stub whose measurements are not known. A register that also depends on what is not given
is not printed, and the reason is. docs/MEASUREMENTS.md says what each number proves, and what it does not.

A shape file is a JSON list of VMs; --shapes writes measurements.json, for verify and policy:

  [{"name": "genoa-2", "tee": "snp", "vmm": "qemu", "vcpus": 2, "cpu": "EPYC-Genoa", "firmware": "OVMF.amdsev.fd"},
   {"name": "tdx", "tee": "tdx", "vmm": "qemu", "firmware": "OVMF.inteltdx.fd"},
   {"name": "azure-snp", "tee": "snp", "vmm": "azure"}]

  tee            snp, tdx, seves, sev, tpm, or simulated for ampoule run
  vmm            qemu, gcp, aws, azure
  boot           direct (QEMU's default) or uki (the others')
  firmware       file, seen from the shape file; needed on QEMU, none on Azure
  vcpus, cpu     of SNP and SEV-ES; cpu is QEMU's model or FAMILY/MODEL/STEPPING
  guest_features SEV_FEATURES, 1 unless given; policy is the SNP guest's, for an id block
  memory_mib, qemu  where QEMU before 10, or firmware before 2025, measures the kernel as loaded

With --log nothing is printed but the first event of each register in which a boot was not as predicted; there being one is exit code 3.

--id-key and --author-key (P-384, PEM) sign an id block for an SNP digest, which is printed as QEMU takes it.

Examples:
  ampoule measure --mode snp --firmware OVMF.amdsev.fd --image out/production --vcpus 2 --vcpu-type EPYC-Genoa
  ampoule measure --mode tdx --firmware OVMF.inteltdx.fd --image out/production --json
  ampoule measure --mode pcr --vmm azure --uki out/production/ampoule.efi
  ampoule measure --mode pcr --vmm azure --uki out/production/ampoule.efi --log binary_bios_measurements
  ampoule measure --shapes shapes.json --image out/production --out measurements.json`

// Limits of what is read, bytes.
const (
	maxPart     = 1 << 30
	maxFirmware = 64 << 20
	maxDisk     = 1 << 20 // the GPT is in its beginning
)

type measureFlags struct {
	mode, firmware, kernel, initrd, cmdline, uki, disk, image string
	vmm, cpu, features, policy, initData, idKey, authorKey    string
	vcpus, memory, qemu                                       int
	shapes, out, log                                          string
	json                                                      bool
}

func measureVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("measure", measureHelp, std)
	var f measureFlags
	fs.StringVar(&f.mode, "mode", "", "snp, seves, sev, tdx or pcr")
	fs.StringVar(&f.firmware, "firmware", "", "the VM's firmware, an OVMF image")
	fs.StringVar(&f.kernel, "kernel", "", "kernel that QEMU loads")
	fs.StringVar(&f.initrd, "initrd", "", "initrd that QEMU loads")
	fs.StringVar(&f.cmdline, "cmdline", "", "command line that QEMU passes")
	fs.StringVar(&f.uki, "uki", "", "unified kernel image that firmware starts from a disk")
	fs.StringVar(&f.disk, "disk", "", "the disk that the UKI is on: its GPT is in RTMR1")
	fs.StringVar(&f.image, "image", "", "folder of an image, in place of --kernel, --initrd and --cmdline")
	fs.StringVar(&f.vmm, "vmm", "qemu", "who runs the VM: qemu, ec2 or aws, gce or gcp, azure")
	fs.IntVar(&f.vcpus, "vcpus", 1, "number of vCPUs")
	fs.StringVar(&f.cpu, "vcpu-type", "", "QEMU's CPU model, as EPYC-Genoa, or FAMILY/MODEL/STEPPING")
	fs.StringVar(&f.features, "guest-features", "0x1", "SEV_FEATURES of the guest; 0x21 on hosts with debug swap (Linux 6.2 to 6.10)")
	fs.StringVar(&f.policy, "policy", "0x30000", "policy of an SNP guest, for an id block")
	fs.IntVar(&f.memory, "memory", 0, "MiB of the VM, where its measurements depend on it")
	fs.IntVar(&f.qemu, "qemu", 0, "QEMU's major version, where it is before 10")
	fs.StringVar(&f.initData, "init-data", "", "digest of the manifest's initdata document, or its file: for PCR 8 and 14, and RTMR3")
	fs.StringVar(&f.idKey, "id-key", "", "PEM file of the key that signs an id block (snp)")
	fs.StringVar(&f.authorKey, "author-key", "", "PEM file of the key that signs the id key")
	fs.StringVar(&f.shapes, "shapes", "", "file with the VMs to predict for, in place of the flags about one")
	fs.StringVar(&f.out, "out", "", "file for measurements.json instead of standard output (--shapes)")
	fs.StringVar(&f.log, "log", "", "event log of such a VM (binary_bios_measurements, or CCEL with tdx): say where it is not as predicted")
	fs.BoolVar(&f.json, "json", false, "print everything, with the events, as JSON")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if (f.mode == "") == (f.shapes == "") {
		return usagef("one of --mode and --shapes is needed; ampoule measure -h explains them")
	}
	files, err := f.files(std)
	if err != nil {
		return err
	}
	if f.shapes != "" {
		return f.measureShapes(std, files)
	}
	shape, err := f.shape()
	if err != nil {
		return err
	}
	if files.Kernel == nil && files.UKI == nil {
		return f.measureFirmware(std, shape)
	}
	var firmware []byte
	if f.firmware != "" {
		if firmware, err = std.readFile(f.firmware, maxFirmware); err != nil {
			return err
		}
	}
	p, err := measure.Predict(shape, files, firmware)
	if err != nil {
		return err
	}
	if f.log != "" {
		return f.compare(std, p)
	}
	return f.print(std, p)
}

// files reads what is booted.
func (f *measureFlags) files(std stdio) (files measure.Files, err error) {
	if f.image != "" {
		if f.kernel != "" || f.initrd != "" || f.cmdline != "" {
			return files, usagef("--image and --kernel, --initrd or --cmdline: one of them says what is booted")
		}
		info, err := mkimage.Load(f.image)
		if err != nil {
			return files, err
		}
		f.kernel, f.initrd, f.cmdline = filepath.Join(f.image, mkimage.KernelFile), filepath.Join(f.image, mkimage.InitramfsFile), info.Cmdline
	}
	files.Cmdline = f.cmdline
	for _, part := range []struct {
		path string
		dst  *[]byte
	}{{f.kernel, &files.Kernel}, {f.initrd, &files.Initrd}, {f.uki, &files.UKI}} {
		if part.path != "" {
			if *part.dst, err = std.readFile(part.path, maxPart); err != nil {
				return files, err
			}
		}
	}
	if f.disk != "" {
		if files.Disk, err = head(f.disk, maxDisk); err != nil {
			return files, err
		}
	}
	if f.initData != "" {
		digest, err := initDataDigest(std, f.initData)
		if err != nil {
			return files, err
		}
		if len(digest) != 32 {
			return files, usagef("--init-data: %d bytes, want the SHA-256 digest that ampoule manifest digest prints", len(digest))
		}
		files.InitData = (*[32]byte)(digest)
	}
	return files, nil
}

// head reads at most the first n bytes of a file.
func head(path string, n int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b := make([]byte, n)
	got, err := file.ReadAt(b, 0)
	if got == 0 {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b[:got], nil
}

func (f *measureFlags) shape() (measure.Shape, error) {
	s := measure.Shape{Name: "vm", VCPUs: f.vcpus, CPU: f.cpu, Memory: f.memory, QEMU: f.qemu, Firmware: f.firmware, TEE: measure.TEE(f.mode)}
	vmms := map[string]measure.Platform{"qemu": measure.OnQEMU, "ec2": measure.OnAWS, "aws": measure.OnAWS, "gce": measure.OnGCP, "gcp": measure.OnGCP, "azure": measure.OnAzure}
	var ok bool
	if s.VMM, ok = vmms[f.vmm]; !ok {
		return s, usagef("--vmm %.40q: want one of %s", f.vmm, strings.Join(slices.Sorted(maps.Keys(vmms)), ", "))
	}
	switch f.mode {
	case "snp", "seves", "sev", "tdx":
	case "pcr":
		s.TEE = measure.OnTPM
		if s.VMM == measure.OnAzure || s.VMM == measure.OnGCP {
			s.TEE = measure.OnSNP // the PCRs do not depend on it
		}
	default:
		return s, usagef("--mode %.40q: want snp, seves, sev, tdx or pcr", f.mode)
	}
	if s.Boot = measure.BootDirect; f.uki != "" {
		s.Boot = measure.BootUKI
	}
	for _, n := range []struct {
		name, text string
		dst        **uint64
	}{{"guest-features", f.features, &s.Features}, {"policy", f.policy, &s.Policy}} {
		v, err := strconv.ParseUint(n.text, 0, 64)
		if err != nil {
			return s, usagef("--%s %.40q: want a number, as 0x1", n.name, n.text)
		}
		*n.dst = &v
	}
	return s, nil
}

// measureFirmware is the digest of a launch that loads no kernel.
func (f *measureFlags) measureFirmware(std stdio, s measure.Shape) error {
	if f.firmware == "" {
		return usagef("nothing to measure: give --firmware, --kernel, --uki or --image")
	}
	b, err := std.readFile(f.firmware, maxFirmware)
	if err != nil {
		return err
	}
	p, err := measure.PredictFirmware(s, b)
	if err != nil {
		return err
	}
	return f.print(std, p)
}

func (f *measureFlags) measureShapes(std stdio, files measure.Files) error {
	b, err := std.readFile(f.shapes, maxDisk)
	if err != nil {
		return err
	}
	shapes, err := measure.ParseShapes(b)
	if err != nil {
		return fmt.Errorf("--shapes %s: %w", f.shapes, err)
	}
	m, err := measure.PredictAll(shapes, files, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(f.shapes), name)
		}
		return std.readFile(name, maxFirmware)
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(m.Refused)) {
		std.say("refused: %s", m.Refused[name])
	}
	out, err := m.JSON()
	if err != nil {
		return err
	}
	return std.write(f.out, out)
}

func (f *measureFlags) print(std stdio, p *measure.Prediction) error {
	id, err := f.idBlock(std, p)
	if err != nil {
		return err
	}
	if f.json {
		return std.json(struct {
			*measure.Prediction
			IDBlock *idBlock `json:"id_block,omitempty"`
		}{p, id})
	}
	printPrediction(std, p)
	if id != nil {
		fmt.Fprintf(std.out, "id-block %s\nid-auth %s\nid-key-digest %s\n", id.Block, id.Auth, id.KeyDigest)
		if id.AuthorDigest != "" {
			fmt.Fprintf(std.out, "author-key-digest %s\n", id.AuthorDigest)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(p.Unpredicted)) {
		std.say("not predicted: %s: %s", what, p.Unpredicted[what])
	}
	for _, line := range p.Unproven {
		std.say("not proven: %s", line)
	}
	return nil
}

// printPrediction prints what there is, a value a line.
func printPrediction(std stdio, p *measure.Prediction) {
	name := map[measure.TEE]string{measure.OnTDX: "mrtd"}[p.Shape.TEE]
	if name == "" {
		name = "measurement"
	}
	for _, m := range p.Measurements {
		fmt.Fprintln(std.out, name, m)
	}
	if p.SEV != nil {
		fmt.Fprintln(std.out, name, p.SEV)
	}
	for _, n := range slices.Sorted(maps.Keys(p.RTMR)) {
		for _, m := range p.RTMR[n] {
			fmt.Fprintf(std.out, "rtmr%d %s\n", n, m)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(p.PCR)) {
		fmt.Fprintf(std.out, "pcr%d sha256 %s\n", n, p.PCR[n].SHA256)
		if p.PCR[n].SHA384 != (measure.Digests{}).SHA384 || p.PCR[n].SHA256 == (measure.Digests{}).SHA256 {
			fmt.Fprintf(std.out, "pcr%d sha384 %s\n", n, p.PCR[n].SHA384)
		}
	}
}

// An idBlock is what QEMU's sev-snp-guest takes as id-block= and id-auth=, in base64, and what reports then have, in hex.
type idBlock struct {
	Block        string `json:"id_block"`
	Auth         string `json:"id_auth"`
	KeyDigest    string `json:"id_key_digest"`
	AuthorDigest string `json:"author_key_digest,omitempty"`
}

func (f *measureFlags) idBlock(std stdio, p *measure.Prediction) (*idBlock, error) {
	if f.idKey == "" {
		if f.authorKey != "" {
			return nil, usagef("--author-key signs the id key: give --id-key")
		}
		return nil, nil
	}
	if p.Shape.TEE != measure.OnSNP || len(p.Measurements) != 1 {
		return nil, usagef("--id-key goes with --mode snp")
	}
	id, err := signingKey(std, f.idKey)
	if err != nil {
		return nil, err
	}
	author, err := signingKey(std, f.authorKey)
	if err != nil {
		return nil, err
	}
	b := measure.IDBlock{Measurement: p.Measurements[0], Policy: *p.Shape.Policy}
	auth, err := b.Sign(id, author)
	if err != nil {
		return nil, err
	}
	out := &idBlock{Block: base64.StdEncoding.EncodeToString(b.Bytes()), Auth: base64.StdEncoding.EncodeToString(auth.Auth), KeyDigest: hex.EncodeToString(auth.IDKeyDigest[:])}
	if author != nil {
		out.AuthorDigest = hex.EncodeToString(auth.AuthorDigest[:])
	}
	return out, nil
}

// signingKey reads a private key of P-384; "" is none.
func signingKey(std stdio, path string) (*ecdsa.PrivateKey, error) {
	if path == "" {
		return nil, nil
	}
	b, err := std.readFile(path, 1<<20)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	k, err := measure.ParseIDKey(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// compare says where the boot of a log is not as predicted.
func (f *measureFlags) compare(std stdio, p *measure.Prediction) error {
	b, err := std.readFile(f.log, maxDisk)
	if err != nil {
		return err
	}
	var found []measure.Difference
	switch {
	case p.RTMR != nil:
		log, err := evidence.ParseEventLog(b)
		if err != nil {
			return fmt.Errorf("--log %s: %w", f.log, err)
		}
		found = p.CompareRTMRs(log)
	case p.PCR != nil:
		log, err := measure.ParseLog(b)
		if err != nil {
			return fmt.Errorf("--log %s: %w", f.log, err)
		}
		found = p.ComparePCRs(log)
	default:
		return usagef("--log goes with --mode pcr or tdx: SNP and SEV have no event log")
	}
	if f.json {
		err = std.json(map[string]any{"differences": append([]measure.Difference{}, found...)})
	} else {
		for _, d := range found {
			fmt.Fprintln(std.out, d)
		}
	}
	if len(found) > 0 {
		return &exitError{3, errors.Join(err, fmt.Errorf("--log %s: %d registers are not as predicted", f.log, len(found)))}
	}
	return err
}
