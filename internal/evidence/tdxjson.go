package evidence

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
)

// tdxJSON is Trustee's form (wire/SPEC.md §2.2). A log that is not there is null, never "".
type tdxJSON struct {
	EventLog []byte `json:"cc_eventlog"`
	Quote    []byte `json:"quote"`
}

func tdxToJSON(e Evidence) (json.RawMessage, error) {
	if _, err := ParseTDX(e.Report); err != nil {
		return nil, err
	}
	j := tdxJSON{Quote: e.Report}
	if len(e.EventLog) > 0 {
		j.EventLog = e.EventLog
	}
	return json.Marshal(j)
}

func tdxFromJSON(raw []byte) (Evidence, error) {
	m, err := ObjectOf(raw, []string{"quote"}, []string{"cc_eventlog"})
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Kind: TDX}
	if e.Report, err = base64Member(m, "quote"); err != nil {
		return Evidence{}, err
	}
	if m["cc_eventlog"] != nil {
		if e.EventLog, err = base64Member(m, "cc_eventlog"); err != nil {
			return Evidence{}, err
		}
	}
	if _, err := ParseTDX(e.Report); err != nil {
		return Evidence{}, err
	}
	if len(e.EventLog) > 0 {
		if _, err := ParseEventLog(e.EventLog); err != nil {
			return Evidence{}, err
		}
	}
	return e, nil
}

// base64Member reads a string of standard base64 with padding.
func base64Member(m map[string]json.RawMessage, name string) ([]byte, error) {
	var text string
	if err := json.Unmarshal(m[name], &text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	b, err := decode64(base64.StdEncoding, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}
