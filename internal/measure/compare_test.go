package measure

import (
	"slices"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// logOf is the log of a boot that went as predicted.
func logOf(events []Event) (log []LogEvent) {
	log = append(log, LogEvent{PCR: 0, Type: 8}, LogEvent{PCR: 4, Type: evNoAction})
	for _, e := range events {
		log = append(log, LogEvent{PCR: e.PCR, Type: e.Type, Digests: e.Digests, Data: []byte("data")})
	}
	return log
}

func TestComparePCRs(t *testing.T) {
	p, err := Predict(Shape{Name: "vm", TEE: OnSNP, VMM: OnAzure}, Files{UKI: sampleUKI("257")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := p.ComparePCRs(logOf(p.Events)); len(d) > 0 {
		t.Errorf("a boot as predicted differs: %v", d)
	}
	for name, test := range map[string]struct {
		change func([]LogEvent) []LogEvent
		want   string
	}{
		"another UKI": {func(l []LogEvent) []LogEvent { l[4].Digests = pcrEvent(9).Digests; return l }, `pcr4, event 2: predicted was UKI (type 0x80000003, `},
		"an event more": {func(l []LogEvent) []LogEvent {
			return append(l, LogEvent{PCR: 9, Type: evEventTag, Data: []byte("x\x00")})
		}, `pcr9, event 2: predicted was nothing more, the log has "x" (type 0x6`},
		"a line from outside": {func(l []LogEvent) []LogEvent { return append(l, LogEvent{PCR: 12, Type: evIPL}) }, "pcr12, event 0"},
		"an event less":       {func(l []LogEvent) []LogEvent { return l[:len(l)-1] }, "pcr9, event 1: predicted was Linux initrd"},
	} {
		d := p.ComparePCRs(test.change(logOf(p.Events)))
		if len(d) != 1 || !strings.HasPrefix(d[0].String(), test.want) {
			t.Errorf("%s: %v, want %q", name, d, test.want)
		}
	}
}

func pcrEvent(n byte) Event { return Event{Digests: digestsOf([]byte{n})} }

func TestCompareRTMRs(t *testing.T) {
	both := *amdSev
	both.tdvf = testTDVF
	p, err := Predict(Shape{Name: "vm", TEE: OnTDX, VMM: OnQEMU, Firmware: "fw"}, direct1(), firmwareImage(t, &both, newCode))
	if err != nil {
		t.Fatal(err)
	}
	var log []evidence.LogEvent
	for _, e := range p.Events {
		n, err := rtmr(e.PCR)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, evidence.LogEvent{MR: n + 1, Type: e.Type, Digest: e.Digests.SHA384})
	}
	if d := p.CompareRTMRs(log); len(d) > 0 {
		t.Errorf("a boot as predicted differs: %v", d)
	}
	// The same boot, of a firmware that has its separator elsewhere.
	other := slices.DeleteFunc(slices.Clone(log), func(e evidence.LogEvent) bool { return e.MR == 2 && e.Type == evSeparator })
	if d := p.CompareRTMRs(other); len(d) > 0 {
		t.Errorf("without the separator: %v", d)
	}
	at := slices.IndexFunc(log, func(e evidence.LogEvent) bool { return e.MR == 3 })
	log[at].Digest[0] ^= 1
	if d := p.CompareRTMRs(log); len(d) != 1 || d[0].Register != "rtmr2" || d[0].At != 0 {
		t.Errorf("with another command line: %v", d)
	}
	if want := evidence.Replay(other); !slices.Contains(p.RTMR[1], want[1]) {
		t.Errorf("RTMR1 %x is not among the predicted ones", want[1])
	}
}
