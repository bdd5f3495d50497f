package sink

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// putGCS is Google's resumable upload (cloud.google.com/storage/docs/performing-resumable-uploads). The URL is either that of a session,
// which has an upload_id, or one that was signed for POST with x-goog-resumable: start, which opens one. What breaks off goes on from
// where the store says that it is.
func putGCS(ctx context.Context, s *store, r Result) error {
	g := &gcs{store: s, r: r}
	if s.url.Query().Has("upload_id") {
		g.session, g.unsure = s.url, true // whoever opened it may have used it
	}
	return Retry(ctx, g.try)
}

type gcs struct {
	*store
	r       Result
	session *url.URL
	from    int64 // bytes that the store has
	unsure  bool  // it may have more
}

func (g *gcs) try(ctx context.Context) error {
	if g.session == nil {
		if err := g.start(ctx); err != nil {
			return err
		}
	}
	for {
		before := g.from
		done, err := g.step(ctx)
		if err != nil || done {
			return err
		}
		if !g.unsure && g.from <= before {
			return fmt.Errorf("PUT %s: the store has %d of %d bytes and takes no more", shown(g.session), g.from, g.r.Size)
		}
		g.unsure = false
	}
}

// step asks the store how far it is, or sends it the rest.
func (g *gcs) step(ctx context.Context) (done bool, err error) {
	q := request{http.MethodPut, g.session, http.Header{}, g.r, g.from, g.r.Size - g.from}
	if g.unsure {
		q.from, q.size = 0, 0
		q.header.Set("Content-Range", fmt.Sprintf("bytes */%d", g.r.Size))
	} else {
		q.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", g.from, g.r.Size-1, g.r.Size))
	}
	asked := g.unsure
	g.unsure = true // unless there is an answer
	a, err := g.once(ctx, q)
	if err != nil {
		return false, err
	}
	switch a.status {
	case http.StatusOK, http.StatusCreated:
		return true, nil
	case http.StatusPermanentRedirect: // which Google uses for "Resume Incomplete"
		g.unsure = asked
		g.from, err = received(a.header.Get("Range"), g.r.Size)
		return false, err
	case http.StatusNotFound, http.StatusGone:
		if g.session != g.url {
			g.session, g.from, g.unsure = nil, 0, false // it is over, and another can be opened
			return false, &statusError{q.String(), http.StatusServiceUnavailable, "the session is over", 0}
		}
	}
	return false, a.refusal(q)
}

func (g *gcs) start(ctx context.Context) error {
	h := g.headers.Clone()
	h.Set("X-Goog-Resumable", "start")
	q := request{method: http.MethodPost, url: g.url, header: h}
	a, err := g.send(ctx, q)
	if err != nil {
		return err
	}
	at, err := g.url.Parse(a.header.Get("Location"))
	if err != nil || a.header.Get("Location") == "" || at.Scheme != g.url.Scheme || at.Host != g.url.Host {
		return fmt.Errorf("%s: the store opens no session at %s", q, g.url.Host)
	}
	g.session, g.from, g.unsure = at, 0, false
	return nil
}

// received is how many bytes the store has, by its Range of "bytes=0-N"; without one it has none.
func received(s string, size int64) (int64, error) {
	if s == "" {
		return 0, nil
	}
	last, ok := strings.CutPrefix(s, "bytes=0-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil || n < 0 || n >= size {
		return 0, fmt.Errorf("the store says that it has %.40q of %d bytes", s, size)
	}
	return n + 1, nil
}
