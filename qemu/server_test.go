package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/qemu/vhostvsock"
)

// guest starts a server and returns a client that reaches it as a guest does.
func guest(t *testing.T, cfg Config) (*server, *http.Client) {
	t.Helper()
	cfg.Dir = t.TempDir()
	if cfg.ResultLimit == 0 {
		cfg.ResultLimit = 1 << 20
	}
	s, err := newServer(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	q := newQueue(1024)
	served := make(chan error, 1)
	go func() { served <- s.serve(q) }()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs, err := vhostvsock.Pair()
		if err == nil && !q.deliver(theirs) {
			err = errors.New("refused")
		}
		return ours, err
	}}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := errors.Join(s.close(), <-served); err != nil {
			t.Error(err)
		}
	})
	return s, &http.Client{Transport: tr, Timeout: patience}
}

func do(t *testing.T, c *http.Client, method, path string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://host"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestManifestIsServedByteForByte(t *testing.T) {
	want := "{ \"a\": 1 }\r\n\x00\xff"
	_, c := guest(t, Config{Manifest: []byte(want)})
	if status, body := do(t, c, "GET", "/v1/manifest", nil); status != 200 || body != want {
		t.Errorf("%d %q", status, body)
	}
	for _, bad := range [][2]string{{"POST", "/v1/manifest"}, {"GET", "/v1/result"}, {"PUT", "/v1/events"}, {"GET", "/"}, {"PUT", "/v1/other"}, {"GET", "/v1/../../etc/passwd"}} {
		if status, _ := do(t, c, bad[0], bad[1], nil); status < 400 {
			t.Errorf("%s %s: %d", bad[0], bad[1], status)
		}
	}
}

func step(name string, i int64) result.Event {
	return result.Event{Time: i, Event: result.StepEvent, Step: name, State: result.Start}
}

var finalEvent = result.Event{Time: 9, Event: result.OutcomeEvent, Reason: result.OK}

func TestEventsAreSeenAsTheyArrive(t *testing.T) {
	seen := make(chan result.Event)
	s, c := guest(t, Config{OnEvent: func(e result.Event) { seen <- e }})
	r, w := io.Pipe()
	status := make(chan int, 1)
	go func() {
		code, _ := do(t, c, "POST", "/v1/events", r)
		status <- code
	}()
	for i := range int64(3) {
		w.Write(step("mount", i).Line())
		if e := <-seen; e.Time != i {
			t.Errorf("event %+v, want the one of %d", e, i)
		}
	}
	select {
	case <-s.outcome:
		t.Error("an outcome before the outcome")
	default:
	}
	go w.Write(finalEvent.Line())
	<-seen
	<-s.outcome
	w.Close()
	if code := <-status; code != http.StatusNoContent {
		t.Errorf("status %d", code)
	}
	// The outcome is the last word.
	if code, _ := do(t, c, "POST", "/v1/events", bytes.NewReader(step("late", 10).Line())); code != http.StatusConflict {
		t.Errorf("status %d", code)
	}
	var rep Report
	s.report(&rep)
	if len(rep.Events) != 4 || rep.Outcome == nil || rep.Outcome.Reason != result.OK || rep.FirstEvent.IsZero() {
		t.Errorf("report %+v", rep)
	}
	b, err := os.ReadFile(filepath.Join(s.cfg.Dir, EventsFile))
	if err != nil || string(b) != string(result.Lines(rep.Events)) {
		t.Errorf("file %q, %v", b, err)
	}
}

func TestZeroOfTheGuestsClock(t *testing.T) {
	s, _ := guest(t, Config{})
	before := time.Now()
	var zeros []time.Time
	// The second was on its way for a second less than the first, the third for longer.
	for _, at := range []int64{3e6, 4e6, 1e6, math.MaxInt64} {
		s.event(step("mount", at))
		zeros = append(zeros, s.zero)
	}
	if !zeros[1].Before(zeros[0]) || zeros[2] != zeros[1] || !zeros[3].Before(zeros[2]) {
		t.Errorf("zeros %v", zeros)
	}
	if d := zeros[1].Add(4 * time.Second).Sub(before); d < 0 || d > time.Minute {
		t.Errorf("the guest's 4 s are %v after the first event", d)
	}
}

