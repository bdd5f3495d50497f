package store

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// AdminOptions are who may administer a Store, and what is asked before it takes a policy.
type AdminOptions struct {
	Key   ed25519.PublicKey // signs the tokens; without one every request is refused
	Roles []string          // that a token may have; nil: admin
	// CheckPolicy refuses a resource policy that could not be used; nil takes any.
	CheckPolicy func(src []byte) error
	// CheckAttestation does the same for an attestation policy.
	CheckAttestation func(src []byte) error
	Changed          func()           // called after every change, before the answer; nil: nothing
	Now              func() time.Time // nil: the clock
	Log              *slog.Logger     // nil: slog.Default
}

// An Admin is the http.Handler of the administrator's part of a broker (§1.1), below /kbs/v0/.
type Admin struct {
	AdminOptions
	store *Store
}

// NewAdmin makes the handler for a Store.
func NewAdmin(s *Store, o AdminOptions) *Admin {
	if o.Roles == nil {
		o.Roles = []string{"admin"}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Admin{o, s}
}

const prefix = "/kbs/v0/"

// Handles says whether a request is for the administrator: all others are a guest's, or nobody's.
func Handles(r *http.Request) bool {
	path, ok := strings.CutPrefix(r.URL.Path, prefix)
	plugin, _, _ := strings.Cut(path, "/")
	switch plugin {
	case "resource":
		return ok && r.Method != http.MethodGet
	case "resource-policy", "attestation-policy", "reference-value":
		return ok
	}
	return false
}

// A problem is what a request is answered with: an error of Trustee's by name (§1.8), in Trustee's words, and the cause.
type problem struct {
	variant, says string
	err           error
}

func (p *problem) String() string { return p.says + ": " + p.err.Error() }

// ServeHTTP answers requests for which Handles is true, and every other with InvalidRequestPath. A token is looked at
// before anything else of a request.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, _ := strings.CutPrefix(r.URL.Path, prefix)
	plugin, rest, _ := strings.Cut(path, "/")
	log := a.Log.With("request", r.Method+" "+r.URL.EscapedPath(), "remote", r.RemoteAddr)
	if !Handles(r) {
		a.refuse(w, log, &problem{"InvalidRequestPath", "Request path is invalid", errors.New("not an administrator's")})
		return
	}
	role, err := a.authorize(r)
	if err != nil {
		a.refuse(w, log, &problem{"AdminAuthAccess", "admin access denied for endpoint " + plugin, err})
		return
	}
	if p := a.serve(w, r, plugin, rest); p != nil {
		a.refuse(w, log, p)
		return
	}
	log.Info("administered", "role", role)
}

func (a *Admin) authorize(r *http.Request) (role string, err error) {
	if len(a.Key) != ed25519.PublicKeySize {
		return "", errors.New("this broker has no administrator; start it with --admin-key")
	}
	token, err := bearer(r)
	if err != nil {
		return "", err
	}
	return verifyToken(token, a.Key, a.Roles, a.Now())
}

func (a *Admin) serve(w http.ResponseWriter, r *http.Request, plugin, rest string) *problem {
	switch {
	case plugin == "resource" && r.Method == http.MethodPost:
		return a.putResource(w, r, rest)
	case plugin == "resource" && r.Method == http.MethodDelete:
		return a.deleteResource(w, rest)
	case plugin == "resource-policy" && rest == "" && r.Method == http.MethodPost:
		return a.setResourcePolicy(w, r)
	case plugin == "resource-policy" && rest == "" && r.Method == http.MethodGet:
		return a.listPolicies(w)
	case plugin == "attestation-policy" && rest == "" && r.Method == http.MethodPost:
		return a.setAttestationPolicy(w, r)
	case plugin == "reference-value" && rest == "" && r.Method == http.MethodPost:
		return a.addReferenceValues(w, r)
	case plugin == "reference-value" && r.Method == http.MethodGet:
		return a.referenceValue(w, rest)
	}
	return &problem{"InvalidRequestPath", "Request path is invalid", fmt.Errorf("no %s %s", r.Method, plugin)}
}

func (a *Admin) putResource(w http.ResponseWriter, r *http.Request, path string) *problem {
	b, err := body(w, r, MaxResource)
	defer clear(b)
	if err == nil {
		err = a.store.Put(path, b)
	}
	if err != nil {
		return &problem{"PluginInternalError", "Plugin internal error", err}
	}
	return a.done(w, "text/xml")
}

func (a *Admin) deleteResource(w http.ResponseWriter, path string) *problem {
	if err := a.store.Delete(path); err != nil {
		return &problem{"PluginInternalError", "Plugin internal error", err}
	}
	return a.done(w, "text/xml")
}

func (a *Admin) setResourcePolicy(w http.ResponseWriter, r *http.Request) *problem {
	_, src, err := policyBody(w, r, nil)
	if err != nil {
		return &problem{"ParsePolicyError", "Failed to parse policy", err}
	}
	if a.CheckPolicy != nil {
		if err := a.CheckPolicy(src); err != nil {
			return &problem{"PolicyEngineError", "Policy engine error", err}
		}
	}
	if err := a.store.SetPolicy("resource", src); err != nil {
		return &problem{"PolicyEngineError", "Policy engine error", err}
	}
	return a.done(w, "")
}

