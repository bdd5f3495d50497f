package kbsserver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
)

// resource releases a key: GET resource/… (§1.7). The policy is asked before the directory, so that a guest that may
// not have a key does not learn whether it exists.
func (s *Server) resource(w http.ResponseWriter, r *http.Request, name string) *refusal {
	n, ref := s.authorized(r)
	if ref != nil {
		return ref
	}
	internal := func(err error) *refusal { return refuse("PluginInternalError", "Plugin internal error", err) }
	if len(name) > 512 || !resourcePath.MatchString(name) {
		return internal(fmt.Errorf("resource %.80q: want repository/type/tag", name))
	}
	log := s.Log.With("resource", name, "remote", r.RemoteAddr)
	if v := s.decide(r.Context(), name, n); !v.allow {
		args := []any{"decision", "deny", "claim", v.claim}
		if v.cause != nil {
			args = append(args, "cause", v.cause)
		} else {
			args = append(args, "expected", v.expected, "actual", v.actual)
		}
		log.Warn("decision", args...)
		d := Decision{Resource: name, Decision: Deny, Claim: v.claim, Expected: v.expected, Actual: v.actual}
		if v.cause != nil {
			d.Cause = v.cause.Error()
		}
		s.audit(n, d)
		return refuse("PolicyDeny", "Access denied by policy", nil)
	}
	key, err := s.readKey(name)
	if err != nil {
		log.Warn("decision", "decision", "allow", "released", false, "cause", err)
		s.audit(n, Decision{Resource: name, Decision: Allow, Cause: "not released: " + err.Error()})
		return internal(nil)
	}
	defer clear(key)
	jwe, err := encrypt(key, n.key, s.gen.oldJWE)
	if err != nil {
		return refuse("JweError", "JWE failed", err)
	}
	s.audit(n, Decision{Resource: name, Decision: Allow})
	log.Info("decision", "decision", "allow", "released", true, "measurement", n.claims.Measurement.String(),
		"init_data", hex.EncodeToString(n.claims.InitData), "simulated", n.claims.Simulated)
	writeJSON(w, jwe)
	return nil
}

// policy is policy.json; an error that wraps fs.ErrNotExist: there is none.
func (c *Config) policy() (Policy, error) {
	if c.Dir == "" {
		return nil, fs.ErrNotExist
	}
	return LoadPolicy(filepath.Join(c.Dir, "policy.json"))
}

// decide asks policy.json and the other policy, whichever are there; both must allow. Whatever is unclear denies.
func (s *Server) decide(ctx context.Context, name string, n *session) verdict {
	policy, err := s.policy()
	judged := err == nil
	switch {
	case judged:
		if v := policy.judge(name, &n.claims); !v.allow {
			return v
		}
	case s.ResourcePolicy == nil || !errors.Is(err, fs.ErrNotExist):
		return verdict{claim: "policy", cause: err}
	}
	if s.ResourcePolicy == nil {
		return verdict{allow: true}
	}
	allow, why, err := s.ResourcePolicy(ctx, name, n.tokenClaims)
	switch {
	case judged && errors.Is(err, fs.ErrNotExist):
		return verdict{allow: true}
	case err != nil:
		return verdict{claim: "resource policy", cause: err}
	}
	return verdict{allow: allow, claim: "resource policy", expected: "allow", actual: why}
}

// readKey gets a resource, from the directory if nothing else holds them.
func (s *Server) readKey(name string) ([]byte, error) {
	if s.Resources == nil {
		return s.readFile(name)
	}
	key, err := s.Resources.Get(name)
	if err != nil {
		return nil, err
	}
	return key, checkSize(name, key)
}

func checkSize(name string, key []byte) error {
	switch {
	case len(key) > maxResource:
		return fmt.Errorf("resource %s: more than %d bytes", name, maxResource)
	case len(key) == 0:
		return fmt.Errorf("resource %s: empty", name)
	}
	return nil
}

// readFile opens a key below the directory, whatever symbolic links are in there.
func (s *Server) readFile(name string) ([]byte, error) {
	root, err := os.OpenRoot(filepath.Join(s.Dir, "keys"))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if i, err := root.Stat(name); err != nil {
		return nil, err
	} else if !i.Mode().IsRegular() {
		return nil, fmt.Errorf("keys/%s: not a file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	key, err := io.ReadAll(io.LimitReader(f, maxResource+1))
	if err != nil {
		return nil, err
	}
	return key, checkSize(name, key)
}
