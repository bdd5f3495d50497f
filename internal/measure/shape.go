package measure

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A TEE is what keeps the host out of a VM.
type TEE string

const (
	OnSNP       TEE = "snp"
	OnTDX       TEE = "tdx"
	OnSEVES     TEE = "seves"
	OnSEV       TEE = "sev"
	OnTPM       TEE = "tpm"       // nothing but a TPM, which is the host's
	OnSimulated TEE = "simulated" // the simulated processor of ampoule run
)

// A Platform is who runs the VM.
type Platform string

const (
	OnQEMU  Platform = "qemu"
	OnGCP   Platform = "gcp"
	OnAWS   Platform = "aws"
	OnAzure Platform = "azure"
)

// How a VM starts the image.
const (
	BootDirect = "direct" // QEMU loads kernel, initrd and command line
	BootUKI    = "uki"    // firmware starts a UKI from a disk
)

// A Shape is one kind of VM that an image is to run in: all that decides what will be measured, besides the image.
type Shape struct {
	Name     string   `json:"name"`
	TEE      TEE      `json:"tee"`
	VMM      Platform `json:"vmm"`
	Boot     string   `json:"boot,omitempty"` // BootDirect or BootUKI; "": direct on QEMU, UKI elsewhere
	VCPUs    int      `json:"vcpus,omitempty"`
	CPU      string   `json:"cpu,omitempty"`            // QEMU's model: SNP and SEV-ES
	Memory   int      `json:"memory_mib,omitempty"`     // where an old QEMU or firmware measures what depends on it
	Firmware string   `json:"firmware,omitempty"`       // file; its bytes are given to Predict
	QEMU     int      `json:"qemu,omitempty"`           // major version; 0: 10 or later
	Features *uint64  `json:"guest_features,omitempty"` // SEV_FEATURES; nil: FeatureSNP
	Policy   *uint64  `json:"policy,omitempty"`         // SNP, for an id block; nil: DefaultPolicy
}

// Kind is the kind of evidence that a VM of the shape gives, or "" for one whose evidence no broker of ours takes.
func (s Shape) Kind() evidence.Kind {
	switch {
	case s.VMM == OnAzure && s.TEE == OnSNP:
		return evidence.AzSNPvTPM
	case s.VMM == OnAzure && s.TEE == OnTDX:
		return evidence.AzTDXvTPM
	case s.TEE == OnSNP, s.TEE == OnSimulated:
		return evidence.SNP
	case s.TEE == OnTDX:
		return evidence.TDX
	}
	return ""
}

var shapeName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (s Shape) withDefaults() (Shape, error) {
	if s.Boot == "" {
		s.Boot = BootUKI
		if s.VMM == OnQEMU {
			s.Boot = BootDirect
		}
	}
	features, policy := uint64(FeatureSNP), uint64(DefaultPolicy)
	if s.Features == nil {
		s.Features = &features
	}
	if s.Policy == nil {
		s.Policy = &policy
	}
	if s.VCPUs == 0 {
		s.VCPUs = 1
	}
	return s, s.check()
}

func (s Shape) check() error {
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	check(shapeName.MatchString(s.Name), "name: %.80q, want lower-case letters, digits, dots, dashes", s.Name)
	tees := map[Platform][]TEE{
		OnQEMU: {OnSNP, OnTDX, OnSEVES, OnSEV, OnTPM, OnSimulated}, OnGCP: {OnSNP, OnTDX}, OnAWS: {OnSNP, OnTPM}, OnAzure: {OnSNP, OnTDX},
	}
	if check(tees[s.VMM] != nil, "vmm: %.40q, want one of %v", s.VMM, slices.Sorted(maps.Keys(tees))); tees[s.VMM] != nil {
		check(slices.Contains(tees[s.VMM], s.TEE), "tee: %.40q, on %s want one of %v", s.TEE, s.VMM, tees[s.VMM])
	}
	check(s.Boot == BootDirect || s.Boot == BootUKI, "boot: %.40q, want %s or %s", s.Boot, BootDirect, BootUKI)
	check(s.Boot == BootUKI || s.VMM == OnQEMU, "boot: only QEMU starts a kernel directly; on %s it is a UKI", s.VMM)
	check(s.TEE != OnSimulated || s.Boot == BootDirect, "boot: ampoule run starts a simulated VM directly")
	check(s.VCPUs >= 1 && s.VCPUs <= 512, "vcpus: %d, want 1 to 512", s.VCPUs)
	check(s.QEMU >= 0 && s.QEMU < 100, "qemu: %d, want a major version, as 10", s.QEMU)
	check(s.Memory >= 0, "memory_mib: %d", s.Memory)
	check(s.VMM != OnAzure || s.Firmware == "", "firmware: Azure's paravisor and firmware cannot be had as a file, so that none is predicted")
	return errors.Join(problems...)
}

// Proof is what evidence of a VM of this shape proves of the image, and what it does not, in sentences.
func (s Shape) proof() (proves, not []string) {
	hashes := "the SNP launch digest is over the firmware, the hashes of kernel, initrd and command line, and the first state of every vCPU"
	tpm := "the launch digest is of the cloud's firmware alone, which starts any image: which one it was, only PCRs of the cloud's TPM say"
	switch {
	case s.TEE == OnSimulated:
		return nil, []string{"a simulated processor proves nothing: it is the host's"}
	case s.TEE == OnTPM:
		return []string{"PCRs 4, 9 and 11 are the image's"}, []string{"the TPM is the host's, which can let it say anything"}
	case s.TEE == OnSEV || s.TEE == OnSEVES:
		return []string{"the launch digest is over the firmware and the hashes of kernel, initrd and command line"},
			[]string{"guests before SNP have no report that they can ask for, and their memory has no integrity: no key is released to one"}
	case s.VMM == OnAzure:
		return []string{"PCRs 4 and 11 are the UKI's, PCR 9 its initrd and command line, PCR 8 the manifest's; the paravisor's key signs them, and the hardware's report vouches for that key"},
			[]string{"the measurement is that of Microsoft's paravisor, for which there is no public source: it is taken from a VM that is trusted",
				"the firmware between the paravisor and the image (PCR 0 and 7) is Microsoft's too"}
	case s.VMM == OnGCP && s.TEE == OnSNP, s.VMM == OnAWS:
		return []string{"the launch digest is the cloud's published firmware"}, []string{tpm, "that TPM is the cloud's, outside of SNP, and the broker does not see it: keys are not bound to the image"}
	case s.TEE == OnTDX && s.VMM == OnGCP:
		return []string{"RTMR1 and RTMR2 are the image's: UKI, kernel, command line and initrd"}, []string{"MRTD and RTMR0 are Google's firmware and its settings, which Google endorses"}
	case s.TEE == OnTDX:
		return []string{"MRTD is the firmware; RTMR1 and RTMR2 are kernel, command line and initrd"},
			[]string{"RTMR0 is memory, ACPI tables, boot options and Secure Boot variables, which the host chooses: the kernel's AML sandbox is what keeps host tables from doing harm"}
	case s.Boot == BootUKI:
		return []string{"the SNP launch digest is over the firmware and the first state of every vCPU"}, []string{strings.Replace(tpm, "the cloud's firmware", "the firmware", 1)}
	}
	return []string{hashes}, []string{"ACPI tables, memory size and devices are the host's, and not measured"}
}
