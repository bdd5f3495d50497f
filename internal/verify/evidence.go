package verify

import (
	"errors"
	"fmt"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// Evidence checks evidence of any kind.
func Evidence(ev evidence.Evidence, o Options) (Claims, error) {
	switch ev.Kind {
	case evidence.SNP:
		return SNP(ev, o)
	case evidence.TDX:
		return TDX(ev, o)
	case evidence.AzSNPvTPM, evidence.AzTDXvTPM:
		return Azure(ev, o)
	case evidence.Sample:
		return sample(ev, o)
	}
	return Claims{}, fmt.Errorf("evidence of kind %q: this build cannot judge it", ev.Kind)
}

// sample takes evidence that anybody can make up, where that is allowed. It has no measurement and no register, so that
// a policy which names either refuses it.
func sample(ev evidence.Evidence, o Options) (Claims, error) {
	if !o.AllowSample {
		return Claims{}, errors.New("sample evidence: proves nothing, and is taken only where that is allowed")
	}
	if len(ev.Report) != 64 {
		return Claims{}, fmt.Errorf("sample evidence: %d bytes of report data, want 64", len(ev.Report))
	}
	c := Claims{
		Kind: evidence.Sample, ReportData: [64]byte(ev.Report), Product: "sample", Simulated: true,
		Unproven: []string{"anything: anybody can make sample evidence"},
	}
	return c, errors.Join(expected(&c, o)...)
}
