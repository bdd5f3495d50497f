package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// Bounds of what the guest may send.
const (
	maxReceipt = 4 << 20  // bytes
	maxEvents  = 16 << 20 // bytes, of all streams together
	headerTime = 30 * time.Second
)

// ageMagic begins every age file.
const ageMagic = "age-encryption.org/v1\n"

// A server is the host's side of the HTTP-over-vsock protocol (DESIGN §8). Its client is not trusted.
type server struct {
	cfg  *Config
	http *http.Server

	mu        sync.Mutex
	events    []result.Event
	eventFile *os.File
	eventSize int64
	first     time.Time
	zero      time.Time
	ended     *result.Event
	outcome   chan struct{} // closed with ended

	result, receipt, log artefact
	uploads              sync.WaitGroup
}

// An artefact is something that is accepted once. Its name is set when it is complete.
type artefact struct {
	busy    bool
	path    string
	partial string // what came of the last try, if that broke off
}

func newServer(cfg *Config) (*server, error) {
	f, err := os.Create(filepath.Join(cfg.Dir, EventsFile))
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	s := &server{cfg: cfg, eventFile: f, outcome: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/manifest", s.getManifest)
	mux.HandleFunc("POST /v1/events", s.postEvents)
	mux.HandleFunc("PUT /v1/result", func(w http.ResponseWriter, r *http.Request) {
		s.put(w, r, &s.result, cfg.ResultLimit, resultName)
	})
	mux.HandleFunc("PUT /v1/receipt", func(w http.ResponseWriter, r *http.Request) {
		s.put(w, r, &s.receipt, maxReceipt, func([]byte) string { return ReceiptFile })
	})
	mux.HandleFunc("PUT /v1/log", func(w http.ResponseWriter, r *http.Request) {
		s.put(w, r, &s.log, cfg.ResultLimit, logName)
	})
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTime,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // the guest decides what would be in it
	}
	return s, nil
}

func (s *server) serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("host server: %w", err)
	}
	return nil
}

// close waits a little for requests that are under way: their guest is gone, and what it sent is still to be read.
func (s *server) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	s.uploads.Wait() // their connections are gone
	return errors.Join(err, s.eventFile.Close())
}

func (s *server) report(r *Report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Outcome, r.Events, r.FirstEvent, r.Zero = s.ended, slices.Clone(s.events), s.first, s.zero
	r.ResultPath, r.ReceiptPath, r.LogPath = s.result.path, s.receipt.path, s.log.path
	for _, a := range []artefact{s.result, s.receipt, s.log} {
		if a.partial != "" {
			r.Partial = append(r.Partial, a.partial)
		}
	}
}

func (s *server) getManifest(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", fmt.Sprint(len(s.cfg.Manifest)))
	// A guest that stops reading is its own loss.
	_, _ = w.Write(s.cfg.Manifest)
}

// postEvents takes lines as they come, for as long as the guest sends.
func (s *server) postEvents(w http.ResponseWriter, r *http.Request) {
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(make([]byte, 0, 4096), result.MaxEventLine)
	for lines.Scan() {
		e, err := result.ParseEvent(lines.Bytes())
		if err != nil {
			http.Error(w, "event is not valid", http.StatusBadRequest)
			return
		}
		if status := s.event(e); status != 0 {
			http.Error(w, http.StatusText(status), status)
			return
		}
	}
	if err := lines.Err(); err != nil {
		http.Error(w, "event stream is not valid", http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// event records one event and returns 0, or the status with which it is refused.
func (s *server) event(e result.Event) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := e.Line()
	switch {
	case s.ended != nil:
		return http.StatusConflict // an outcome is the last word
	case s.eventSize+int64(len(line)) > maxEvents:
		return http.StatusRequestEntityTooLarge
	}
	if _, err := s.eventFile.Write(line); err != nil {
		return http.StatusInsufficientStorage
	}
	s.eventSize += int64(len(line))
	now := time.Now()
	if len(s.events) == 0 {
		s.first = now
	}
	// An event that was on its way for less time gives a better zero.
	if zero := now.Add(-time.Duration(min(e.Time, math.MaxInt64/1000)) * time.Microsecond); s.zero.IsZero() || zero.Before(s.zero) {
		s.zero = zero
	}
	s.events = append(s.events, e)
	// With the lock held, so that the next one waits for its turn.
	if s.cfg.OnEvent != nil {
		s.cfg.OnEvent(e)
	}
	if e.Event == result.OutcomeEvent {
		s.ended = &e
		close(s.outcome)
	}
	return 0
}

func resultName(begin []byte) string {
	if string(begin) == ageMagic {
		return SealedFile
	}
	return PlainFile
}

func logName(begin []byte) string {
	if string(begin) == ageMagic {
		return LogFile
	}
	return PlainLogFile
}

// put stores a body of at most limit bytes under the name that its beginning gives it. A body that breaks off may be sent
// again, whole; until then what came is kept under a name that says so. A complete one may not.
func (s *server) put(w http.ResponseWriter, r *http.Request, a *artefact, limit int64, name func([]byte) string) {
	s.uploads.Add(1)
	defer s.uploads.Done()
	if r.Header.Get("Content-Range") != "" {
		http.Error(w, "only the whole is taken", http.StatusBadRequest) // RFC 9110, section 14.5
		return
	}
	s.mu.Lock()
	taken := a.busy || a.path != ""
	if !taken {
		a.busy = true
	}
	s.mu.Unlock()
	if taken {
		http.Error(w, "was delivered already", http.StatusConflict)
		return
	}
	path, partial, err := s.store(http.MaxBytesReader(w, r.Body, limit), r.ContentLength, limit, name)
	s.mu.Lock()
	if a.partial != "" && a.partial != partial {
		err = errors.Join(err, os.Remove(a.partial))
	}
	a.busy, a.path, a.partial = false, path, partial
	s.mu.Unlock()
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		http.Error(w, fmt.Sprintf("more than %d bytes", limit), http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		// The guest need not know our paths.
		http.Error(w, "not stored", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// store returns the path of what is whole, or of what broke off; neither of what is too large.
func (s *server) store(body io.Reader, size, limit int64, name func([]byte) string) (path, partial string, err error) {
	if size > limit {
		return "", "", &http.MaxBytesError{Limit: limit}
	}
	f, err := os.CreateTemp(s.cfg.Dir, incoming)
	if err != nil {
		return "", "", err
	}
	in := bufio.NewReader(body)
	begin, _ := in.Peek(len(ageMagic)) // its error comes again
	path = filepath.Join(s.cfg.Dir, name(begin))
	n, err := io.Copy(f, in)
	err = errors.Join(err, f.Sync(), f.Close())
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); err != nil && (tooLarge || n == 0) {
		return "", "", errors.Join(err, os.Remove(f.Name()))
	}
	if err != nil {
		partial = path + Partial
		return "", partial, errors.Join(err, os.Rename(f.Name(), partial))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", "", errors.Join(err, os.Remove(f.Name()))
	}
	return path, "", nil
}
