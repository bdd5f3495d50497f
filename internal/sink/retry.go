package sink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/image"
)

const (
	// Before try n+1 there is a pause of 0 to firstPause·2ⁿ (full jitter), at most maxPause, on top of what the reply asks.
	firstPause = 500 * time.Millisecond
	maxPause   = 30 * time.Second
)

// Retry tries until it goes well, or fails in a way that stays, or the next try would be after ctx's deadline.
func Retry(ctx context.Context, try func(context.Context) error) error {
	for n := 1; ; n++ {
		err := try(ctx)
		if err == nil {
			return nil
		}
		after, again := transient(err)
		if ctx.Err() != nil {
			return fmt.Errorf("%w (try %d: %w)", context.Cause(ctx), n, err)
		}
		if !again {
			return err
		}
		wait := after + rand.N(min(firstPause<<min(n-1, 16), maxPause))
		if d, ok := ctx.Deadline(); ok && time.Until(d) <= wait {
			return fmt.Errorf("%w (%d tries; the next would be in %v, after the sink's deadline)", err, n, wait.Round(time.Millisecond))
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w (try %d: %w)", context.Cause(ctx), n, err)
		}
	}
}

// statusError is a server's refusal.
type statusError struct {
	what   string // the request, without what is behind its ?
	status int
	code   string        // the store's own word for it, or ""
	after  time.Duration // what it asks us to wait
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s: status %d", e.what, e.status)
	if e.code != "" {
		text += ", " + e.code
	}
	if e.status/100 == 3 {
		text += "; a sink may not send us elsewhere: sign the URL for where the store is"
	}
	return text
}

// transient reports whether trying again may help, and what is asked to be waited before.
func transient(err error) (after time.Duration, again bool) {
	if _, over := errors.AsType[final](err); over {
		return 0, false
	}
	e, ok := errors.AsType[*statusError](err)
	switch {
	case errors.Is(err, errStalled):
		return 0, true
	case !ok:
		return image.Transient(err)
	}
	switch e.status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return e.after, true
	}
	return 0, false
}

// codeIn is the word that stores put into the body of a refusal.
func codeIn(body string) string {
	_, rest, _ := strings.Cut(body, "<Code>")
	code, _, ok := strings.Cut(rest, "</Code>")
	if !ok || len(code) > 64 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
		return ""
	}
	return code
}
