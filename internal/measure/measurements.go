package measure

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// FileName is that of Measurements among the files of an image.
const FileName = "measurements.json"

const (
	version         = 1
	maxMeasurements = 4 << 20 // bytes
	maxShapes       = 1 << 10
)

// Measurements is what an image measures to, in every shape that it is meant for: the file measurements.json. A list of
// launch measurements alone, as JSON strings, is the older form of the file, which verifiers read as well.
type Measurements struct {
	Version int               `json:"version"` // 1
	Files   map[string]string `json:"files"`   // SHA-256 of what was predicted from: kernel, initrd, cmdline, uki
	Cmdline string            `json:"cmdline,omitempty"`
	Shapes  []Prediction      `json:"shapes"`
	// Refused are the shapes for which nothing is predicted, with the reason, by name.
	Refused map[string]string `json:"refused,omitempty"`
}

// PredictAll predicts for every shape; firmware reads the file that a shape names. A shape that is refused is listed with
// its reason and is no error; that all are is one.
func PredictAll(shapes []Shape, f Files, firmware func(name string) ([]byte, error)) (*Measurements, error) {
	if len(shapes) == 0 || len(shapes) > maxShapes {
		return nil, fmt.Errorf("%d shapes, want 1 to %d", len(shapes), maxShapes)
	}
	m := &Measurements{Version: version, Files: map[string]string{}, Refused: map[string]string{}, Cmdline: f.Cmdline}
	for name, b := range map[string][]byte{"kernel": f.Kernel, "initrd": f.Initrd, "uki": f.UKI} {
		if b != nil {
			m.Files[name] = hexSum(b)
		}
	}
	if f.Kernel != nil {
		m.Files["cmdline"] = hexSum([]byte(f.Cmdline))
	}
	seen := map[string]bool{}
	var problems []error
	for _, s := range shapes {
		if seen[s.Name] {
			return nil, fmt.Errorf("two shapes of name %q", s.Name)
		}
		seen[s.Name] = true
		var image []byte
		if s.Firmware != "" {
			var err error
			if image, err = firmware(s.Firmware); err != nil {
				return nil, fmt.Errorf("shape %s: firmware: %w", s.Name, err)
			}
		}
		p, err := Predict(s, f, image)
		if err != nil {
			m.Refused[s.Name] = err.Error()
			problems = append(problems, err)
			continue
		}
		m.Shapes = append(m.Shapes, *p)
	}
	if len(m.Shapes) == 0 {
		return m, fmt.Errorf("nothing is predicted: %w", errors.Join(problems...))
	}
	return m, nil
}

// JSON is the file.
func (m *Measurements) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

// ParseMeasurements reads the file strictly: no unknown member, nothing behind it.
func ParseMeasurements(b []byte) (*Measurements, error) {
	m := new(Measurements)
	if err := strict(b, m); err != nil {
		return nil, fmt.Errorf("%s: %w", FileName, err)
	}
	if m.Version != version {
		return nil, fmt.Errorf("%s: version is %d, want %d", FileName, m.Version, version)
	}
	return m, nil
}

// ParseShapes reads a shape file: a JSON list of shapes.
func ParseShapes(b []byte) ([]Shape, error) {
	var shapes []Shape
	if err := strict(b, &shapes); err != nil {
		return nil, fmt.Errorf("shapes: %w", err)
	}
	var problems []error
	for i, s := range shapes {
		if _, err := s.withDefaults(); err != nil {
			problems = append(problems, fmt.Errorf("shapes[%d]: %w", i, err))
		}
	}
	if len(shapes) == 0 {
		problems = append(problems, errors.New("shapes: the list is empty"))
	}
	return shapes, errors.Join(problems...)
}

func strict(b []byte, v any) error {
	if len(b) > maxMeasurements {
		return fmt.Errorf("%d bytes, at most %d", len(b), maxMeasurements)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it goes on behind its end")
	}
	return nil
}

// Launch are the launch measurements of all shapes, each once: what a verifier accepts.
func (m *Measurements) Launch() []evidence.Measurement {
	var out []evidence.Measurement
	for _, p := range m.Shapes {
		for _, v := range p.Measurements {
			if !slices.Contains(out, v) {
				out = append(out, v)
			}
		}
	}
	return out
}

// Identifies says why evidence of a shape does not tell which image runs; nil: what is predicted is of the image alone.
func (p *Prediction) Identifies() error {
	switch p.Kind {
	case evidence.SNP:
		if p.Shape.VMM != OnQEMU || p.Shape.Boot == BootUKI {
			return errors.New("the launch measurement is that of the firmware, and nothing in the evidence says what it started")
		}
		return nil
	case evidence.TDX:
		if why := cmp.Or(p.Unpredicted["rtmr.1"], p.Unpredicted["measurements"]); why != "" {
			return errors.New(why)
		}
		return nil
	case evidence.AzSNPvTPM, evidence.AzTDXvTPM:
		return nil
	}
	return errors.New("no broker of ours takes evidence of such a VM")
}

// Observed is what a verifier has read out of evidence whose signatures hold.
type Observed struct {
	Kind        evidence.Kind
	Measurement evidence.Measurement
	RTMR        *[4][48]byte  // TDX
	PCR         *[24][32]byte // SHA-256; Azure
}

// imagePCRs are those that a UKI alone decides. PCR 12 has what a stub takes from outside, and is zero.
var imagePCRs = []int{4, 9, 11, 12}

// Match is nil if one of the shapes measures as was observed, in all that its evidence has. The paravisor of Azure, whose
// measurement is not predicted, is the caller's to check.
func (m *Measurements) Match(o Observed) error {
	var problems []error
	for _, p := range m.Shapes {
		if p.Kind != o.Kind {
			continue
		}
		err := p.match(o)
		if err == nil {
			return nil
		}
		problems = append(problems, fmt.Errorf("%s: %w", p.Shape.Name, err))
	}
	if len(problems) == 0 {
		return fmt.Errorf("no shape gives evidence of kind %s", o.Kind)
	}
	return errors.Join(problems...)
}

func (p *Prediction) match(o Observed) error {
	if err := p.Identifies(); err != nil {
		return err
	}
	azure := o.Kind == evidence.AzSNPvTPM || o.Kind == evidence.AzTDXvTPM
	if !azure && !slices.Contains(p.Measurements, o.Measurement) {
		return fmt.Errorf("the launch measurement is %s, predicted is %v", o.Measurement, p.Measurements)
	}
	if o.Kind == evidence.TDX {
		for _, n := range []int{1, 2} {
			if o.RTMR == nil || !slices.Contains(p.RTMR[n], evidence.Measurement(o.RTMR[n])) {
				return fmt.Errorf("RTMR%d is not as predicted, which is %v", n, p.RTMR[n])
			}
		}
	}
	if azure {
		for _, n := range imagePCRs {
			if want, ok := p.PCR[n]; !ok || o.PCR == nil || Hash256(o.PCR[n]) != want.SHA256 {
				return fmt.Errorf("PCR %d is not as predicted, which is %s", n, want.SHA256)
			}
		}
	}
	return nil
}
