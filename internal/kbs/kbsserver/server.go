// Package kbsserver is a small key broker for development, tests and one machine: RCAR 0.4.0 for
// SNP and TDX guests.
//
// It speaks the wire of Trustee's KBS (wire/SPEC.md §1, to which section numbers refer), takes keys from a directory
// and asks a policy for each: which launch measurements, started with which manifest. What is not allowed is denied.
// What a guest is told about a refusal is as little as Trustee tells; the cause goes to the log.
package kbsserver

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/ampoule-vm/ampoule/internal/verify"
)

// Config is what a Server is made of.
type Config struct {
	// Dir holds keys/<repository>/<type>/<tag>, each file the raw bytes of one resource (at most 64 KiB), and
	// policy.json. Both are read again for every request.
	Dir string
	// Roots replace AMD's: with a test root only simulated guests are accepted.
	Roots []verify.Root
	Intel []*x509.Certificate // replace the Intel SGX Root CA: with a test root only simulated TDX guests are accepted
	// AllowSample accepts evidence of CoCo's sample attester, which anybody can make up.
	AllowSample bool
	Now         func() time.Time // nil: the clock
	Log         *slog.Logger     // nil: slog.Default
}

// A Server is the http.Handler of a key broker.
type Server struct {
	Config
	token    *ecdsa.PrivateKey
	sessions sessions
}

// Bounds of requests. An initdata document may carry a manifest of 1 MiB, escaped twice.
const (
	maxAuth     = 64 << 10
	maxAttest   = 8 << 20
	maxResource = 64 << 10
)

const prefix = "/kbs/v0/"

var resourcePath = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){2}$`)

// New checks the directory. A policy that is not there denies everything; one that cannot be read is an error.
func New(c Config) (*Server, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if _, err := os.ReadDir(filepath.Join(c.Dir, "keys")); err != nil {
		return nil, fmt.Errorf("keys belong into keys/<repository>/<type>/<tag> of the broker's directory: %w", err)
	}
	if _, err := LoadPolicy(filepath.Join(c.Dir, "policy.json")); errors.Is(err, fs.ErrNotExist) {
		c.Log.Warn("no policy: every resource is denied", "file", filepath.Join(c.Dir, "policy.json"))
	} else if err != nil {
		return nil, err
	}
	for _, r := range c.Roots {
		if r.Simulated() {
			c.Log.Warn("test root given: simulated guests are accepted", "product", r.Line())
		}
	}
	if c.AllowSample {
		c.Log.Warn("sample evidence is accepted: it proves nothing")
	}
	if c.Intel != nil {
		c.Log.Warn("test root given: simulated guests are accepted", "product", "TDX")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Server{Config: c, token: key, sessions: sessions{byID: map[string]*session{}}}, nil
}

// Serve answers on l until ctx ends, then lets running requests end for up to five seconds.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		WriteTimeout:      time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn),
	}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		done <- errors.Join(h.Shutdown(stop), h.Close())
	}()
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done
}

// ServeHTTP routes by hand: http.ServeMux would answer odd paths with a redirect, which no RCAR client follows.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, api := trim(r.URL.Path, prefix)
	name, resource := trim(path, "resource/")
	var ref *refusal
	switch {
	case r.URL.Path == "/healthz" && r.Method == http.MethodGet:
		io.WriteString(w, "ok\n")
	case api && path == "auth" && r.Method == http.MethodPost:
		ref = s.auth(w, r)
	case api && path == "attest" && r.Method == http.MethodPost:
		ref = s.attest(w, r)
	case api && resource && r.Method == http.MethodGet:
		ref = s.resource(w, r, name)
	case api && resource:
		ref = refuse("AdminAuthAccess", "admin access denied", errors.New("this broker is administered through its directory"))
	case api:
		ref = refuse("PluginNotFound", "Plugin not found", errors.New("unknown path"))
	default:
		ref = refuse("InvalidRequestPath", "Request path is invalid", errors.New("unknown path"))
	}
	if ref == nil {
		return
	}
	if ref.cause != nil {
		log := s.Log.With("request", r.Method+" "+r.URL.EscapedPath(), "remote", r.RemoteAddr, "error", ref.variant)
		if c, ok := errors.AsType[*verify.ClaimError](ref.cause); ok {
			log = log.With("claim", c.Claim, "expected", c.Want, "actual", c.Got)
		}
		log.Warn("refused", "cause", ref.cause)
	}
	ref.write(w)
}

func trim(path, prefix string) (string, bool) {
	if len(path) > len(prefix) && path[:len(prefix)] == prefix {
		return path[len(prefix):], true
	}
	return "", false
}

// A refusal is an error as RCAR spells it (§1.8). The cause is for the log only; nil if it is there already.
type refusal struct {
	variant, detail string
	cause           error
}

func refuse(variant, detail string, cause error) *refusal { return &refusal{variant, detail, cause} }

func (e *refusal) write(w http.ResponseWriter) {
	status := http.StatusUnauthorized
	if e.variant == "InvalidRequestPath" || e.variant == "PluginNotFound" {
		status = http.StatusNotFound
	}
	body, err := json.Marshal(struct {
		Type   string `json:"type"`
		Detail string `json:"detail"`
	}{"https://github.com/confidential-containers/kbs/errors/" + e.variant, e.detail})
	if err != nil {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8") // Trustee does not label it as JSON either
	w.WriteHeader(status)
	w.Write(body)
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, fmt.Errorf("request body: %w", err)
	}
	return b, nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
