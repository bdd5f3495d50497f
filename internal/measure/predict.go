package measure

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A Prediction is what evidence of a VM of one shape will say.
type Prediction struct {
	Shape    Shape  `json:"shape"`
	Firmware string `json:"firmware_sha256,omitempty"`
	// Kind of the evidence; "" where no broker of ours takes it.
	Kind evidence.Kind `json:"kind,omitempty"`
	// Measurements are what the evidence's launch measurement can be: SNP's digest, or MRTD by each order of adding pages.
	Measurements []evidence.Measurement         `json:"measurements,omitempty"`
	SEV          *Hash256                       `json:"sev,omitempty"`  // of a guest before SNP
	RTMR         map[int][]evidence.Measurement `json:"rtmr,omitempty"` // each of which it can be
	PCR          map[int]Digests                `json:"pcr,omitempty"`
	Events       []Event                        `json:"events,omitempty"` // what leads to RTMR or PCR
	// Unpredicted names what the evidence has and this does not say, with the reason: "rtmr.0", "pcr.7", "measurements".
	Unpredicted map[string]string `json:"unpredicted,omitempty"`
	Proves      []string          `json:"proves,omitempty"`
	Unproven    []string          `json:"unproven,omitempty"`
}

// Predict says what a VM of this shape will measure when it boots these files. firmware is the file that the shape names;
// nil where it names none. What cannot be predicted rightly is an error, or, where the rest stands without it, named in
// Unpredicted.
func Predict(s Shape, f Files, firmware []byte) (*Prediction, error) {
	p, err := predict(s, f, firmware)
	if err != nil {
		return nil, fmt.Errorf("shape %s: %w", cmp.Or(s.Name, "without a name"), err)
	}
	return p, nil
}