// setAttestationPolicy keeps the policy. The type is not looked at, as in Trustee.
func (a *Admin) setAttestationPolicy(w http.ResponseWriter, r *http.Request) *problem {
	id, src, err := policyBody(w, r, []string{"policy_id"})
	if err == nil && a.CheckAttestation != nil {
		err = a.CheckAttestation(src)
	}
	if err == nil {
		err = a.store.SetPolicy("attestation/"+id, src)
	}
	if err != nil {
		return &problem{"AttestationError", "Attestation error", err}
	}
	if id != DefaultPolicy {
		a.Log.Warn("attestation policy kept but not asked: this broker asks one alone", "policy_id", id, "asked", DefaultPolicy)
	}
	return a.done(w, "")
}

// policyBody reads {"policy": …}, base64url without padding: the trap of §1.1.
func policyBody(w http.ResponseWriter, r *http.Request, also []string) (id string, src []byte, err error) {
	b, err := body(w, r, 2*MaxPolicy)
	if err != nil {
		return "", nil, err
	}
	m, err := evidence.ObjectOf(b, append([]string{"policy"}, also...), []string{"type", "policy_id"})
	if err != nil {
		return "", nil, err
	}
	var text string
	if err := json.Unmarshal(m["policy"], &text); err != nil {
		return "", nil, fmt.Errorf("policy: %w", err)
	}
	if raw := m["policy_id"]; raw != nil {
		if err := json.Unmarshal(raw, &id); err != nil {
			return "", nil, fmt.Errorf("policy_id: %w", err)
		}
	}
	if src, err = base64.RawURLEncoding.Strict().DecodeString(text); err != nil {
		return "", nil, fmt.Errorf("policy: want base64url without padding: %w", err)
	}
	if !utf8.Valid(src) {
		return "", nil, errors.New("policy: not UTF-8")
	}
	return id, src, nil
}

// listPolicies gives the names of the policies there are. Trustee's list names its one policy resource-policy.
func (a *Admin) listPolicies(w http.ResponseWriter) *problem {
	list := []string{}
	switch _, err := a.store.Policy("resource"); {
	case err == nil:
		list = append(list, "resource-policy")
	case !errors.Is(err, fs.ErrNotExist):
		return &problem{"PolicyEngineError", "Policy engine error", err}
	}
	return reply(w, list)
}

// addReferenceValues takes a message of the reference value provider (RVPS), of the one type that is not signed.
func (a *Admin) addReferenceValues(w http.ResponseWriter, r *http.Request) *problem {
	values, err := rvpsMessage(w, r)
	if err == nil {
		err = a.store.AddReferenceValues(values)
	}
	if err != nil {
		return &problem{"RvpsError", "Failed to register reference value", err}
	}
	return a.done(w, "application/json")
}

func rvpsMessage(w http.ResponseWriter, r *http.Request) (map[string]json.RawMessage, error) {
	b, err := body(w, r, 2*MaxReferenceValues)
	if err != nil {
		return nil, err
	}
	m, err := evidence.ObjectOf(b, []string{"type", "payload"}, []string{"version"})
	if err != nil {
		return nil, err
	}
	version, kind, payload := "0.1.0", "", ""
	if raw := m["version"]; raw != nil {
		err = json.Unmarshal(raw, &version)
	}
	if err := errors.Join(err, json.Unmarshal(m["type"], &kind), json.Unmarshal(m["payload"], &payload)); err != nil {
		return nil, err
	}
	if version != "0.1.0" {
		return nil, fmt.Errorf("version %.20q, want 0.1.0", version)
	}
	if kind != "sample" {
		return nil, fmt.Errorf("type %.20q: this broker takes sample alone", kind)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(payload)
	if err != nil {
		return nil, fmt.Errorf("payload: want base64 with padding: %w", err)
	}
	return evidence.Object(raw)
}

func (a *Admin) referenceValue(w http.ResponseWriter, name string) *problem {
	values, err := a.store.ReferenceValues()
	if err != nil {
		return &problem{"RvpsError", "Failed to get reference_values", err}
	}
	if v, ok := values[name]; ok {
		return reply(w, v)
	}
	return reply(w, nil) // null, as in Trustee
}

func (a *Admin) done(w http.ResponseWriter, contentType string) *problem {
	if a.Changed != nil {
		a.Changed()
	}
	if contentType == "" {
		w.Header()["Content-Type"] = nil
	} else {
		w.Header().Set("Content-Type", contentType)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func reply(w http.ResponseWriter, v any) *problem {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
	return nil
}

func (a *Admin) refuse(w http.ResponseWriter, log *slog.Logger, p *problem) {
	log.Warn("administration refused", "error", p.variant, "cause", p)
	status := http.StatusUnauthorized
	if p.variant == "InvalidRequestPath" {
		status = http.StatusNotFound
	}
	b, err := json.Marshal(map[string]string{
		"type": "https://github.com/confidential-containers/kbs/errors/" + p.variant, "detail": p.String()})
	if err != nil {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // as the rest of the broker
	w.WriteHeader(status)
	w.Write(b)
}

// body reads at most limit bytes. What it gives may be part of the body if there is an error.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return b, fmt.Errorf("request body: %w", err)
	}
	return b, nil
}
