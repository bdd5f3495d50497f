package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// DefaultPolicy is the ID of the attestation policy that a broker asks, as in Trustee.
const DefaultPolicy = "default_cpu"

// Policy gives a policy by name: "resource", or "attestation/ID". The error wraps fs.ErrNotExist if there is none.
func (s *Store) Policy(name string) ([]byte, error) {
	file, err := policyFile(name)
	if err != nil {
		return nil, err
	}
	return s.read(file, MaxPolicy)
}

// SetPolicy replaces a policy. What it says is the caller's to check; here it is UTF-8 of at most MaxPolicy bytes.
func (s *Store) SetPolicy(name string, b []byte) error {
	file, err := policyFile(name)
	if err != nil {
		return err
	}
	if len(b) > MaxPolicy || !utf8.Valid(b) {
		return fmt.Errorf("policy %s: want UTF-8 of at most %d bytes", name, MaxPolicy)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(file, b)
}

// Policies lists the names of all policies, sorted.
func (s *Store) Policies() ([]string, error) {
	var names []string
	for _, glob := range []string{"policies/*.rego", "policies/attestation/*.rego"} {
		files, err := fs.Glob(s.root.FS(), glob)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if name := strings.TrimSuffix(strings.TrimPrefix(f, "policies/"), ".rego"); policyName.MatchString(name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

func policyFile(name string) (string, error) {
	if len(name) > 200 || !policyName.MatchString(name) {
		return "", fmt.Errorf("policy %.80q: want resource or attestation/ID", name)
	}
	return path.Join("policies", name+".rego"), nil
}

const referenceFile = "reference-values.json"

// ReferenceValues gives all reference values by name: the JSON of each as it was set. None is an empty map.
func (s *Store) ReferenceValues() (map[string]json.RawMessage, error) {
	b, err := s.read(referenceFile, MaxReferenceValues)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]json.RawMessage{}, nil
	}
	if err != nil {
		return nil, err
	}
	values, err := evidence.Object(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", referenceFile, err)
	}
	return values, nil
}

// SetReferenceValues replaces all reference values.
func (s *Store) SetReferenceValues(values map[string]json.RawMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.setReferenceValues(values)
}

// AddReferenceValues replaces those that are named and keeps the others.
func (s *Store) AddReferenceValues(values map[string]json.RawMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.ReferenceValues()
	if err != nil {
		return err
	}
	maps.Copy(all, values)
	return s.setReferenceValues(all)
}

func (s *Store) setReferenceValues(values map[string]json.RawMessage) error {
	for name := range values {
		if name == "" || len(name) > 256 || !utf8.ValidString(name) {
			return fmt.Errorf("reference value %.80q: want a name of 1 to 256 bytes in UTF-8", name)
		}
	}
	b, err := json.Marshal(values)
	if err != nil {
		return fmt.Errorf("reference values: %w", err)
	}
	if len(b) > MaxReferenceValues {
		return fmt.Errorf("reference values: %d bytes in all, at most %d", len(b), MaxReferenceValues)
	}
	return s.write(referenceFile, b)
}
