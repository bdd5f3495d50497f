package tee

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

type device struct{ kind evidence.Kind }

func (d device) Kind() evidence.Kind { return d.kind }
func (d device) Evidence(context.Context, [64]byte) (evidence.Evidence, error) {
	return evidence.Evidence{Kind: d.kind}, nil
}

func TestOpenNeverFallsThroughBrokenHardware(t *testing.T) {
	absent := Driver{"absent", func() (Device, error) { return nil, fmt.Errorf("%w: none", ErrNotFound) }}
	broken := Driver{"broken", func() (Device, error) { return nil, errors.New("smoke") }}
	works := Driver{"works", func() (Device, error) { return device{"snp"}, nil }}
	weaker := Driver{"weaker", func() (Device, error) { return device{"sample"}, nil }}

	d, err := Open([]Driver{absent, works, weaker})
	if err != nil || d.Kind() != "snp" {
		t.Errorf("first device that is there: %v, %v", d, err)
	}
	if _, err := Open([]Driver{absent, broken, works}); err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "broken: smoke") {
		t.Errorf("broken hardware: %v", err)
	}
	if _, err := Open([]Driver{absent}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "absent: no such TEE: none") {
		t.Errorf("no hardware: %v", err)
	}
	if _, err := Open(nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("no drivers: %v", err)
	}
}
