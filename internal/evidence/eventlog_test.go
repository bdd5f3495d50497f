package evidence

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"
)

// TestRecordedPairReplays: the log of a real guest leads to the registers that its quote was signed over.
func TestRecordedPairReplays(t *testing.T) {
	log, err := CutEventLog(fixture(t, "ccel/ccel_data.dat"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(log, bytes.Repeat([]byte{0xff}, 8)) || len(log) > 128<<10 {
		t.Errorf("%d bytes, ending in %x", len(log), log[len(log)-8:])
	}
	q, err := ParseTDX(fixture(t, "ccel/cos-113-tdx-quote.dat"))
	if err != nil {
		t.Fatal(err)
	}
	events, err := ParseEventLog(log)
	if err != nil {
		t.Fatal(err)
	}
	got := Replay(events)
	if got != q.Report.RTMR {
		t.Errorf("replay gives\n%x, the quote has\n%x", got, q.Report.RTMR)
	}
	// Our own entry, and the register after its extension.
	entry, extend := InitDataEvent([32]byte{1})
	events, err = ParseEventLog(AppendEvent(log, entry))
	if err != nil {
		t.Fatal(err)
	}
	want := q.Report.RTMR
	want[3] = Extend384(want[3], extend)
	if Replay(events) != want {
		t.Error("with our own entry the log does not lead to the extended register")
	}
	events[3].Digest[0] ^= 1
	if Replay(events) == want {
		t.Error("a changed digest replays as well")
	}
}

func TestRecordedEventLogs(t *testing.T) {
	for _, name := range []string{"CCEL_AAEL_alibabacloud.gz", "CCEL_data.gz", "CCEL_data_gcp.gz", "CCEL_data_grub.gz", "CCEL_data_grub_gke.gz", "CCEL_data_ovmf"} {
		raw := fixture(t, "ccel/trustee-"+name)
		if strings.HasSuffix(name, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(raw))
			if err != nil {
				t.Fatal(err)
			}
			if raw, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		events, err := ParseEventLog(raw)
		if err != nil || len(events) < 5 {
			t.Errorf("%s: %d events, %v", name, len(events), err)
			continue
		}
		cut, err := CutEventLog(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		again, err := ParseEventLog(cut)
		if err != nil || Replay(again) != Replay(events) || len(again) != len(events) {
			t.Errorf("%s: cut to %d events of %d: %v", name, len(again), len(events), err)
		}
		if name == "CCEL_AAEL_alibabacloud.gz" && Replay(events)[3] == [48]byte{} {
			t.Errorf("%s: its AAEL entries extend RTMR3 by nothing", name)
		}
	}
}

func TestBadEventLogs(t *testing.T) {
	entry, _ := InitDataEvent([32]byte{1})
	log := AppendEvent(testHeader(), entry)
	if e, err := ParseEventLog(log); err != nil || len(e) != 1 || e[0].MR != 4 || e[0].Type != 6 {
		t.Fatalf("%+v, %v", e, err)
	}
	start := len(testHeader())
	for name, change := range map[string]func([]byte) []byte{
		"register 5":             func(b []byte) []byte { b[start] = 5; return b },
		"no digests":             func(b []byte) []byte { b[start+8] = 0; return b },
		"many digests":           func(b []byte) []byte { b[start+9] = 1; return b },
		"an unknown digest":      func(b []byte) []byte { b[start+12] = 0x0d; return b },
		"data past the end":      func(b []byte) []byte { b[start+64] = 0xff; return b },
		"cut in an event":        func(b []byte) []byte { return b[:start+30] },
		"another header":         func(b []byte) []byte { b[4] = 4; return b },
		"a header past the end":  func(b []byte) []byte { b[30] = 0xff; return b },
		"nothing":                func([]byte) []byte { return nil },
		"more than one mebibyte": func([]byte) []byte { return make([]byte, 1<<20+1) },
	} {
		if e, err := ParseEventLog(change(bytes.Clone(log))); err == nil {
			t.Errorf("%s: taken as %d events", name, len(e))
		}
	}
	many := testHeader()
	for range maxLogEvents + 1 {
		many = append(many, entry...)
	}
	if _, err := ParseEventLog(many); err == nil {
		t.Error("too many events are taken")
	}
}

// testHeader is a log without events.
func testHeader() []byte {
	data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0)
	b := append([]byte{1, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	b = append(b, byte(len(data)), 0, 0, 0)
	return append(b, data...)
}

func FuzzEventLog(f *testing.F) {
	entry, _ := InitDataEvent([32]byte{1})
	f.Add(AppendEvent(testHeader(), entry))
	f.Add(testHeader())
	f.Fuzz(func(t *testing.T, b []byte) {
		events, err := ParseEventLog(b)
		cut, cutErr := CutEventLog(b)
		if (err == nil) != (cutErr == nil) {
			t.Fatalf("parse says %v and cut %v", err, cutErr)
		}
		if err != nil {
			return
		}
		again, err := ParseEventLog(cut)
		if err != nil || Replay(again) != Replay(events) {
			t.Errorf("the cut log replays otherwise: %v", err)
		}
	})
}
