package evidence

import "fmt"

// Launch is what the hardware says of how the machine was started: the launch digest, and the 32 bytes that the
// launcher put there for us (SNP HOST_DATA). The report came from this machine's own TEE; nothing is verified here.
func (e Evidence) Launch() (Measurement, [32]byte, error) {
	switch e.Kind {
	case SNP:
		r, err := ParseSNP(e.Report)
		if err != nil {
			return Measurement{}, [32]byte{}, err
		}
		return r.Measurement, r.HostData, nil
	}
	return Measurement{}, [32]byte{}, fmt.Errorf("evidence of kind %q says nothing of the launch", e.Kind)
}
