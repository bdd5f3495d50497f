package kbsserver

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A Policy says who gets what: resource path, each of its three segments a glob (path.Match), to a rule. A resource
// is released if some rule that matches it allows the guest. No rule, no release.
type Policy map[string]Rule

// A Rule allows a guest whose launch measurement and whose register for initdata are both listed, and which meets all
// else that the rule names. An empty list allows none; a member that is left out asks nothing, and an
// optional one that is there lists something. Evidence that lacks what a rule asks about is refused. For TDX a rule must
// name RTMR 1, and for the Azure kinds PCR 4: their measurement is that of what starts the image.
type Rule struct {
	Measurements []evidence.Measurement `json:"measurements"`
	// InitData lists digests of initdata documents, which wrap manifests: what `ampoule manifest digest` prints.
	InitData []Digest `json:"init_data"`

	TEE    []evidence.Kind                `json:"tee,omitempty"`     // kinds of evidence
	MinTCB *MinTCB                        `json:"min_tcb,omitempty"` // SNP, on Azure too
	MRSeam []evidence.Measurement         `json:"mr_seam,omitempty"` // TDX module
	RTMR   map[int][]evidence.Measurement `json:"rtmr,omitempty"`    // TDX, 0 to 3
	PCR    map[int][]Digest               `json:"pcr,omitempty"`     // Azure's vTPM, 0 to 23, SHA-256 bank
	// AllowSimulated: false refuses simulated guests also where the broker takes their evidence. Sample evidence, which
	// has neither measurement nor register, is allowed by a rule that lists it in TEE and says true here, and by no other.
	AllowSimulated *bool `json:"allow_simulated,omitempty"`
}

// MinTCB are the lowest security patch levels that a rule takes, each compared for itself. FMC is Turin's alone; it is 0
// on others.
type MinTCB struct {
	Bootloader uint8 `json:"bootloader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
	FMC        uint8 `json:"fmc"`
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

// ParsePolicy is strict: every rule has measurements and init_data, and no member that Rule has not. All problems are
// reported together.
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
		r, errs := parseRule(rules[glob])
		for _, err := range append([]error{checkGlob(glob)}, errs...) {
			if err != nil {
				problems = append(problems, fmt.Errorf("%q: %w", glob, err))
			}
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
