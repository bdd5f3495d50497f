package kbsserver

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// A Policy says who gets what: resource path, each of its three segments a glob (path.Match), to a rule. A resource
// is released if some rule that matches it allows the guest. No rule, no release.
type Policy map[string]Rule

// A Rule allows a guest whose launch measurement and whose HOST_DATA are both listed. An empty list allows none.
type Rule struct {
	Measurements []evidence.Measurement `json:"measurements"`
	// InitData lists digests of initdata documents, which wrap manifests: what `ampoule manifest digest` prints.
	InitData []Digest `json:"init_data"`
}

// A Digest is 32 bytes; its text form is 64 hex digits.
type Digest [32]byte

func (d Digest) String() string               { return hex.EncodeToString(d[:]) }
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *Digest) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("digest %.80q: %w", text, err)
	}
	if len(b) != len(d) {
		return fmt.Errorf("digest %.80q: %d bytes, want %d", text, len(b), len(d))
	}
	*d = Digest(b)
	return nil
}

const maxPolicy = 1 << 20

// LoadPolicy reads a policy file, at most 1 MiB.
func LoadPolicy(file string) (Policy, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p, err := ParsePolicy(b)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", file, err)
	}
	return p, nil
}

// ParsePolicy is strict: every rule has both lists, and nothing else. All problems are reported together.
func ParsePolicy(b []byte) (Policy, error) {
	if len(b) > maxPolicy {
		return nil, fmt.Errorf("%d bytes, at most %d", len(b), maxPolicy)
	}
	rules, err := evidence.Object(b)
	if err != nil {
		return nil, err
	}
	p := Policy{}
	var problems []error
	for _, glob := range slices.Sorted(maps.Keys(rules)) {
		var r Rule
		if err := errors.Join(checkGlob(glob), parseRule(rules[glob], &r)); err != nil {
			problems = append(problems, fmt.Errorf("%q: %w", glob, err))
		}
		p[glob] = r
	}
	return p, errors.Join(problems...)
}

func checkGlob(glob string) error {
	segments := strings.Split(glob, "/")
	if len(segments) != 3 || slices.Contains(segments, "") {
		return errors.New("want repository/type/tag")
	}
	if _, err := path.Match(glob, ""); err != nil {
		return err
	}
	return nil
}

func parseRule(raw json.RawMessage, r *Rule) error {
	m, err := evidence.ObjectOf(raw, []string{"measurements", "init_data"}, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(m["measurements"], &r.Measurements); err != nil {
		return fmt.Errorf("measurements: %w", err)
	}
	if err := json.Unmarshal(m["init_data"], &r.InitData); err != nil {
		return fmt.Errorf("init_data: %w", err)
	}
	return nil
}

// A verdict is what a policy says, and for a denial which claim failed against what.
type verdict struct {
	allow                   bool
	claim, expected, actual string
}

func (p Policy) judge(resource string, c verify.Claims) verdict {
	var measurements, initData []string
	matched, measured := false, false
	for _, glob := range slices.Sorted(maps.Keys(p)) {
		if ok, err := path.Match(glob, resource); err != nil || !ok {
			continue
		}
		matched = true
		r := p[glob]
		for _, m := range r.Measurements {
			measurements = append(measurements, m.String())
		}
		if !slices.Contains(r.Measurements, c.Measurement) {
			continue
		}
		measured = true
		for _, d := range r.InitData {
			initData = append(initData, d.String())
		}
		if slices.ContainsFunc(r.InitData, func(d Digest) bool { return c.Holds(d) }) {
			return verdict{allow: true}
		}
	}
	switch {
	case !matched:
		return verdict{claim: "resource", expected: "a rule that matches", actual: resource}
	case !measured:
		return verdict{claim: "measurement", expected: strings.Join(measurements, " "), actual: c.Measurement.String()}
	}
	return verdict{claim: "init_data", expected: strings.Join(initData, " "), actual: hex.EncodeToString(c.InitData)}
}
