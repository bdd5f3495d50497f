package main

import (
	"cmp"
	"encoding/base64"
	"flag"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/qemu"
)

// teeFlags are what only a VM on hardware has.
type teeFlags struct {
	cpu, qgs        *string
	idBlock, idAuth *string
}

func newTEEFlags(fs *flag.FlagSet) teeFlags {
	return teeFlags{
		cpu:     fs.String("cpu", "", "CPU model on SEV-SNP, which is measured; "+qemu.DefaultSNPCPU+" if none is given"),
		qgs:     fs.String("qgs", "", "where TDX quotes are made: unix:PATH or vsock:CID:PORT; "+qemu.DefaultQGS+" if not given"),
		idBlock: fs.String("id-block", "", "file with the SEV-SNP identity block, binary or base64"),
		idAuth:  fs.String("id-auth", "", "file with its authentication"),
	}
}

// given tells whether one of them was.
func (f teeFlags) given() bool { return *f.cpu+*f.qgs+*f.idBlock+*f.idAuth != "" }

// hardware is the TEE that a production image runs in.
func (f teeFlags) hardware(kind evidence.Kind, std stdio) (*qemu.TEE, error) {
	t := &qemu.TEE{Kind: kind, CPU: *f.cpu, QGS: *f.qgs}
	for _, b := range []struct {
		to   *[]byte
		path string
	}{{&t.IDBlock, *f.idBlock}, {&t.IDAuth, *f.idAuth}} {
		if b.path == "" {
			continue
		}
		raw, err := std.readFile(b.path, 16<<10)
		if err != nil {
			return nil, err
		}
		if decoded, err := base64.StdEncoding.DecodeString(string(raw)); err == nil {
			raw = decoded
		}
		*b.to = raw
	}
	return t, nil
}

// launched is what a dry run says of a VM on hardware.
func launched(std stdio, cfg qemu.Config, facts runFacts, asJSON bool) error {
	facts.Command = cfg.Command()
	var err error
	if facts.Predicted, err = predicted(std, cfg); err != nil {
		std.say("the launch is not predicted: %v", err)
	}
	if asJSON {
		return std.json(facts)
	}
	if facts.Predicted != nil {
		printPrediction(std, facts.Predicted)
	}
	_, err = fmt.Fprintf(std.out, "initdata-sha256 %s\n%s\n", facts.Initdata, facts.Command)
	return err
}

// predicted is what this VM will measure.
func predicted(std stdio, cfg qemu.Config) (*measure.Prediction, error) {
	s := measure.Shape{Name: "vm", TEE: measure.TEE(cfg.Hardware.Kind), VMM: measure.OnQEMU, VCPUs: cfg.Shape.VCPUs, Memory: cfg.Shape.MemoryMiB, Firmware: cfg.Shape.Firmware}
	if s.TEE == measure.OnSNP {
		s.CPU = cmp.Or(cfg.Hardware.CPU, qemu.DefaultSNPCPU)
	}
	f := measure.Files{Cmdline: cfg.Cmdline, InitData: &cfg.HostData}
	var firmware []byte
	for _, part := range []struct {
		dst  *[]byte
		path string
	}{{&f.Kernel, cfg.Kernel}, {&f.Initrd, cfg.Initrd}, {&firmware, cfg.Shape.Firmware}} {
		var err error
		if *part.dst, err = std.readFile(part.path, maxPart); err != nil {
			return nil, err
		}
	}
	return measure.Predict(s, f, firmware)
}
