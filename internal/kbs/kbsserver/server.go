// Package kbsserver is a small key broker for development, tests and one machine: RCAR 0.4.0, 0.2.0 and 0.1.x.
//
// It speaks the wire of Trustee's KBS (wire/SPEC.md §1, to which section numbers refer), takes keys from a directory
// and asks a policy for each: which launch measurements, started with which manifest. What is not allowed is denied.
// What a guest is told about a refusal is as little as Trustee tells; the cause goes to the log, and to an audit log
// that a program can read.
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
	"strings"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/verify"
)

// Config is what a Server is made of.
type Config struct {
	// Dir holds keys/<repository>/<type>/<tag>, each file the raw bytes of one resource (at most 64 KiB), and
	// policy.json. Both are read again for every request. "" where Resources and ResourcePolicy stand in for them.
	Dir string
	// Roots replace AMD's: with a test root only simulated guests are accepted.
	Roots []verify.Root
	Intel []*x509.Certificate // replace the Intel SGX Root CA: with a test root only simulated TDX guests are accepted
	// VCEKs hold certificates for hosts that give their guests none; nothing is fetched.
	VCEKs *verify.CertStore
	// Collateral is asked for what Intel says of platforms at each TDX attestation, since it changes every month; its error
	// refuses the guest. nil: patch levels are not judged, nor revocations seen.
	Collateral func() (*verify.Collateral, error)
	TCBStatus  []string // statuses of Intel's that are taken besides UpToDate
	// AllowSample accepts evidence of CoCo's sample attester, which anybody can make up.
	AllowSample bool
	// Protocol is the one version of RCAR that is spoken: 0.4.0 (also ""), 0.2.0, 0.1.1 or 0.1.0 (§1.2).
	Protocol string
	// OldAzureNames takes azsnpvtpm and aztdxvtpm and refuses the spellings with dashes, as Trustee does up to v0.15.
	// Versions before 0.4.0 always do.
	OldAzureNames bool

	Resources Resources // nil: Dir's keys
	// ResourcePolicy is asked for each resource, besides policy.json if there is one. nil: policy.json alone, and without
	// it everything is denied.
	ResourcePolicy ResourcePolicy
	// Appraise gives the trustworthiness vector of a guest whose evidence holds, by its annotated claims (§1.6), which it must
	// not change. An error refuses the guest, but for one that wraps fs.ErrNotExist: there is no such policy now. nil, or no
	// policy: evidence is judged, and what was loaded is not, so that the status is never better than a warning.
	Appraise func(ctx context.Context, claims map[string]any) (vector map[string]int, err error)
	// Admin answers the requests of administrators (§1.9): POST and DELETE of resource/…, and all of resource-policy,
	// attestation-policy and reference-value. nil: they are refused.
	Admin http.Handler
	Audit io.Writer // gets one Decision per line as JSON, one Write each; nil: none

	Now func() time.Time // nil: the clock
	Log *slog.Logger     // nil: slog.Default
}

// Resources hold what is released. Get returns a copy that the caller may overwrite, or an error that wraps
// fs.ErrNotExist; path is repository/type/tag.
type Resources interface {
	Get(path string) ([]byte, error)
}

// A ResourcePolicy judges one request: path is repository/type/tag, claims are those of the guest's token (§1.6), which
// it must not change. why goes to the log. An error denies, but for one that wraps fs.ErrNotExist: there is no such
// policy now, and policy.json decides alone.
type ResourcePolicy func(ctx context.Context, path string, claims map[string]any) (allow bool, why string, err error)

// A Server is the http.Handler of a key broker.
type Server struct {
	Config
	gen      generation
	token    *ecdsa.PrivateKey
	sessions sessions
	auditMu  sync.Mutex
}

// Bounds of requests. An initdata document may carry a manifest of 1 MiB, escaped twice.
const (
	maxAuth     = 64 << 10
	maxAttest   = 8 << 20
	maxResource = 64 << 10
)

const prefix = "/kbs/v0/"

var resourcePath = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){2}$`)

// New checks the configuration. A policy.json that cannot be read is an error.
func New(c Config) (*Server, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	gen, err := generationOf(c.Protocol, c.OldAzureNames)
	if err != nil {
		return nil, err
	}
	if c.Resources == nil {
		if c.Dir == "" {
			return nil, errors.New("key broker: neither a directory nor resources given")
		}
		if _, err := os.ReadDir(filepath.Join(c.Dir, "keys")); err != nil {
			return nil, fmt.Errorf("keys belong into keys/<repository>/<type>/<tag> of the broker's directory: %w", err)
		}
	}
	if _, err := c.policy(); errors.Is(err, fs.ErrNotExist) && c.ResourcePolicy == nil {
		c.Log.Warn("no policy: every resource is denied", "file", filepath.Join(c.Dir, "policy.json"))
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
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
	return &Server{Config: c, gen: gen, token: key, sessions: sessions{byID: map[string]*session{}}}, nil
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
	case api && (resource || administrative(path)):
		if s.Admin != nil {
			s.Admin.ServeHTTP(w, r)
			return
		}
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

// administrative says that only administrators have business there, whatever the method (§1.1).
func administrative(path string) bool {
	return path == "resource-policy" || path == "attestation-policy" || path == "reference-value" || strings.HasPrefix(path, "reference-value/")
}

func trim(path, prefix string) (string, bool) {
	if len(path) > len(prefix) && path[:len(prefix)] == prefix {
		return path[len(prefix):], true
	}
	return "", false
}

// A refusal is an error as RCAR spells it (§1.8), or without a variant one of the web framework under old servers. The
// cause is for the log only; nil if it is there already.
type refusal struct {
	variant, detail string
	cause           error
}

func refuse(variant, detail string, cause error) *refusal { return &refusal{variant, detail, cause} }

func (e *refusal) write(w http.ResponseWriter) {
	status := http.StatusUnauthorized
	if e.variant == "" {
		http.Error(w, e.detail, http.StatusBadRequest)
		return
	}
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