func predict(s Shape, f Files, firmware []byte) (*Prediction, error) {
	s, err := s.withDefaults()
	if err != nil {
		return nil, err
	}
	if (s.Firmware == "") != (firmware == nil) && s.TEE != OnSimulated {
		return nil, errors.New("firmware: the file that the shape names, and no other, is to be given")
	}
	switch {
	case s.Boot == BootUKI && f.UKI == nil:
		return nil, errors.New("it boots a UKI, and there is none")
	case s.Boot == BootDirect && f.Kernel == nil:
		return nil, errors.New("it boots a kernel directly, and there is none")
	}
	p := &Prediction{Shape: s, Kind: s.Kind(), Unpredicted: map[string]string{}}
	p.Proves, p.Unproven = s.proof()
	if firmware != nil {
		p.Firmware = hexSum(firmware)
	}
	if s.TEE == OnSimulated {
		l := Launch{Firmware: firmware, Kernel: f.Kernel, Initrd: f.Initrd, Cmdline: f.Cmdline, VCPUs: s.VCPUs}
		p.Measurements = []evidence.Measurement{Simulated(l)}
		return p, nil
	}
	var fw *Firmware
	if firmware != nil {
		if fw, err = ParseFirmware(firmware); err != nil {
			return nil, err
		}
	} else if s.VMM == OnQEMU {
		return nil, errors.New("firmware: the file that QEMU gets is missing, and it is the first thing measured")
	}
	if err := p.launch(fw, f); err != nil {
		return nil, err
	}
	if s.TEE == OnTDX || s.TEE == OnTPM || s.VMM != OnQEMU {
		if err := p.boot(fw, f); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// PredictFirmware says what a launch measures that loads no kernel: the SNP, SEV-ES or SEV digest, or MRTD, of a firmware.
func PredictFirmware(s Shape, firmware []byte) (*Prediction, error) {
	if s.Boot = BootUKI; s.TEE == OnTPM {
		return nil, errors.New("PCRs are of what firmware starts: a kernel or a UKI is missing")
	}
	s, err := s.withDefaults()
	if err != nil {
		return nil, err
	}
	fw, err := ParseFirmware(firmware)
	if err != nil {
		return nil, err
	}
	p := &Prediction{Shape: s, Kind: s.Kind(), Firmware: hexSum(firmware), Unpredicted: map[string]string{}}
	p.Proves, p.Unproven = s.proof()
	return p, p.launch(fw, Files{})
}

// launch is what the hardware measures.
func (p *Prediction) launch(fw *Firmware, f Files) error {
	s := p.Shape
	switch {
	case s.TEE == OnTPM:
		return nil
	case fw == nil && s.VMM == OnAzure:
		p.Unpredicted["measurements"] = "Microsoft's paravisor cannot be had as a file; take the value from a VM that is trusted, or from Microsoft's attestation service"
		return nil
	case fw == nil:
		p.Unpredicted["measurements"] = "the cloud's firmware was not given; Google publishes endorsements by measurement, AWS the source of its firmware"
		return nil
	case s.TEE == OnTDX:
		for _, order := range []PageOrder{EachPage, EachSection} {
			m, err := MRTD(fw, order)
			if err != nil {
				return err
			}
			if !slices.Contains(p.Measurements, m) {
				p.Measurements = append(p.Measurements, m)
			}
		}
		return nil
	}
	l := SNPLaunch{Firmware: fw, VCPUs: s.VCPUs, VMM: map[Platform]VMM{OnQEMU: QEMU, OnGCP: GCE, OnAWS: EC2}[s.VMM], Features: *s.Features}
	if s.Boot == BootDirect {
		l.Kernel, l.Initrd, l.Cmdline = f.Kernel, f.Initrd, f.Cmdline
	}
	if s.VMM == OnQEMU && s.TEE != OnSEV {
		var err error
		if l.Signature, err = CPUSignature(s.CPU); err != nil {
			return err
		}
	}
	if s.TEE == OnSNP {
		m, err := SNP(l)
		p.Measurements = []evidence.Measurement{m}
		return err
	}
	sum, err := SEV(SEVMode(s.TEE), l)
	p.SEV = (*Hash256)(&sum)
	return err
}

// boot is what firmware, stub and kernel measure into a TPM or the RTMRs.
func (p *Prediction) boot(fw *Firmware, f Files) error {
	s := p.Shape
	var b behaviour
	var err error
	if s.VMM == OnQEMU {
		if b, err = fw.behaviour(); err != nil {
			return err
		}
	}
	var events []Event
	switch secure, err := b.secureBoot(); {
	case s.VMM != OnQEMU:
		p.Unpredicted["pcr.7"] = "the cloud chooses the Secure Boot variables"
	case err != nil:
		p.Unpredicted["pcr.7"] = err.Error()
	default:
		events = secure
	}
	var u *UKI
	if s.Boot == BootUKI {
		if u, err = ParseUKI(f.UKI); err != nil {
			return err
		}
		more, err := u.events(f.Disk)
		if err != nil {
			return fmt.Errorf("UKI: %w", err)
		}
		events = append(events, more...)
	} else {
		more, err := direct(b, f, kernelHeader{s.QEMU == 0 || s.QEMU >= 10, s.Memory})
		if err != nil {
			return err
		}
		events = append(events, more...)
	}
	p.Events = events
	if s.TEE == OnTDX && s.VMM != OnAzure {
		p.rtmrs(fw, u, f)
		delete(p.Unpredicted, "pcr.7")
		return nil
	}
	p.pcrs(f)
	return nil
}

// pcrs are the registers that p speaks of; those that nothing extends are zero.
func (p *Prediction) pcrs(f Files) {
	all := Registers(p.Events)
	p.PCR = map[int]Digests{}
	for _, n := range []int{4, 7, 8, 9, 11, 12, 14} {
		if p.Unpredicted[fmt.Sprintf("pcr.%d", n)] == "" {
			p.PCR[n] = all[n]
		}
	}
	if p.Shape.VMM != OnAzure {
		return
	}
	// PID 1 extends both with the digest, in the one bank of Azure's TPM.
	for _, n := range []int{8, 14} {
		if delete(p.PCR, n); f.InitData == nil {
			p.Unpredicted[fmt.Sprintf("pcr.%d", n)] = "the guest extends it with the manifest's digest, and no manifest was given"
		} else {
			p.PCR[n] = Digests{SHA256: Hash256(evidence.InRegister(evidence.PCR8, f.InitData[:]))}
		}
	}
}

// rtmrs are the registers of a TDX guest. Firmware and kernel differ in two things that say nothing of the image: whether
// the separator before the first boot option is in RTMR1 or in RTMR0, and whether the kernel has to leave the firmware
// twice, because the memory map had changed meanwhile. Each combination is listed.
func (p *Prediction) rtmrs(fw *Firmware, u *UKI, f Files) {
	var one, two []Event
	for _, e := range p.Events {
		switch n, err := rtmr(e.PCR); {
		case err != nil:
		case n == 1:
			one = append(one, e)
		case n == 2 && (e.PCR != 11 || u.stub.measuresCC):
			two = append(two, e)
		}
	}
	p.RTMR = map[int][]evidence.Measurement{2: {replay(two)}, 3: {{}}}
	for _, separated := range []bool{true, false} {
		for _, exits := range [][]Event{{exitBootServices, exitSucceeded}, {exitBootServices, exitFailed, exitBootServices, exitSucceeded}} {
			var events []Event
			for _, e := range one {
				if e.Type != evSeparator || separated {
					events = append(events, e)
				}
			}
			p.RTMR[1] = append(p.RTMR[1], replay(append(events, exits...)))
		}
	}
	if f.InitData != nil {
		_, digest := evidence.InitDataEvent(*f.InitData)
		p.RTMR[3] = append(p.RTMR[3], evidence.Extend384([48]byte{}, digest))
	}
	p.Events = append(p.Events, exitBootServices, exitSucceeded)
	if fw != nil {
		p.Events = append(fw.variables(), p.Events...)
	}
	p.Unpredicted["rtmr.0"] = "it has the memory map (TD HOB), QEMU's ACPI tables and with them its version, devices and vCPUs, the firmware's variables and boot options"
	if f.InitData == nil {
		p.Unpredicted["rtmr.3"] = "it is zero where the launcher puts the manifest's digest into MRCONFIGID; else the guest extends it with that digest, and no manifest was given"
	}
	if u != nil && f.Disk == nil {
		p.Unpredicted["rtmr.1"] = "the GPT of the disk is in it, and no disk was given; for one without a GPT it is as listed"
	}
}

func replay(events []Event) evidence.Measurement {
	var d Digests
	for _, e := range events {
		d = d.extend(e.Digests)
	}
	return d.SHA384
}
