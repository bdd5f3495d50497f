package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/sink"
)

// A silentHost takes connections, and reads and says nothing.
type silentHost struct{ conns []net.Conn }

func (h *silentHost) dial(context.Context, string, string) (net.Conn, error) {
	guest, host := net.Pipe()
	h.conns = append(h.conns, host)
	return guest, nil
}

func noOneThere(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("connection refused")
}

// noAnswer outlasts the request: net/http does not end a dial with it.
func noAnswer(context.Context, string, string) (net.Conn, error) {
	time.Sleep(hangs / 2)
	return nil, errors.New("connection timed out")
}

// smallManifest is one that parses, with a recipient.
func smallManifest(t *testing.T) *manifest.Manifest {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := manifest.Parse([]byte(`{"version": 1, "algorithm": {"uri": "docker://r.example/algorithm@sha256:`+strings.Repeat("ab", 32)+`"},
		"results": {"recipients": ["`+id.Recipient().String()+`"]}}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestHostThatDoesNotListen: whatever the host does with its end of the vsock, the boot ends, within the limits of
// delivery and report.
func TestHostThatDoesNotListen(t *testing.T) {
	silent := func() func(context.Context, string, string) (net.Conn, error) { return (&silentHost{}).dial }
	for name, c := range map[string]struct {
		dial    func(context.Context, string, string) (net.Conn, error)
		failing string // the step that fails; "deliver" has something to deliver
		reason  result.Reason
		within  time.Duration
	}{
		"silent, with a failure before bind":   {silent(), "platform", result.NoTEE, reportLimit},
		"silent, with a failure after bind":    {silent(), "attest", result.Denied, 2 * reportLimit},
		"silent, with a result":                {silent(), "deliver", result.Undelivered, 20*time.Minute + 2*reportLimit},
		"not there, with a failure after bind": {noOneThere, "attest", result.Denied, 0},
		"not there, with a result":             {noOneThere, "deliver", result.Undelivered, 5 * time.Second},
		"no answer, with a failure after bind": {noAnswer, "attest", result.Denied, 2 * reportLimit},
		"no answer, with a result":             {noAnswer, "deliver", result.Undelivered, 20*time.Minute + 2*reportLimit},
	} {
		t.Run(name, func(t *testing.T) {
			doc, dir := smallManifest(t), t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				m, _, console := bareMachine()
				m.dir = dir
				m.host = func(ctx context.Context, _ uint32) host {
					v := sink.NewVsock(&http.Client{Transport: &http.Transport{DialContext: c.dial}})
					return vsockHost{v, v.Events(ctx)}
				}
				var steps []step
				for _, s := range sequence {
					real := s.do
					s.do = func(r *run, ctx context.Context) error {
						switch {
						case s.name == "mount":
							r.connect()
						case s.name == c.failing && s.name == "deliver":
							return real(r, ctx)
						case s.name == c.failing:
							return errors.New(secret)
						case s.name == "bind":
							r.doc, r.binding = doc, result.BindLaunch
						case s.name == "seal":
							r.parcel = &parcel{path: filepath.Join(dir, "result"), receipt: []byte("{}")}
							return os.WriteFile(r.parcel.path, make([]byte, 1<<20), 0o600)
						}
						return nil
					}
					steps = append(steps, s)
				}
				begin := time.Now()
				boot(t.Context(), m, steps)
				if took := time.Since(begin); took > c.within {
					t.Errorf("the boot took %v, want %v at most", took, c.within)
				}
				if want := "outcome " + string(c.reason) + " in " + c.failing + "\n"; !strings.HasSuffix(console.String(), want) {
					t.Errorf("the console does not end in %q:\n%s", want, console)
				}
				time.Sleep(hangs) // a bubble must not end before its goroutines
			})
		})
	}
}

// A choosyHost takes events, and lets a result wait for ever.
type choosyHost struct {
	*fakeHost
	left error // of the context that the events were closed with
}

func (h *choosyHost) PutResult(ctx context.Context, _ io.Reader, _ int64) error {
	<-ctx.Done()
	return ctx.Err()
}

func (h *choosyHost) Close(ctx context.Context) error {
	h.left = ctx.Err()
	return h.fakeHost.Close(ctx)
}

// TestLogDoesNotStarveTheOutcome: a host that is too slow for the sealed log still hears how the run ended.
func TestLogDoesNotStarveTheOutcome(t *testing.T) {
	doc, dir := smallManifest(t), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m, peer, _ := bareMachine()
		choosy := &choosyHost{fakeHost: peer}
		m.dir, m.host = dir, func(context.Context, uint32) host { return choosy }
		steps, _ := broken(len(sequence)-1, func(r *run, _ context.Context) error {
			r.doc, r.binding = doc, result.BindLaunch
			return errors.New(secret)
		})
		boot(t.Context(), m, steps)
		if o := peer.outcomes(); len(o) != 1 {
			t.Errorf("outcomes %+v, want one", o)
		}
		if choosy.left != nil {
			t.Errorf("no time was left for the outcome: %v", choosy.left)
		}
	})
}
