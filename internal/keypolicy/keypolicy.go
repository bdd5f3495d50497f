// Package keypolicy turns what an image measures to, and which manifests it may run, into what brokers take: reference
// values, an attestation policy and a resource policy in Rego for Trustee, and the plain form of the embedded broker.
package keypolicy

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/measure"
)

// Options say who may have what.
type Options struct {
	// Manifests are SHA-256 digests of initdata documents (ampoule manifest digest).
	Manifests [][32]byte
	// Resources are paths REPO/TYPE/TAG, in which a segment can be * for any one.
	Resources []string
	// Paravisor are launch measurements of Azure's paravisor that are trusted. Without one nothing is released on Azure:
	// whatever is launched in its place could sign any PCR.
	Paravisor []evidence.Measurement
	MinTCB    kbsserver.MinTCB // lowest patch levels of SNP
}

// A Policy is what brokers take.
type Policy struct {
	// References are reference values by name, each a list of strings, or a number.
	References map[string]any
	// Attestation and Resource are modules of Rego; Resource is empty where no manifest is known.
	Attestation, Resource []byte
	// Broker is the plain policy of the embedded broker, by the kind of evidence: one of its rules is about one kind.
	// It is empty where no manifest is known.
	Broker map[evidence.Kind]kbsserver.Policy
	// Left are the shapes that get nothing, by name, with the reason.
	Left map[string]string
}

// known is what may be seen of the VMs of one kind.
type known struct {
	launch    []string // as the claim has it
	registers map[string][]string
	bound     []string // claims init_data
	rtmr3     []string // of TDX guests with zero in MRCONFIGID
	raw       []evidence.Measurement
}

var kinds = []evidence.Kind{evidence.SNP, evidence.TDX, evidence.AzSNPvTPM, evidence.AzTDXvTPM}

// names are the registers of a kind that the image decides, by the names that claims have for them.
var names = map[evidence.Kind]map[int]string{
	evidence.TDX:       {1: "rtmr_1", 2: "rtmr_2"},
	evidence.AzSNPvTPM: {4: "pcr04", 9: "pcr09", 11: "pcr11", 12: "pcr12"},
	evidence.AzTDXvTPM: {4: "pcr04", 9: "pcr09", 11: "pcr11", 12: "pcr12"},
}

// ErrNothing is of measurements by which no shape's evidence tells that this image runs.
var ErrNothing = errors.New("no shape is left to release anything to")

