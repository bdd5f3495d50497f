package kbs

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A DeniedError is a broker's refusal, in the broker's own words (§1.8).
type DeniedError struct {
	Broker  string // URL
	Path    string // the resource, or "" when the broker refused the evidence
	Variant string // PolicyDeny, PluginInternalError, AttestationError, …; "" if the answer did not say
	Detail  string // at most 512 bytes
}

func (e *DeniedError) Error() string {
	what := "the evidence"
	if e.Path != "" {
		what = "resource " + e.Path
	}
	variant := e.Variant
	if variant == "" {
		variant = "no reason that RCAR knows"
	}
	text := fmt.Sprintf("broker %s refused %s: %s", e.Broker, what, variant)
	if e.Detail != "" {
		text += fmt.Sprintf(" %q", e.Detail) // quoted: these bytes come from outside
	}
	if hint := e.hint(); hint != "" {
		text += "; " + hint
	}
	return text
}

// hint says what the owner of the broker has to look at.
func (e *DeniedError) hint() string {
	if strings.Contains(e.Detail, "Protocol Version Mismatch") {
		return "this build speaks protocol " + protocol + ", that is Trustee v0.14 to v0.21"
	}
	switch e.Variant {
	case "PolicyDeny":
		return "the policy of the resource refuses this measurement or manifest"
	case "PluginInternalError":
		return "the resource is not there, or the broker cannot read it"
	case "AttestationError":
		return "the broker does not accept the evidence: its log says which check failed (roots, TCB, host data, report data)"
	case "TokenNotFound", "TokenVerifierError":
		return "the broker lost the session twice: is there more than one instance behind this address?"
	case "PluginNotFound", "InvalidRequestPath":
		return "this address is not a key broker with the resource plugin"
	}
	return ""
}

const (
	errorPrefix = "https://github.com/confidential-containers/kbs/errors/"
	maxDetail   = 512
)

// denied reads ErrorInformation. Whatever the body is, the answer is a refusal.
func denied(broker, path string, body []byte) *DeniedError {
	e := &DeniedError{Broker: broker, Path: path}
	m, err := evidence.Object(body)
	if err != nil {
		return e
	}
	var kind string
	if json.Unmarshal(m["type"], &kind) == nil && strings.HasPrefix(kind, errorPrefix) {
		if v := strings.TrimPrefix(kind, errorPrefix); len(v) <= 64 && isWord(v) {
			e.Variant = v
		}
	}
	if json.Unmarshal(m["detail"], &e.Detail) != nil {
		e.Detail = ""
	}
	if len(e.Detail) > maxDetail {
		e.Detail = strings.ToValidUTF8(e.Detail[:maxDetail], "")
	}
	return e
}

func isWord(s string) bool {
	for _, c := range s {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
			return false
		}
	}
	return true
}

// KeyHint says what may be wrong with a key that does not have 32 bytes, for the error of whoever needed one. It
// tells the form of the bytes, never their value; "" if it has no idea.
func KeyHint(key []byte) string {
	text := strings.TrimSpace(string(key))
	form := ""
	if b, err := hex.DecodeString(text); err == nil && len(b) == 32 {
		form = "hexadecimal text"
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(text); err == nil && len(b) == 32 {
			form = "base64 text"
		}
	}
	switch {
	case form != "":
		return fmt.Sprintf("it looks like the %s of 32 bytes: put the raw bytes into the broker", form)
	case len(key) == 33 && key[32] == '\n':
		return "it looks like 32 bytes and a line feed: put the raw bytes into the broker"
	}
	return ""
}
