package evidence

import "fmt"

// A Launch is what the hardware says of how the machine was started, and the register that ties an initdata document
// to it. It comes from this machine's own TEE; nothing is verified here.
type Launch struct {
	Measurement Measurement // SNP MEASUREMENT, TDX MRTD; on Azure that of the paravisor
	Register    string      // HostData, MRConfigID or PCR8; "" for a kind without such a register
	InitData    []byte      // what the register holds: 32, 48 or 32 bytes
}

// Launch reads the launch out of evidence.
func (e Evidence) Launch() (Launch, error) {
	switch e.Kind {
	case SNP:
		r, err := ParseSNP(e.Report)
		if err != nil {
			return Launch{}, err
		}
		return Launch{r.Measurement, HostData, r.HostData[:]}, nil
	case TDX:
		q, err := ParseTDX(e.Report)
		if err != nil {
			return Launch{}, err
		}
		return Launch{q.Report.MRTD, MRConfigID, q.Report.MRConfigID[:]}, nil
	case AzSNPvTPM, AzTDXvTPM:
		return e.azureLaunch()
	case Sample:
		return Launch{}, nil
	}
	return Launch{}, fmt.Errorf("evidence of kind %q says nothing of the launch", e.Kind)
}

func (e Evidence) azureLaunch() (Launch, error) {
	h, _, err := e.azure()
	if err != nil {
		return Launch{}, err
	}
	pcr8 := e.TPM.PCRs[8]
	if e.Kind == AzTDXvTPM {
		q, err := ParseTDX(e.Aux)
		if err != nil {
			return Launch{}, err
		}
		return Launch{q.Report.MRTD, PCR8, pcr8[:]}, nil
	}
	r, err := ParseSNP(h.Hardware)
	if err != nil {
		return Launch{}, err
	}
	return Launch{r.Measurement, PCR8, pcr8[:]}, nil
}

// Empty says that nothing was put into the register.
func (l Launch) Empty() bool {
	for _, b := range l.InitData {
		if b != 0 {
			return false
		}
	}
	return true
}

// Holds says that the register holds the SHA-256 digest of an initdata document in the form that this register has
// (wire/SPEC.md §3): as it is, or padded with zeros, or for PCR 8 extended into it once.
func (l Launch) Holds(digest [32]byte) bool {
	want := InRegister(l.Register, digest[:])
	return want != nil && string(want) == string(l.InitData)
}