// Make makes the policies. That no shape of m is left is ErrNothing.
func Make(m *measure.Measurements, o Options) (*Policy, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p, all, err := judge(m, o, false)
	if err != nil {
		return nil, err
	}
	if p.Resource, err = resource(all, o); err != nil {
		return nil, err
	}
	for kind, k := range all {
		if p.Broker[kind], err = k.broker(kind, o); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// OfImage makes what holds for an image whatever it is told to do: reference values, and the policy that compares evidence
// with them. Neither releases anything without a resource policy. For Azure they are the image's alone: its paravisor has no
// value, and nothing is trusted there until it has. That no shape of m is left is ErrNothing.
func OfImage(m *measure.Measurements) (*Policy, error) {
	p, _, err := judge(m, Options{}, true)
	return p, err
}

// judge collects what the shapes can show, and makes what does not depend on manifests. In part, it takes Azure's without
// a paravisor.
func judge(m *measure.Measurements, o Options, part bool) (*Policy, map[evidence.Kind]*known, error) {
	p := &Policy{Left: maps.Clone(m.Refused), Broker: map[evidence.Kind]kbsserver.Policy{}}
	if p.Left == nil {
		p.Left = map[string]string{}
	}
	all := map[evidence.Kind]*known{}
	for _, s := range m.Shapes {
		azure := s.Kind == evidence.AzSNPvTPM || s.Kind == evidence.AzTDXvTPM
		switch err := s.Identifies(); {
		case err != nil:
			p.Left[s.Shape.Name] = err.Error()
			continue
		case azure && len(o.Paravisor) == 0:
			p.Left[s.Shape.Name] = "no launch measurement of a trusted paravisor was given (ampoule policy --paravisor), and another could sign any PCR"
			if !part {
				continue
			}
		}
		if all[s.Kind] == nil {
			all[s.Kind] = &known{registers: map[string][]string{}}
		}
		launch := s.Measurements
		if azure {
			launch = o.Paravisor
		}
		all[s.Kind].add(s, launch, o.Manifests)
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("%w: %s", ErrNothing, list(p.Left))
	}
	p.References = references(all, o.MinTCB)
	p.Attestation = []byte(attestation)
	return p, all, nil
}

func (o Options) check() error {
	if len(o.Manifests) == 0 {
		return errors.New("no manifest: keys would be released to an image whatever it is told to do")
	}
	if len(o.Resources) == 0 {
		return errors.New("no resource: the policy would release nothing")
	}
	for _, r := range o.Resources {
		segments := strings.Split(r, "/")
		for _, s := range segments {
			if len(segments) != 3 || s != "*" && (s == "" || strings.ContainsAny(s, `*?[]\"`)) {
				return fmt.Errorf("resource %.80q: want REPO/TYPE/TAG, of which each can be *", r)
			}
		}
	}
	return nil
}

func list(left map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(left)) {
		out = append(out, name+": "+left[name])
	}
	return strings.Join(out, "; ")
}

// add unites what several shapes of a kind can show. Each is of the same image, so that a mixture of two is, too.
func (k *known) add(s measure.Prediction, launch []evidence.Measurement, manifests [][32]byte) {
	put := func(dst *[]string, v string) {
		if !slices.Contains(*dst, v) {
			*dst = append(*dst, v)
		}
	}
	for _, v := range launch {
		text := v.String()
		if s.Kind == evidence.AzSNPvTPM {
			text = base64.StdEncoding.EncodeToString(v[:]) // so Trustee has it there
		}
		put(&k.launch, text)
		if !slices.Contains(k.raw, v) {
			k.raw = append(k.raw, v)
		}
	}
	for n, name := range names[s.Kind] {
		values := k.registers[name]
		for _, v := range s.RTMR[n] {
			put(&values, v.String())
		}
		if d, ok := s.PCR[n]; ok {
			put(&values, d.SHA256.String())
		}
		k.registers[name] = values
	}
	register := map[evidence.Kind]string{evidence.SNP: evidence.HostData, evidence.TDX: evidence.MRConfigID, evidence.AzSNPvTPM: evidence.PCR8, evidence.AzTDXvTPM: evidence.PCR8}[s.Kind]
	for _, d := range manifests {
		put(&k.bound, hex.EncodeToString(evidence.InRegister(register, d[:])))
		if s.Kind == evidence.TDX {
			_, digest := evidence.InitDataEvent(d)
			put(&k.rtmr3, evidence.Measurement(evidence.Extend384([48]byte{}, digest)).String())
		}
	}
}

// broker is one rule for each resource.
func (k *known) broker(kind evidence.Kind, o Options) (kbsserver.Policy, error) {
	r := kbsserver.Rule{Measurements: k.raw, TEE: []evidence.Kind{kind}}
	for _, d := range o.Manifests {
		r.InitData = append(r.InitData, kbsserver.Digest(d))
	}
	if o.MinTCB != (kbsserver.MinTCB{}) && (kind == evidence.SNP || kind == evidence.AzSNPvTPM) {
		r.MinTCB = &o.MinTCB
	}
	for n, name := range names[kind] {
		for _, text := range k.registers[name] {
			if kind == evidence.TDX {
				m, err := evidence.ParseMeasurement(text)
				if err != nil {
					return nil, err
				}
				if r.RTMR == nil {
					r.RTMR = map[int][]evidence.Measurement{}
				}
				r.RTMR[n] = append(r.RTMR[n], m)
				continue
			}
			var d kbsserver.Digest
			if err := d.UnmarshalText([]byte(text)); err != nil {
				return nil, err
			}
			if r.PCR == nil {
				r.PCR = map[int][]kbsserver.Digest{}
			}
			r.PCR[n] = append(r.PCR[n], d)
		}
	}
	p := kbsserver.Policy{}
	for _, path := range o.Resources {
		p[path] = r
	}
	return p, nil
}

// references are named as Trustee's stock policy names them, where it has a name that means the same alone.
func references(all map[evidence.Kind]*known, least kbsserver.MinTCB) map[string]any {
	out := map[string]any{}
	if k := all[evidence.SNP]; k != nil {
		out["snp_launch_measurement"] = k.launch
	}
	if k := all[evidence.TDX]; k != nil {
		out["mr_td"], out["rtmr_1"], out["rtmr_2"] = k.launch, k.registers["rtmr_1"], k.registers["rtmr_2"]
	}
	for kind, prefix := range map[evidence.Kind]string{evidence.AzSNPvTPM: "az_snp_", evidence.AzTDXvTPM: "az_tdx_"} {
		if k := all[kind]; k != nil {
			if k.launch != nil {
				out[prefix+"paravisor"] = k.launch
			}
			for name, values := range k.registers {
				out[prefix+name] = values
			}
		}
	}
	if all[evidence.SNP] != nil || all[evidence.AzSNPvTPM] != nil {
		out["snp_least_bootloader"], out["snp_least_tee"] = least.Bootloader, least.TEE
		out["snp_least_snp"], out["snp_least_microcode"] = least.SNP, least.Microcode
	}
	return out
}

// RVPS is the message in which Trustee takes reference values (its extractor "sample").
func (p *Policy) RVPS() ([]byte, error) {
	values, err := json.Marshal(p.References)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(values)})
}
