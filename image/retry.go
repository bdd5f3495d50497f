package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	maxTries = 6 // of a registry that is busy or cannot be reached; a mirror gets one

	// Before try n+1 there is a pause of 0 to firstPause·2ⁿ (full jitter), at most maxPause, on top of what the reply asks.
	firstPause = 500 * time.Millisecond
	maxPause   = 10 * time.Second
	maxAfter   = time.Minute // of a Retry-After, whatever it says
)

// replyError is a status that gives nothing.
type replyError struct {
	host   string
	status int
	text   string        // the registry's own words, or ""
	after  time.Duration // what it asks us to wait
}

func (e *replyError) Error() string {
	s := fmt.Sprintf("%s: status %d", e.host, e.status)
	if e.text != "" {
		s += fmt.Sprintf(": %.200q", e.text)
	}
	return s
}

// refusal reads a reply that is no good, and closes it.
func refusal(resp *http.Response) error {
	defer resp.Body.Close()
	e := &replyError{host: hostOf(resp), status: resp.StatusCode, after: RetryAfter(resp.Header, time.Now())}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if err == nil && one(b, &doc) == nil && len(doc.Errors) > 0 {
		e.text = doc.Errors[0].Code + ": " + doc.Errors[0].Message
	}
	return e
}

// RetryAfter reads Retry-After (RFC 9110 §10.2.3), seconds or a date, which is held against the reply's own: this machine's
// clock is the host's. Nonsense is no wish.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.ParseUint(s, 10, 16); err == nil {
		return min(time.Duration(n)*time.Second, maxAfter)
	}
	at, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), maxAfter)
}

// Transient reports whether asking again may help. What is not known to is final: certificates, redirects that are refused,
// http that is not permitted.
func Transient(err error) (after time.Duration, again bool) {
	if e, ok := errors.AsType[*replyError](err); ok {
		switch e.status {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return e.after, true
		}
		return 0, false
	}
	return 0, unreachable(err)
}

// unreachable reports whether err is of the connection: it was refused, reset, or too slow.
func unreachable(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false // of a proxy's it is inside a net.OpError
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return true
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Op != "remote error" && e.Op != "local error" // what TLS calls an alert: that is an answer
	}
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// retry sends until there is a good reply, an error that will stay, or tries are over. It never sleeps into ctx's deadline.
func retry(ctx context.Context, tries int, send func() (*http.Response, error)) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := send()
		if err == nil {
			return resp, nil
		}
		after, again := Transient(err)
		switch {
		case !again || ctx.Err() != nil || tries == 1:
			return nil, err
		case try == tries:
			return nil, fmt.Errorf("%w (%d tries)", err, tries)
		}
		pause := after + rand.N(min(firstPause<<(try-1), maxPause))
		if d, ok := ctx.Deadline(); ok && time.Until(d) <= pause {
			return nil, fmt.Errorf("%w; the next try would be in %v, after the deadline", err, pause.Round(time.Millisecond))
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		}
	}
}
