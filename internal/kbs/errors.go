package kbs

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// A DeniedError is a broker's refusal in its own words (§1.8), and what they mean for the owner of the data. It is for
// the sealed log: cause and next step follow from what this guest sent, which is not the host's business.
type DeniedError struct {
	Broker  string // URL
	Path    string // the resource, or "" when the broker refused the request or the evidence
	Variant string // PolicyDeny, PluginInternalError, AttestationError, …; "" if the answer did not say
	Detail  string // at most 512 bytes
	Cause   string // what is wrong, as far as can be told
	Next    string // what to do about it

	at string // which request was refused
}

// The requests of RCAR.
const (
	atAuth     = "auth"
	atAttest   = "attest"
	atResource = "resource"
)

func (e *DeniedError) Error() string {
	what := "the evidence"
	switch {
	case e.Path != "":
		what = "resource " + e.Path
	case e.at == atAuth:
		what = "to begin"
	}
	variant := e.Variant
	if variant == "" {
		variant = "no reason that RCAR knows"
	}
	text := fmt.Sprintf("broker %s refused %s: %s", e.Broker, what, variant)
	if e.Detail != "" {
		text += fmt.Sprintf(" %q", e.Detail) // quoted: these bytes come from outside
	}
	return text + advice(e.Cause, e.Next)
}

func advice(cause, next string) (text string) {
	if cause != "" {
		text += "; " + cause
	}
	if next != "" {
		text += "; next: " + next
	}
	return text
}

// refusesEvidence says that the broker did not like the evidence; up to Trustee v0.9 the word for it was another.
func (e *DeniedError) refusesEvidence() bool {
	return e.Variant == "AttestationError" || e.Variant == "AttestationFailed"
}

// A BrokerError is a broker that could not be asked, or whose answer is none.
type BrokerError struct {
	Broker  string // URL
	Request string // auth, attest, resource/…
	Cause   string // what is wrong, if Err alone does not say it
	Next    string
	Err     error
}

func (e *BrokerError) Error() string {
	return fmt.Sprintf("broker %s: %s: %v%s", e.Broker, e.Request, e.Err, advice(e.Cause, e.Next))
}

func (e *BrokerError) Unwrap() error { return e.Err }

// malformed is an answer that RCAR does not have.
type malformed struct{ error }

func (m malformed) Unwrap() error { return m.error }

func failed(broker, request string, err error) error {
	e := &BrokerError{Broker: broker, Request: request, Err: err}
	e.Cause, e.Next = explainFailure(err)
	return e
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
