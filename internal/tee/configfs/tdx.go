package configfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/google/go-configfs-tsm/report"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

// Where Linux shows the event log of the firmware, and from version 6.16 on the register that is the guest's own.
const (
	ccelFile  = "/sys/firmware/acpi/tables/data/CCEL"
	rtmr3File = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"
)

// maxCCEL bounds the log as the firmware shows it, its empty rest included, bytes.
const maxCCEL = 1 << 20

var tdx = format{kind: evidence.TDX, provider: "tdx_guest", check: checkTDX}

// TDX opens an Intel TDX guest device.
var TDX = driver(tdx, func(d *device) tee.Device { return &tdxDevice{device: d, ccel: ccelFile, rtmr3: sysfs(rtmr3File)} })

func checkTDX(resp *report.Response, reportData [64]byte) (evidence.Evidence, error) {
	q, err := evidence.ParseTDX(resp.OutBlob)
	if err != nil {
		return evidence.Evidence{}, err
	}
	if q.Report.ReportData != reportData {
		return evidence.Evidence{}, errors.New("TDX quote: it carries other report data than was asked for")
	}
	return evidence.Evidence{Kind: evidence.TDX, Report: resp.OutBlob}, nil
}

// An rtmr is a register of 48 bytes that writing extends. read is fs.ErrNotExist where the kernel shows none.
type rtmr interface {
	read() ([]byte, error)
	extend(digest []byte) error
}

// sysfs is a register as the kernel shows it.
type sysfs string

func (s sysfs) read() ([]byte, error) { return readBounded(string(s), 48) }

func (s sysfs) extend(digest []byte) error {
	f, err := os.OpenFile(string(s), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(digest)
	return errors.Join(err, f.Close())
}

// tdxDevice adds to the quotes what they are to be read with: the event log.
type tdxDevice struct {
	*device
	ccel  string
	rtmr3 rtmr

	mu      sync.Mutex
	entries []byte // what this boot extended, behind the firmware's log
}

var _ tee.Measurer = (*tdxDevice)(nil)

// Evidence is a quote with the log that its RTMRs replay to; without one where the firmware shows none.
func (d *tdxDevice) Evidence(ctx context.Context, reportData [64]byte) (evidence.Evidence, error) {
	// Held over both, so that no quote is older or newer than its log.
	d.mu.Lock()
	defer d.mu.Unlock()
	ev, err := d.device.Evidence(ctx, reportData)
	if err != nil {
		return ev, err
	}
	ev.EventLog, err = d.log()
	if err != nil {
		return evidence.Evidence{}, err
	}
	return ev, nil
}

func (d *tdxDevice) log() ([]byte, error) {
	raw, err := readBounded(d.ccel, maxCCEL)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a quote with RTMRs and no log: brokers take it, and policies that read the log do not
	}
	if err != nil {
		return nil, fmt.Errorf("CC event log: %w", err)
	}
	log, err := evidence.CutEventLog(raw)
	if err != nil {
		return nil, err
	}
	return evidence.AppendEvent(log, d.entries), nil
}

// Measure extends RTMR3, which must still be zero.
func (d *tdxDevice) Measure(_ context.Context, digest [32]byte) (register string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, err := d.rtmr3.read()
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: the kernel shows no RTMR3 (Linux 6.16 and later do)", tee.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("RTMR3: %w", err)
	}
	if len(before) != 48 || !bytes.Equal(before, make([]byte, 48)) {
		return "", fmt.Errorf("RTMR3 is %x before this boot has extended it: something else measures into it", before)
	}
	entry, extend := evidence.InitDataEvent(digest)
	if err := d.rtmr3.extend(extend[:]); err != nil {
		return "", fmt.Errorf("extend RTMR3: %w", err)
	}
	d.entries = append(d.entries, entry...)
	after, err := d.rtmr3.read()
	if err != nil {
		return "", fmt.Errorf("RTMR3: %w", err)
	}
	if want := evidence.Extend384([48]byte{}, extend); !bytes.Equal(after, want[:]) {
		return "", fmt.Errorf("RTMR3 is %x after it was extended, want %x", after, want)
	}
	return evidence.RTMR3, nil
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, err
}
