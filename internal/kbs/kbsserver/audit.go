package kbsserver

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// A Decision is one line of the audit log: whether evidence was taken, or a resource released, and if not, which claim
// failed against what.
type Decision struct {
	Time time.Time `json:"time"`
	// Session tells the guest: the first 8 bytes of the SHA-256 of its session id, in hex. The id itself would let a
	// reader of the log speak as the guest.
	Session  string        `json:"session"`
	TEE      evidence.Kind `json:"tee"`
	Resource string        `json:"resource,omitempty"` // "" when it is about evidence
	Decision string        `json:"decision"`           // Accepted or Refused evidence; Allow or Deny of a resource
	Claim    string        `json:"claim,omitempty"`
	Expected string        `json:"expected,omitempty"`
	Actual   string        `json:"actual,omitempty"`
	Cause    string        `json:"cause,omitempty"` // of an Allow: why the resource was not released all the same
}

// What a Decision can be.
const (
	Accepted = "accepted"
	Refused  = "refused"
	Allow    = "allow"
	Deny     = "deny"
)

const (
	maxDecision = 64 << 10 // of a line
	maxText     = 3 << 10  // of a text in it, before JSON may make six bytes of one
)

// ParseDecision reads one line of an audit log, at most 64 KiB, without its newline or with it.
func ParseDecision(line []byte) (Decision, error) {
	var d Decision
	if len(line) > maxDecision {
		return d, fmt.Errorf("audit line: %d bytes, at most %d", len(line), maxDecision)
	}
	if _, err := evidence.ObjectOf(line, []string{"time", "session", "tee", "decision"},
		[]string{"resource", "claim", "expected", "actual", "cause"}); err != nil {
		return d, fmt.Errorf("audit line: %w", err)
	}
	if err := json.Unmarshal(line, &d); err != nil {
		return Decision{}, fmt.Errorf("audit line: %w", err)
	}
	known := []string{Accepted, Refused}
	if d.Resource != "" {
		known = []string{Allow, Deny}
	}
	if !slices.Contains(known, d.Decision) {
		return Decision{}, fmt.Errorf("audit line: decision %.20q, want one of %q", d.Decision, known)
	}
	return d, nil
}

// audit writes the line of a decision. A log that cannot be written stops nothing, but says so.
func (s *Server) audit(n *session, d Decision) {
	if s.Audit == nil {
		return
	}
	d.Time, d.TEE = s.Now().UTC(), n.kind
	if n.id != "" {
		sum := sha256.Sum256([]byte(n.id))
		d.Session = hex.EncodeToString(sum[:8])
	}
	for _, text := range []*string{&d.Expected, &d.Actual, &d.Cause} {
		if len(*text) > maxText {
			*text = (*text)[:maxText] + "…"
		}
	}
	var line bytes.Buffer
	e := json.NewEncoder(&line)
	e.SetEscapeHTML(false)
	err := e.Encode(d)
	if err == nil {
		s.auditMu.Lock()
		defer s.auditMu.Unlock()
		_, err = s.Audit.Write(line.Bytes())
	}
	if err != nil {
		s.Log.Error("audit log", "cause", err)
	}
}

// auditRefusal is the line of evidence that was not taken; of several claims that failed the first is named.
func (s *Server) auditRefusal(n *session, cause error) {
	d := Decision{Decision: Refused, Cause: cause.Error()}
	if c, ok := errors.AsType[*verify.ClaimError](cause); ok {
		d.Claim, d.Expected, d.Actual = c.Claim, c.Want, c.Got
	}
	s.audit(n, d)
}
