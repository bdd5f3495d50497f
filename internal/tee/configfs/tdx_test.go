package configfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/faketsm"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// newTDX is a guest whose kernel gives unsigned quotes; change is what a test varies.
func newTDX(t *testing.T, change func(*evidence.TDXReport)) *tdxDevice {
	t.Helper()
	k := newKernel()
	k.provider = "tdx_guest\n"
	k.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch attr {
		case "provider":
			return []byte(k.provider), nil
		case "outblob":
			r := evidence.TDXReport{ReportData: [64]byte(e.InAttrs["inblob"].Value)}
			if change != nil {
				change(&r)
			}
			return quote(&r), nil
		}
		return nil, os.ErrNotExist
	}
	d, err := open(k, tdx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &tdxDevice{device: d, ccel: filepath.Join(dir, "CCEL"), rtmr3: sysfs(filepath.Join(dir, "rtmr3"))}
}

func quote(r *evidence.TDXReport) []byte {
	b := make([]byte, 48)
	b[0], b[2], b[4] = 4, 2, 0x81
	return append(append(b, r.Marshal()...), 0, 0, 0, 0)
}

// header is a CC event log without events.
func header() []byte {
	data := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0)
	b := append([]byte{1, 0, 0, 0, 3, 0, 0, 0}, make([]byte, 20)...)
	return append(append(b, byte(len(data)), 0, 0, 0), data...)
}

func write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTDXQuote(t *testing.T) {
	d := newTDX(t, nil)
	ev, err := d.Evidence(t.Context(), nonce)
	if err != nil || ev.Kind != evidence.TDX || d.Kind() != evidence.TDX || ev.EventLog != nil || ev.Aux != nil {
		t.Fatalf("%+v, %v", ev, err)
	}
	q, err := evidence.ParseTDX(ev.Report)
	if err != nil || q.Report.ReportData != nonce {
		t.Errorf("%v", err)
	}
	// The firmware's buffer is longer than its log.
	write(t, d.ccel, append(header(), make([]byte, 4096)...))
	if ev, err = d.Evidence(t.Context(), nonce); err != nil || !bytes.Equal(ev.EventLog, append(header(), bytes.Repeat([]byte{0xff}, 8)...)) {
		t.Errorf("event log %x, %v", ev.EventLog, err)
	}
	write(t, d.ccel, []byte("no log"))
	if _, err := d.Evidence(t.Context(), nonce); err == nil {
		t.Error("a log that cannot be read is left out silently")
	}
	write(t, d.ccel, make([]byte, maxCCEL+1))
	if _, err := d.Evidence(t.Context(), nonce); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a log over the limit: %v", err)
	}
}

func TestTDXRefuses(t *testing.T) {
	d := newTDX(t, func(r *evidence.TDXReport) { r.ReportData[0]++ })
	if _, err := d.Evidence(t.Context(), nonce); err == nil || !strings.Contains(err.Error(), "other report data") {
		t.Errorf("a quote over other data: %v", err)
	}
	k := newKernel()
	if _, err := open(k, tdx); !errors.Is(err, tee.ErrNotFound) || !strings.Contains(err.Error(), "sev_guest") {
		t.Errorf("an SNP guest: %v", err)
	}
}

// TestRTMR3: absent, in use and broken registers are told apart.
func TestRTMR3(t *testing.T) {
	d := newTDX(t, nil)
	digest := [32]byte{1, 2, 3}
	if _, err := d.Measure(t.Context(), digest); !errors.Is(err, tee.ErrNotFound) {
		t.Errorf("a kernel without the register: %v", err)
	}
	// A file is no register: what is read back is not the extension, which must be noticed.
	write(t, string(d.rtmr3.(sysfs)), make([]byte, 48))
	if _, err := d.Measure(t.Context(), digest); err == nil || !strings.Contains(err.Error(), "after it was extended") {
		t.Errorf("a register that does not extend: %v", err)
	}
	if _, err := d.Measure(t.Context(), digest); err == nil || !strings.Contains(err.Error(), "before this boot") {
		t.Errorf("a register in use: %v", err)
	}
	write(t, string(d.rtmr3.(sysfs)), make([]byte, 47))
	if _, err := d.Measure(t.Context(), digest); err == nil {
		t.Error("a register of 47 bytes")
	}
}

// extending is a register that does what hardware does.
type extending [48]byte

func (e *extending) read() ([]byte, error) { return e[:], nil }

func (e *extending) extend(digest []byte) error {
	*e = evidence.Extend384(*e, [48]byte(digest))
	return nil
}

// TestMeasure: the log leads to the extended register, and there is no second time.
func TestMeasure(t *testing.T) {
	d := newTDX(t, nil)
	var r extending
	d.rtmr3 = &r
	write(t, d.ccel, append(header(), bytes.Repeat([]byte{0xff}, 64)...))
	if register, err := d.Measure(t.Context(), [32]byte{9}); err != nil || register != evidence.RTMR3 {
		t.Fatalf("%q, %v", register, err)
	}
	ev, err := d.Evidence(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	events, err := evidence.ParseEventLog(ev.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	if got := evidence.Replay(events); got != [4][48]byte{3: r} {
		t.Errorf("replays to %x, the register is %x", got, r)
	}
	if _, err := d.Measure(t.Context(), [32]byte{9}); err == nil {
		t.Error("extended a second time")
	}
}