func TestPartOfAnArtefactIsRefused(t *testing.T) {
	_, c := guest(t, Config{})
	req, err := http.NewRequest("PUT", "http://host/v1/result", strings.NewReader("rest"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Range", "bytes 4-7/8")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestBadEventsAreRefused(t *testing.T) {
	var got []result.Event
	s, c := guest(t, Config{OnEvent: func(e result.Event) { got = append(got, e) }})
	good := string(step("mount", 1).Line())
	for name, body := range map[string]string{
		"no JSON":          "hello\n",
		"a line too long":  `{"t_us":1,"event":"` + strings.Repeat("x", result.MaxEventLine) + "\"}\n",
		"terminal escapes": `{"t_us":1,"event":"step","step":"\u001b[2J","state":"start"}` + "\n",
		"an unknown event": `{"t_us":1,"event":"exec"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			got = nil
			code, text := do(t, c, "POST", "/v1/events", strings.NewReader(good+body+good))
			if code != http.StatusBadRequest || len(got) != 1 {
				t.Errorf("status %d, %d events", code, len(got))
			}
			if strings.Contains(text, "\x1b") {
				t.Errorf("answer %q", text)
			}
		})
	}
	s.mu.Lock()
	s.eventSize = maxEvents
	s.mu.Unlock()
	if code, _ := do(t, c, "POST", "/v1/events", strings.NewReader(good)); code != http.StatusRequestEntityTooLarge {
		t.Errorf("over the limit: status %d", code)
	}
}

// broken is a body that breaks off.
type broken struct{ n int }

func (b *broken) Read(p []byte) (int, error) {
	if b.n -= len(p); b.n < 0 {
		return 0, errors.New("the guest died")
	}
	return len(p), nil
}

func TestArtefactsAreAcceptedOnce(t *testing.T) {
	for _, c := range []struct {
		path, name, body string
		of               func(*Report) string
	}{
		{"/v1/result", SealedFile, ageMagic + "rest", func(r *Report) string { return r.ResultPath }},
		{"/v1/result", PlainFile, "results/", func(r *Report) string { return r.ResultPath }},
		{"/v1/result", PlainFile, "", func(r *Report) string { return r.ResultPath }},
		{"/v1/log", LogFile, ageMagic + "rest", func(r *Report) string { return r.LogPath }},
		{"/v1/log", PlainLogFile, "results/", func(r *Report) string { return r.LogPath }},
		{"/v1/receipt", ReceiptFile, "{}", func(r *Report) string { return r.ReceiptPath }},
	} {
		t.Run(fmt.Sprintf("%s %d bytes", c.name, len(c.body)), func(t *testing.T) {
			s, client := guest(t, Config{ResultLimit: maxReceipt})
			files := func() (names []string) {
				dir, err := os.ReadDir(s.cfg.Dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range dir {
					if e.Name() != EventsFile {
						names = append(names, e.Name())
					}
				}
				return names
			}
			// What is too large leaves nothing, and what breaks off is kept as that. Both may come again.
			big := strings.NewReader(strings.Repeat("x", maxReceipt+1))
			if code, _ := do(t, client, "PUT", c.path, big); code != http.StatusRequestEntityTooLarge && code != 0 {
				t.Errorf("declared too large: status %d", code)
			}
			if code, _ := do(t, client, "PUT", c.path, io.MultiReader(strings.NewReader(strings.Repeat("x", maxReceipt)), strings.NewReader("x"))); code != http.StatusRequestEntityTooLarge && code != 0 {
				t.Errorf("too large: status %d", code)
			}
			if code, _ := do(t, client, "PUT", c.path, &broken{1 << 20}); code != 0 {
				t.Errorf("breaks off: status %d", code)
			}
			idle(t, s)
			var rep Report
			s.report(&rep)
			// The host cannot know which kind a result without its begin is.
			partial := strings.Replace(strings.Replace(c.name, SealedFile, PlainFile, 1), LogFile, PlainLogFile, 1) + Partial
			if d := cmp.Diff([]string{partial}, files()); d != "" || len(rep.Partial) != 1 || filepath.Base(rep.Partial[0]) != partial || c.of(&rep) != "" {
				t.Fatalf("left (-want +got):\n%s%+v", d, rep)
			}
			if fi, err := os.Stat(rep.Partial[0]); err != nil || fi.Size() == 0 || fi.Size() > 1<<20 {
				t.Errorf("%v, %v", fi, err)
			}
			if code, text := do(t, client, "PUT", c.path, strings.NewReader(c.body)); code != http.StatusNoContent {
				t.Fatalf("status %d %s", code, text)
			}
			rep = Report{}
			s.report(&rep)
			if len(rep.Partial) > 0 {
				t.Errorf("partial artefacts of what came whole: %v", rep.Partial)
			}
			if code, _ := do(t, client, "PUT", c.path, strings.NewReader("again")); code != http.StatusConflict {
				t.Errorf("the second: status %d", code)
			}
			path := c.of(&rep)
			b, err := os.ReadFile(path)
			if err != nil || string(b) != c.body || filepath.Base(path) != c.name {
				t.Errorf("%s holds %q, %v", path, b, err)
			}
			if left := files(); len(left) != 1 {
				t.Errorf("files: %v", left)
			}
		})
	}
}

// idle waits until no upload is under way.
func idle(t *testing.T, s *server) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		busy := s.result.busy || s.receipt.busy || s.log.busy
		s.mu.Unlock()
		if !busy {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("an upload that broke off goes on")
		}
	}
}

func TestSecondUploadAtOnceIsRefused(t *testing.T) {
	s, c := guest(t, Config{})
	r, w := io.Pipe()
	first := make(chan int, 1)
	go func() {
		code, _ := do(t, c, "PUT", "/v1/result", r)
		first <- code
	}()
	w.Write([]byte("half"))
	for busy := false; !busy; {
		s.mu.Lock()
		busy = s.result.busy
		s.mu.Unlock()
	}
	if code, _ := do(t, c, "PUT", "/v1/result", strings.NewReader("other")); code != http.StatusConflict {
		t.Errorf("status %d", code)
	}
	w.Close()
	if code := <-first; code != http.StatusNoContent {
		t.Errorf("status %d", code)
	}
}

func TestQueueRefusesWhatNobodyAccepts(t *testing.T) {
	q := newQueue(1)
	for range backlog {
		_, theirs, err := vhostvsock.Pair()
		if err != nil || !q.deliver(theirs) {
			t.Fatal(err)
		}
	}
	if q.deliver(nil) {
		t.Error("more than the backlog")
	}
	q.Close()
	if q.deliver(nil) {
		t.Error("after Close")
	}
	q.drop()
	if _, err := q.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
