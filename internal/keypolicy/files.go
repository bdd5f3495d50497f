package keypolicy

import (
	"encoding/json"
	"errors"
)

// The files of a policy. BrokerPrefix is followed by the kind of evidence and ".json".
const (
	ReferenceValuesFile = "reference-values.json" // what ampoule kbs takes
	RVPSFile            = "rvps.json"             // the same as a message for Trustee
	AttestationFile     = "attestation.rego"
	ResourceFile        = "resource.rego"
	BrokerPrefix        = "broker-"
)

// Files are the policy by the names of its files. What is not known has none.
func (p *Policy) Files() (map[string][]byte, error) {
	files := map[string][]byte{AttestationFile: p.Attestation}
	if p.Resource != nil {
		files[ResourceFile] = p.Resource
	}
	var errs []error
	put := func(name string, v any) {
		b, err := json.MarshalIndent(v, "", "  ")
		files[name], errs = append(b, '\n'), append(errs, err)
	}
	put(ReferenceValuesFile, p.References)
	for kind, rules := range p.Broker {
		put(BrokerPrefix+string(kind)+".json", rules)
	}
	rvps, err := p.RVPS()
	files[RVPSFile] = rvps
	return files, errors.Join(append(errs, err)...)
}
