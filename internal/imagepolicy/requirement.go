package imagepolicy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// texts reads an object all of whose members are strings, except those named.
func texts(raw json.RawMessage, except ...string) (map[string]string, map[string]json.RawMessage, error) {
	m, err := evidence.Object(raw)
	if err != nil {
		return nil, nil, err
	}
	all := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if slices.Contains(except, name) {
			continue
		}
		var s *string
		if err := json.Unmarshal(m[name], &s); err != nil || s == nil {
			return nil, nil, fmt.Errorf("%.40q: is not a string", name)
		}
		all[name] = *s
	}
	return all, m, nil
}

// only refuses members that the kind does not have.
func only(m map[string]string, kind string, names ...string) error {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if name != "type" && !slices.Contains(names, name) {
			return fmt.Errorf("%s: %.40q is not supported", kind, name)
		}
	}
	return nil
}

func requirement(raw json.RawMessage) (Requirement, error) {
	m, all, err := texts(raw, "signedIdentity")
	if err != nil {
		return Requirement{}, err
	}
	q := Requirement{Type: m["type"], KeyType: m["keyType"], KeyPath: m["keyPath"]}
	identity := all["signedIdentity"]
	switch q.Type {
	case InsecureAcceptAnything, Reject:
		err = only(m, q.Type)
		if err == nil && identity != nil {
			err = fmt.Errorf(`%s: "signedIdentity" is not supported`, q.Type)
		}
		return q, err
	case SignedBy:
		if err := only(m, q.Type, "keyType", "keyPath", "keyData"); err != nil {
			return q, err
		}
		if q.KeyType != "GPGKeys" {
			return q, fmt.Errorf("signedBy: keyType is %.40q, want GPGKeys", q.KeyType)
		}
	case SigstoreSigned:
		if err := only(m, q.Type, "keyPath", "keyData"); err != nil {
			return q, err
		}
	case "":
		return q, errors.New("type is missing")
	default:
		return q, fmt.Errorf("type %.40q is unknown", q.Type)
	}
	if (m["keyPath"] == "") == (m["keyData"] == "") {
		return q, fmt.Errorf("%s: want one of keyPath and keyData", q.Type)
	}
	if data := m["keyData"]; data != "" {
		if q.KeyData, err = keyData(q.Type, data); err != nil {
			return q, fmt.Errorf("%s: %w", q.Type, err)
		}
	}
	if identity != nil {
		if q.Identity, err = readIdentity(identity); err != nil {
			return q, fmt.Errorf("signedIdentity: %w", err)
		}
		if t := q.Identity.Type; q.Type == SigstoreSigned && t != "matchRepository" && t != "exactRepository" {
			// A cosign signature names a repository, never a tag.
			return q, fmt.Errorf("signedIdentity: %s: sigstoreSigned takes matchRepository and exactRepository alone", t)
		}
	}
	return q, nil
}

// keyData reads a key. For cosign image-rs takes the text of the PEM, and containers/image its base64: both are in use.
func keyData(kind, s string) ([]byte, error) {
	b := []byte(s)
	if kind == SignedBy || !bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		var err error
		if b, err = base64.StdEncoding.DecodeString(s); err != nil || len(b) == 0 {
			return nil, errors.New("keyData is not standard base64")
		}
	}
	if kind == SigstoreSigned {
		if block, _ := pem.Decode(b); block == nil || block.Type != "PUBLIC KEY" {
			return nil, errors.New("keyData is not the PEM of a PUBLIC KEY")
		}
	}
	return b, nil
}

// identityMembers are what the kinds of signedIdentity have, all of it required.
var identityMembers = map[string][]string{
	"matchExact": nil, "matchRepoDigestOrExact": nil, "matchRepository": nil,
	"exactReference": {"dockerReference"}, "exactRepository": {"dockerRepository"}, "remapIdentity": {"prefix", "signedPrefix"},
}

func readIdentity(raw json.RawMessage) (*Identity, error) {
	m, _, err := texts(raw)
	if err != nil {
		return nil, err
	}
	kind := m["type"]
	members, known := identityMembers[kind]
	if !known {
		return nil, fmt.Errorf("type %.40q is unknown", kind)
	}
	if err := only(m, kind, members...); err != nil {
		return nil, err
	}
	for _, name := range members {
		if m[name] == "" {
			return nil, fmt.Errorf("%s: %s is missing", kind, name)
		}
	}
	return &Identity{Type: kind, Reference: m["dockerReference"], Repository: m["dockerRepository"],
		Prefix: m["prefix"], SignedPrefix: m["signedPrefix"]}, nil
}
