package kbsserver

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/BurntSushi/toml"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// initDocument is an initdata document as a guest sent it (§3).
type initDocument struct {
	digest []byte            // by its own algorithm, of its exact bytes
	data   map[string]string // its table
}

// parseInitData reads the init-data member of an attestation.
func parseInitData(raw json.RawMessage) (*initDocument, error) {
	m, err := evidence.ObjectOf(raw, []string{"format", "body"}, nil)
	if err != nil {
		return nil, err
	}
	var format, body string
	if err := errors.Join(json.Unmarshal(m["format"], &format), json.Unmarshal(m["body"], &body)); err != nil {
		return nil, err
	}
	if format != "toml" {
		return nil, fmt.Errorf("format %.20q, want toml", format)
	}
	var doc struct {
		Version   string            `toml:"version"`
		Algorithm string            `toml:"algorithm"`
		Data      map[string]string `toml:"data"`
	}
	meta, err := toml.Decode(body, &doc)
	if err != nil {
		return nil, err
	}
	if extra := meta.Undecoded(); len(extra) > 0 {
		return nil, fmt.Errorf("member %.40q: unknown", extra[0].String())
	}
	if doc.Version != "0.1.0" {
		return nil, fmt.Errorf("version %.20q, want 0.1.0", doc.Version)
	}
	d := &initDocument{data: doc.Data}
	switch doc.Algorithm {
	case "sha256":
		sum := sha256.Sum256([]byte(body))
		d.digest = sum[:]
	case "sha384":
		sum := sha512.Sum384([]byte(body))
		d.digest = sum[:]
	case "sha512":
		sum := sha512.Sum512([]byte(body))
		d.digest = sum[:]
	default:
		return nil, fmt.Errorf("algorithm %.20q, want sha256, sha384 or sha512", doc.Algorithm)
	}
	return d, nil
}

// claims is the table as Trustee puts it into a token: the configuration files of CoCo's guest parsed, all else as text.
func (d *initDocument) claims() map[string]any {
	out := map[string]any{}
	for name, text := range d.data {
		out[name] = text
		var parsed map[string]any
		if name == "aa.toml" || name == "cdh.toml" {
			if _, err := toml.Decode(text, &parsed); err == nil {
				out[name] = parsed
			}
		}
	}
	return out
}
