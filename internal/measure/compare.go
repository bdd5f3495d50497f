package measure

import (
	"fmt"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A Difference is the first event of a register at which a boot was not as predicted.
type Difference struct {
	Register  string `json:"register"`            // as pcr4 or rtmr1
	At        int    `json:"at"`                  // among the register's events, from 0
	Predicted *Event `json:"predicted,omitempty"` // nil: none more was
	Seen      *Event `json:"seen,omitempty"`      // nil: the log has none more
}

func (d Difference) String() string {
	text := func(e *Event) string {
		if e == nil {
			return "nothing more"
		}
		digest := e.Digests.SHA256.String()
		if e.Digests.SHA256 == (Hash256{}) {
			digest = e.Digests.SHA384.String()
		}
		return fmt.Sprintf("%s (type %#x, %s)", e.What, e.Type, digest)
	}
	return fmt.Sprintf("%s, event %d: predicted was %s, the log has %s", d.Register, d.At, text(d.Predicted), text(d.Seen))
}

// what names an event of a log by its data, where that is text.
func what(data []byte) string {
	text := []byte{}
	for _, b := range data {
		switch {
		case b == 0:
		case b < ' ' || b > '~':
			return fmt.Sprintf("%d bytes of data", len(data))
		default:
			text = append(text, b)
		}
	}
	return fmt.Sprintf("%.80q", text)
}

// ComparePCRs holds the log of a TPM against the prediction, event by event. PCRs that are not predicted are left out.
func (p *Prediction) ComparePCRs(log []LogEvent) []Difference {
	want, got := map[string][]Event{}, map[string][]Event{}
	for _, e := range p.Events {
		register := fmt.Sprintf("pcr%d", e.PCR)
		want[register] = append(want[register], e)
	}
	for _, e := range log {
		if _, predicted := p.PCR[e.PCR]; predicted && e.Type != evNoAction {
			register := fmt.Sprintf("pcr%d", e.PCR)
			got[register] = append(got[register], Event{e.PCR, e.Type, what(e.Data), e.Digests})
		}
	}
	return differences(want, got, func(a, b Event) bool { return a.Digests.SHA256 == b.Digests.SHA256 })
}

// CompareRTMRs holds the log of a TDX guest (CCEL) against the prediction of RTMR1 and RTMR2. Separators and the leaving of
// boot services, of which several forms are the same boot, are left out.
func (p *Prediction) CompareRTMRs(log []evidence.LogEvent) []Difference {
	same := func(e Event) bool {
		return e.Type == evSeparator || slices.ContainsFunc([]Event{exitBootServices, exitSucceeded, exitFailed}, func(x Event) bool { return x.Digests.SHA384 == e.Digests.SHA384 })
	}
	want, got := map[string][]Event{}, map[string][]Event{}
	for _, e := range p.Events {
		if n, err := rtmr(e.PCR); err == nil && n != 0 && !same(e) {
			register := fmt.Sprintf("rtmr%d", n)
			want[register] = append(want[register], e)
		}
	}
	for _, e := range log {
		seen := Event{Type: e.Type, What: what(e.Data), Digests: Digests{SHA384: evidence.Measurement(e.Digest)}}
		if (e.MR == 2 || e.MR == 3) && e.Type != evNoAction && !same(seen) {
			register := fmt.Sprintf("rtmr%d", e.MR-1)
			got[register] = append(got[register], seen)
		}
	}
	return differences(want, got, func(a, b Event) bool { return a.Digests.SHA384 == b.Digests.SHA384 })
}

func differences(want, got map[string][]Event, equal func(a, b Event) bool) (out []Difference) {
	var registers []string
	for _, m := range []map[string][]Event{want, got} {
		for r := range m {
			if !slices.Contains(registers, r) {
				registers = append(registers, r)
			}
		}
	}
	slices.Sort(registers)
	for _, r := range registers {
		for i := range max(len(want[r]), len(got[r])) {
			d := Difference{Register: r, At: i}
			if i < len(want[r]) {
				d.Predicted = &want[r][i]
			}
			if i < len(got[r]) {
				d.Seen = &got[r][i]
			}
			if d.Predicted == nil || d.Seen == nil || !equal(*d.Predicted, *d.Seen) {
				out = append(out, d)
				break
			}
		}
	}
	return out
}
