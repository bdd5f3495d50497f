package sample

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

func TestSample(t *testing.T) {
	d, err := tee.Open([]tee.Driver{Driver})
	if err != nil || d.Kind() != evidence.Sample {
		t.Fatalf("%v, %v", d, err)
	}
	data := [64]byte{1, 47: 2}
	ev, err := d.Evidence(t.Context(), data)
	if err != nil || ev.Kind != evidence.Sample || !bytes.Equal(ev.Report, data[:]) {
		t.Errorf("%+v, %v", ev, err)
	}
	want := `{"svn":"1","report_data":"` + base64.StdEncoding.EncodeToString(data[:48]) + `"}`
	if j, err := ev.JSON(); err != nil || string(j) != want {
		t.Errorf("%s, %v, want %s", j, err, want)
	}
	if _, ok := d.(tee.Measurer); ok {
		t.Error("sample evidence has a register that ties initdata to it")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("step is over")
	cancel(why)
	if _, err := d.Evidence(ctx, data); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}
