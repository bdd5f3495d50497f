package kbsserver

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	denied := refuse("PolicyDeny", "Access denied by policy", nil)
	policy, err := LoadPolicy(filepath.Join(s.Dir, "policy.json"))
	if err != nil {
		log.Warn("decision", "decision", "deny", "claim", "policy", "cause", err)
		return denied
	}
	if v := policy.judge(name, n.claims); !v.allow {
		log.Warn("decision", "decision", "deny", "claim", v.claim, "expected", v.expected, "actual", v.actual)
		return denied
	}
	key, err := s.readKey(name)
	if err != nil {
		log.Warn("decision", "decision", "allow", "released", false, "cause", err)
		return internal(nil)
	}
	defer clear(key)
	jwe, err := encrypt(key, n.key)
	if err != nil {
		return refuse("JweError", "JWE failed", err)
	}
	log.Info("decision", "decision", "allow", "released", true, "measurement", n.claims.Measurement.String(),
		"init_data", hex.EncodeToString(n.claims.InitData), "simulated", n.claims.Simulated)
	writeJSON(w, jwe)
	return nil
}

// readKey opens a key below the directory, whatever symbolic links are in there.
func (s *Server) readKey(name string) ([]byte, error) {
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
	switch {
	case len(key) > maxResource:
		return nil, fmt.Errorf("keys/%s: more than %d bytes", name, maxResource)
	case len(key) == 0:
		return nil, errors.New("keys/" + name + ": empty")
	}
	return key, nil
}
