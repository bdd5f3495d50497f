package kbsserver

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// parseRule reads one rule. encoding/json alone would take null for a measurement of zeros, and the second of two
// members of one name.
func parseRule(raw json.RawMessage) (r Rule, problems []error) {
	m, err := evidence.Object(raw)
	if err != nil {
		return r, []error{err}
	}
	for _, name := range []string{"measurements", "init_data"} {
		if _, ok := m[name]; !ok {
			problems = append(problems, fmt.Errorf("%s: missing", name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		raw, err := m[name], error(nil)
		switch name {
		case "measurements":
			r.Measurements, err = texts[evidence.Measurement](raw)
		case "init_data":
			r.InitData, err = texts[Digest](raw)
		case "tee":
			r.TEE, err = kinds(raw)
		case "min_tcb":
			r.MinTCB, err = levels(raw)
		case "mr_seam":
			r.MRSeam, err = some(texts[evidence.Measurement](raw))
		case "rtmr":
			r.RTMR, err = registers[evidence.Measurement](raw, 4)
		case "pcr":
			r.PCR, err = registers[Digest](raw, 24)
		case "allow_simulated":
			r.AllowSimulated = new(bool)
			err = value(raw, r.AllowSimulated)
		default:
			err = errors.New("unknown")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("member %.40q: %w", name, err))
		}
	}
	return r, problems
}

// value decodes anything but null.
func value(raw json.RawMessage, dst any) error {
	if string(raw) == "null" {
		return errors.New("is null")
	}
	return json.Unmarshal(raw, dst)
}

// texts reads a list of values that are written as strings.
func texts[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](raw json.RawMessage) ([]T, error) {
	var list []json.RawMessage
	if err := value(raw, &list); err != nil {
		return nil, err
	}
	out := make([]T, len(list))
	for i, raw := range list {
		var text string
		if err := value(raw, &text); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		if err := P(&out[i]).UnmarshalText([]byte(text)); err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return out, nil
}

// some refuses an empty list: written back it would be left out, and then ask nothing.
func some[T any](list []T, err error) ([]T, error) {
	if err == nil && len(list) == 0 {
		return nil, errors.New("empty: leave the member out, or list what is taken")
	}
	return list, err
}

func kinds(raw json.RawMessage) ([]evidence.Kind, error) {
	known := []evidence.Kind{evidence.SNP, evidence.TDX, evidence.AzSNPvTPM, evidence.AzTDXvTPM, evidence.Sample}
	var list []string
	if err := value(raw, &list); err != nil {
		return nil, err
	}
	var out []evidence.Kind
	for _, name := range list {
		if !slices.Contains(known, evidence.Kind(name)) {
			return nil, fmt.Errorf("%.40q, want one of %q", name, known)
		}
		out = append(out, evidence.Kind(name))
	}
	return some(out, nil)
}

func levels(raw json.RawMessage) (*MinTCB, error) {
	l := new(MinTCB)
	m, err := evidence.Object(raw)
	if err != nil {
		return nil, err
	}
	if len(m) == 0 {
		return nil, errors.New("names no level")
	}
	fields := map[string]*uint8{"bootloader": &l.Bootloader, "tee": &l.TEE, "snp": &l.SNP, "microcode": &l.Microcode, "fmc": &l.FMC}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if fields[name] == nil {
			return nil, fmt.Errorf("member %.40q: unknown", name)
		}
		if err := value(m[name], fields[name]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return l, nil
}

// registers reads what registers 0 to n-1 may hold.
func registers[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](raw json.RawMessage, n int) (map[int][]T, error) {
	m, err := evidence.Object(raw)
	if err != nil {
		return nil, err
	}
	if len(m) == 0 {
		return nil, errors.New("names no register")
	}
	out := map[int][]T{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		i, err := strconv.Atoi(name)
		if err != nil || i < 0 || i >= n || strconv.Itoa(i) != name {
			return nil, fmt.Errorf("register %.20q, want 0 to %d", name, n-1)
		}
		if out[i], err = some(texts[T, P](m[name])); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return out, nil
}
