package fake

import (
	"errors"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

func TestDevice(t *testing.T) {
	d := &Device{}
	var _ tee.Device = d
	ev, err := d.Evidence(t.Context(), [64]byte{7})
	if err != nil || ev.Kind != evidence.Sample || len(ev.Report) != 64 || ev.Report[0] != 7 {
		t.Errorf("%v %v", ev, err)
	}
	d.Err = errors.New("broken")
	if _, err := d.Evidence(t.Context(), [64]byte{8}); err != d.Err {
		t.Errorf("error %v", err)
	}
	if len(d.Asked) != 2 || d.Asked[1][0] != 8 {
		t.Errorf("asked %v", d.Asked)
	}
}
