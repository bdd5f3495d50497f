package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Object reads one JSON object and nothing after it. Unlike encoding/json it takes member names as they are written,
// refuses a name that comes twice, and refuses anything that is not an object. Values are left undecoded.
func Object(raw []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil {
		return nil, fmt.Errorf("JSON object: %w", noEOF(err))
	} else if t != json.Delim('{') {
		return nil, fmt.Errorf("JSON object: starts with %.20q", fmt.Sprint(t))
	}
	m := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("JSON object: %w", noEOF(err))
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("JSON object: member without a name")
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("JSON object: member %.40q twice", name)
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, fmt.Errorf("member %.40q: %w", name, noEOF(err))
		}
		m[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("JSON object: %w", noEOF(err))
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("JSON object: bytes after its end")
	}
	return m, nil
}

// ObjectOf is Object for a known set of members: each of required must be there and not null, each of optional may
// be, a null one counts as absent, and no other may.
func ObjectOf(raw []byte, required, optional []string) (map[string]json.RawMessage, error) {
	m, err := Object(raw)
	if err != nil {
		return nil, err
	}
	for name, v := range m {
		if string(v) == "null" {
			delete(m, name)
		}
		if !slices.Contains(required, name) && !slices.Contains(optional, name) {
			return nil, fmt.Errorf("member %.40q: unknown", name)
		}
	}
	for _, name := range required {
		if _, ok := m[name]; !ok {
			return nil, fmt.Errorf("member %q: missing", name)
		}
	}
	return m, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
