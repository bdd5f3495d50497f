package measure

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// sampleLog is a log of two events.
func sampleLog() []byte {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), make([]byte, 8)...)
	spec = le.AppendUint32(spec, 2)
	for _, alg := range [][2]uint16{{algSHA256, 32}, {algSHA384, 48}} {
		spec = le.AppendUint16(le.AppendUint16(spec, alg[0]), alg[1])
	}
	spec = append(spec, 0)
	b := le.AppendUint32(le.AppendUint32(nil, 0), evNoAction)
	b = append(b, make([]byte, 20)...)
	b = append(le.AppendUint32(b, uint32(len(spec))), spec...)
	for _, e := range []Event{separator(4), callingApplication} {
		b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, uint32(e.PCR)), e.Type), 2)
		b = append(le.AppendUint16(b, algSHA256), e.Digests.SHA256[:]...)
		b = append(le.AppendUint16(b, algSHA384), e.Digests.SHA384[:]...)
		b = append(le.AppendUint32(b, 4), "data"...)
	}
	return b
}

func TestParseLog(t *testing.T) {
	good := sampleLog()
	events, err := ParseLog(good)
	if err != nil || len(events) != 2 || events[1].PCR != 4 || events[1].Digests != callingApplication.Digests || string(events[0].Data) != "data" {
		t.Fatalf("%+v, %v", events, err)
	}
	for n := range good {
		if n == len(good)-2*(12+2+32+2+48+8) || n == len(good)-(12+2+32+2+48+8) {
			continue // at the end of an event a log is whole
		}
		if _, err := ParseLog(good[:n]); err == nil {
			t.Errorf("%d bytes of %d are a log", n, len(good))
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"too long": func(b []byte) []byte { return append(b, make([]byte, maxLog)...) },
		"PCR 24":   func(b []byte) []byte { b[32+37] = 24; return b },
		"a log of SHA-1": func(b []byte) []byte {
			return bytes.Replace(b, []byte("Spec ID Event03"), []byte("Spec ID Event02"), 1)
		},
		"an odd algorithm": func(b []byte) []byte { b[32+37+12] = 0x12; return b },
	} {
		if _, err := ParseLog(change(sampleLog())); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add(sampleLog())
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := ParseLog(b)
		if err == nil && len(events) > len(b)/16 {
			t.Errorf("%d events in %d bytes", len(events), len(b))
		}
	})
}

func FuzzParseFirmware(f *testing.F) {
	both := *amdSev
	both.tdvf = testTDVF
	f.Add(image(&both))
	f.Add(image(plainX64))
	f.Fuzz(func(t *testing.T, b []byte) {
		fw, err := ParseFirmware(b)
		if err != nil {
			return
		}
		for _, s := range fw.tdvf {
			if s.size > 1<<24 {
				return // right, and slow
			}
		}
		if fw.TDX() == nil {
			if _, err := MRTD(fw, EachPage); err != nil {
				t.Error(err)
			}
		}
		fw.behaviour()
	})
}

func FuzzParseUKI(f *testing.F) {
	f.Add(sampleUKI("257"))
	f.Add(sampleUKI("252"))
	nothing := sampleUKI("257", [2]string{".splash", ""})
	binary.LittleEndian.PutUint32(nothing[bytes.Index(nothing, []byte(".splash"))+20:], 1<<24)
	f.Add(nothing)
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, err := ParseUKI(b); err == nil {
			u.events(nil)
			u.initrd()
		}
	})
}
