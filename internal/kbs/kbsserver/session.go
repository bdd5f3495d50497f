package kbsserver

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

const (
	cookieName      = "kbs-session-id"
	sessionLifetime = 5 * time.Minute // from auth on (§1.3)
	maxSessions     = 1024
)

// A session is one guest from auth on. After attest the last fields are set; they never change again.
type session struct {
	id      string
	kind    evidence.Kind // what auth announced
	nonce   string
	expires time.Time

	token       string // "" before attest
	key         evidence.PublicKey
	claims      verify.Claims
	tokenClaims map[string]any // of the token, and all of the initdata document
}

// sessions are bounded in number and in time.
type sessions struct {
	mu   sync.Mutex
	byID map[string]*session
}

// add makes room for the session: expired ones go first, then of those that have not attested the one that is closest to
// it, then of all. A flood of auth costs others a retry and not the memory of the broker, and attested guests nothing.
func (s *sessions) add(n *session, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest *session
	for id, o := range s.byID {
		if !now.Before(o.expires) {
			delete(s.byID, id)
		} else if oldest == nil || before(o, oldest) {
			oldest = o
		}
	}
	if len(s.byID) >= maxSessions {
		delete(s.byID, oldest.id)
	}
	s.byID[n.id] = n
}

// before says that a goes sooner than b.
func before(a, b *session) bool {
	if (a.token == "") != (b.token == "") {
		return a.token == ""
	}
	return a.expires.Before(b.expires)
}

// get finds a live session.
func (s *sessions) get(id string, now time.Time) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.byID[id]; n != nil && now.Before(n.expires) {
		return n
	}
	return nil
}

// take finds a live session that has not attested and removes it: a nonce is good for one try.
func (s *sessions) take(id string, now time.Time) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.byID[id]
	if n == nil || n.token != "" || !now.Before(n.expires) {
		return nil
	}
	delete(s.byID, id)
	return n
}

// sessionOf reads the cookie of a request.
func sessionOf(r *http.Request) string {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return ""
	}
	return c.Value
}

// newSessionID is a version 4 UUID without dashes.
func newSessionID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return hex.EncodeToString(b[:])
}
