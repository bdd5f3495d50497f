package cvms

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ampoule-vm/ampoule/internal/cvms/cvmstest"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// plenty is more than anything here takes: what waits so long hangs.
const plenty = time.Minute

// until is a context for what must not hang, and need not be quick.
func until(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), plenty)
	t.Cleanup(cancel)
	return ctx
}

// connect starts an agent that the test ends. What stops it is nobody, unless the test says so.
func connect(t *testing.T, addr string) *Agent {
	a := Open(addr, func() { t.Error("stopped") })
	t.Cleanup(func() { hangUp(a) })
	return a
}

// hangUp is Close without patience.
func hangUp(a *Agent) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	a.Close(ctx)
}

// gone waits until the agent hangs up.
func gone(s *cvmstest.Stream) error { s.HearAll(); return nil }

func TestManifestOfAServer(t *testing.T) {
	text, golden := full()
	for name, say := range map[string]func(*cvmstest.Stream){
		"in chunks as Cocos cuts them": func(s *cvmstest.Stream) { s.Request(text, 1<<20) },
		"in small chunks":              func(s *cvmstest.Stream) { s.Request(text, 7) },
		"in one piece":                 func(s *cvmstest.Stream) { s.Say(`{"runReq": ` + text + `}`) },
		"after a question":             func(s *cvmstest.Stream) { s.Say(`{"agentStateReq": {"id": "q"}}`); s.Request(text, 100) },
		"with a question between": func(s *cvmstest.Stream) {
			s.Say(cvmstest.Chunk("1", []byte("\x0a\x011"), false))
			s.Say(`{"agentStateReq": {"id": "q"}}`)
			s.Say(cvmstest.Chunk("1", request(t, text), true))
		},
		"and then another":          func(s *cvmstest.Stream) { s.Request(text, 100); s.Request(`{"id": "2"}`, 100) },
		"and the end of the stream": func(s *cvmstest.Stream) { s.Request(text, 100); s.Say(`{"disconnectReq": {}}`) },
		"after a stop of nothing":   func(s *cvmstest.Stream) { s.Say(`{"stopComputation": {}}`); s.Request(text, 100) },
		"in middling chunks":        func(s *cvmstest.Stream) { s.Request(text, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			s := cvmstest.Serve(t, func(s *cvmstest.Stream) error { say(s); return gone(s) })
			raw, err := connect(t, s.Addr).Manifest(until(t))
			if err != nil || string(raw) != golden {
				t.Errorf("%v:\n%s\nwant\n%s", err, raw, golden)
			}
		})
	}
}

// TestLargestRequest has as many bytes as one may have, in as many chunks.
func TestLargestRequest(t *testing.T) {
	text := fmt.Sprintf(`{"id": "1", "name": "%s"}`, strings.Repeat("a", MaxRequest-100))
	for _, size := range []int{1 << 20, MaxRequest/(maxChunks-1) + 1} {
		s := cvmstest.Serve(t, func(s *cvmstest.Stream) error { s.Request(text, size); return gone(s) })
		if raw, err := connect(t, s.Addr).Manifest(until(t)); err != nil || len(raw) != MaxRequest-100+len(`{"id":"1","name":""}`) {
			t.Errorf("chunks of %d: %d bytes, %v", size, len(raw), err)
		}
	}
}

func TestManifestRefuses(t *testing.T) {
	big := make([]byte, 600<<10)
	for name, c := range map[string]struct {
		say  func(*cvmstest.Stream) error
		want string
	}{
		"a chunk of another computation": {func(s *cvmstest.Stream) error {
			s.Say(cvmstest.Chunk("1", []byte("x"), false))
			s.Say(cvmstest.Chunk("2", []byte("x"), false))
			return gone(s)
		}, `a chunk of "2" among those of "1"`},
		"too much in chunks": {func(s *cvmstest.Stream) error {
			s.Say(cvmstest.Chunk("1", big, false))
			s.Say(cvmstest.Chunk("1", big, false))
			return gone(s)
		}, "chunks of more than 1048576 bytes"},
		"too much in one message": {func(s *cvmstest.Stream) error {
			s.Say(cvmstest.Chunk("1", make([]byte, maxMessage), false))
			return gone(s)
		}, "a message of 1052683 bytes"},
		"too many chunks": {func(s *cvmstest.Stream) error {
			for range maxChunks + 1 {
				s.Say(cvmstest.Chunk("1", nil, false))
			}
			return gone(s)
		}, "more than 1024 chunks"},
		"chunks that are no request": {func(s *cvmstest.Stream) error { s.Say(cvmstest.Chunk("1", []byte("x"), true)); return gone(s) }, "run request: field 15"},
		"a chunk with a long id": {func(s *cvmstest.Stream) error {
			s.Say(cvmstest.Chunk(strings.Repeat("a", maxID+1), nil, false))
			return gone(s)
		}, "a chunk's id has 257 bytes"},
		"a request with a long id": {func(s *cvmstest.Stream) error {
			s.Say(`{"runReq": {"id": "` + strings.Repeat("a", maxID+1) + `"}}`)
			return gone(s)
		}, "its id has 257 bytes"},
		"a hash that is short": {func(s *cvmstest.Stream) error {
			s.Request(`{"id": "1", "algorithm": {"hash": "AA=="}}`, 9)
			return gone(s)
		}, "algorithm.hash: 1 bytes"},
		"nothing":                {func(s *cvmstest.Stream) error { return nil }, "ended the call and had sent no whole request"},
		"a part":                 {func(s *cvmstest.Stream) error { s.Say(cvmstest.Chunk("1", []byte("x"), false)); return nil }, "ended the call and had sent no whole request"},
		"a farewell":             {func(s *cvmstest.Stream) error { s.Say(`{"disconnectReq": {"id": "1"}}`); return gone(s) }, "the server closed the stream"},
		"an error for an answer": {func(s *cvmstest.Stream) error { return status.Error(codes.PermissionDenied, "not you") }, `status "7": "not you"`},
		"an error behind a chunk": {func(s *cvmstest.Stream) error {
			s.Say(cvmstest.Chunk("1", nil, false))
			return status.Error(codes.Aborted, "no")
		}, `status "10": "no"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := cvmstest.Serve(t, c.say)
			raw, err := connect(t, s.Addr).Manifest(until(t))
			if err == nil || !strings.HasPrefix(err.Error(), "manifest from the computation server: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v, want an error with %q", raw, err, c.want)
			}
		})
	}
}

// TestAChunkThatDoesNotCome ends the wait, and a server that says nothing at all does at the step's own end.
func TestAChunkThatDoesNotCome(t *testing.T) {
	s := cvmstest.Serve(t, func(s *cvmstest.Stream) error { s.Say(cvmstest.Chunk("1", nil, false)); return gone(s) })
	a := start(s.Addr, func() {}, time.Millisecond)
	defer hangUp(a)
	if raw, err := a.Manifest(until(t)); err == nil || !strings.Contains(err.Error(), "did not come within 1ms") {
		t.Errorf("%q, %v", raw, err)
	}
	silent := cvmstest.Serve(t, gone)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if raw, err := connect(t, silent.Addr).Manifest(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%q, %v", raw, err)
	}
}

// TestWhoIsNoServer of this protocol is told from one that is.
func TestWhoIsNoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := connect(t, l.Addr().String()).Manifest(until(t)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v", err)
	}
	web := httptest.NewUnstartedServer(http.NotFoundHandler())
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Start()
	t.Cleanup(web.Close)
	if _, err := connect(t, web.Listener.Addr().String()).Manifest(until(t)); err == nil || !strings.Contains(err.Error(), "status 404") {
		t.Errorf("HTTP/2 and no gRPC: %v", err)
	}
	old := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(old.Close)
	if _, err := connect(t, old.Listener.Addr().String()).Manifest(until(t)); err == nil {
		t.Error("HTTP/1.1 was taken")
	}
	elsewhere := httptest.NewUnstartedServer(http.RedirectHandler("http://"+old.Listener.Addr().String()+"/", http.StatusTemporaryRedirect))
	elsewhere.Config.Protocols = web.Config.Protocols
	elsewhere.Start()
	t.Cleanup(elsewhere.Close)
	if _, err := connect(t, elsewhere.Listener.Addr().String()).Manifest(until(t)); err == nil || !strings.Contains(err.Error(), "status 307") {
		t.Errorf("a redirect: %v", err)
	}
}

// did makes the event of a step, and ended the outcome.
func did(step, state string) result.Event {
	return result.Event{Event: result.StepEvent, Step: step, State: state}
}

func ended(reason result.Reason) result.Event {
	return result.Event{Event: result.OutcomeEvent, Reason: reason}
}

// TestWhatTheServerHears in a run: the states of wire/SPEC.md §6.5 and a reason, whatever PID 1 is at.
func TestWhatTheServerHears(t *testing.T) {
	data := `{"id": "1", "algorithm": {"hash": "` + zeros + `"}, "datasets": [{"hash": "` + zeros + `"}]}`
	bare := `{"id": "1", "algorithm": {"hash": "` + zeros + `"}}`
	good := []result.Event{
		did("manifest", result.Done), did("bind", result.Start), did("bind", result.Done), did("resolve", result.Start),
		{Event: result.ProgressEvent, Step: "resolve", Phase: result.Resolved}, did("resolve", result.Done), did("attest", result.Start), did("attest", result.Done),
		did("pull", result.Start), {Event: result.ProgressEvent, Step: "pull", Phase: result.Pulling}, did("pull", result.Done), did("execute", result.Start),
		{Event: result.OutputEvent, Step: "execute", Stream: result.Stdout, Text: "secret"}, did("execute", result.Done), did("seal", result.Start), did("seal", result.Done),
		did("deliver", result.Start), did("deliver", result.Done), did("wipe", result.Start), did("wipe", result.Done), ended(result.OK),
	}
	refused := did("manifest", result.Failed)
	refused.Reason = result.BadManifest
	for name, c := range map[string]struct {
		request string
		events  []result.Event
		want    []string
	}{
		"a good run": {data, good, []string{"1: taken", "1: ReceivingAlgorithm/InProgress", "1: ReceivingData/InProgress", "1: Running/Starting", "1: Running/InProgress",
			"1: Running/Completed", "1: ConsumingResults/Ready", "1: Complete/Completed"}},
		"without data": {bare, good, []string{"1: taken", "1: ReceivingAlgorithm/InProgress", "1: Running/Starting", "1: Running/InProgress",
			"1: Running/Completed", "1: ConsumingResults/Ready", "1: Complete/Completed"}},
		"a manifest refused": {bare, []result.Event{refused, ended(result.BadManifest)}, []string{"1: refused, bad-manifest", "1: Failed/Failed"}},
		"a request refused":  {`{"id": "1", "algorithm": {}}`, []result.Event{refused, ended(result.BadManifest)}, []string{"1: refused, bad-manifest", "1: Failed/Failed"}},
		"no computation":     {`{}`, []result.Event{refused, ended(result.BadManifest)}, nil},
		"a run that fails":   {bare, []result.Event{good[0], good[3], did("attest", result.Failed), ended(result.Denied)}, []string{"1: taken", "1: ReceivingAlgorithm/InProgress", "1: Failed/Failed"}},
		"a bad end":          {bare, []result.Event{did("execute", result.Start), did("execute", result.Done), ended(result.Workload)}, []string{"1: Running/Starting", "1: Running/InProgress", "1: Running/Completed", "1: Failed/Failed"}},
		"no event at all":    {bare, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			all := make(chan []string, 1)
			s := cvmstest.Serve(t, func(s *cvmstest.Stream) error {
				s.Request(c.request, 1<<20)
				all <- s.HearAll()
				return nil
			})
			a := connect(t, s.Addr)
			a.Manifest(until(t))
			for _, e := range c.events {
				a.Send(e)
			}
			if err := a.Close(until(t)); err != nil {
				t.Error(err)
			}
			a.Send(ended(result.OK)) // too late, and no harm
			if got, want := <-all, append([]string{"report of 0"}, c.want...); !slices.Equal(got, want) {
				t.Errorf("the server heard %q, want %q", got, want)
			}
		})
	}
}

// TestQuestionsAndStop: a server asks for the state, and stops its own computation, once, and no other.
func TestQuestionsAndStop(t *testing.T) {
	ask := make(chan string)
	all := make(chan string, 100)
	s := cvmstest.Serve(t, func(s *cvmstest.Stream) error {
		s.Request(`{"id": "1"}`, 1<<20)
		go func() {
			for text := range ask {
				s.Say(text)
			}
		}()
		for {
			m, err := s.Hear()
			if err != nil {
				close(all)
				return nil
			}
			all <- m
		}
	})
	stops := make(chan bool, 10)
	a := Open(s.Addr, func() { stops <- true })
	defer hangUp(a)
	hears := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if got := <-all; got != w {
				t.Errorf("the server heard %q, want %q", got, w)
			}
		}
	}
	if _, err := a.Manifest(until(t)); err != nil {
		t.Fatal(err)
	}
	hears("report of 0")
	ask <- `{"agentStateReq": {"id": "a"}}`
	hears("a? ReceivingManifest")
	a.Send(did("execute", result.Start))
	ask <- `{"agentStateReq": {"id": "b"}}`
	hears("1: Running/Starting", "1: Running/InProgress", "b? Running")
	ask <- `{"agentStateReq": {"id": "` + strings.Repeat("x", maxID+1) + `"}}` // is not answered
	ask <- `{"stopComputation": {"computation_id": "2"}}`
	ask <- `{"stopComputation": {}}`
	ask <- `{"agentStateReq": {"id": "c"}}`
	hears("c? Running")
	if len(stops) != 0 {
		t.Error("the stop of another computation stops this one")
	}
	for range 3 {
		ask <- `{"stopComputation": {"computation_id": "1"}}`
	}
	<-stops
	hears("1: Stopped/Stopped", "1: stopped")
	a.Send(did("execute", result.Done))
	a.Send(ended(result.Deadline))
	if err := a.Close(until(t)); err != nil {
		t.Error(err)
	}
	close(ask)
	for m := range all {
		t.Errorf("the server heard %q as well", m)
	}
	if len(stops) != 0 {
		t.Error("stopped twice")
	}
}

// TestAServerThatDies after it has sent a request takes nothing with it.
func TestAServerThatDies(t *testing.T) {
	s := cvmstest.Serve(t, func(s *cvmstest.Stream) error { s.Request(`{"id": "1"}`, 1<<20); return gone(s) })
	a := connect(t, s.Addr)
	if raw, err := a.Manifest(until(t)); err != nil || string(raw) != `{"id":"1"}` {
		t.Fatalf("%s, %v", raw, err)
	}
	s.Close()
	<-a.ended
	for range 10 * maxQueued {
		a.Send(did("execute", result.Start))
	}
	if n := len(a.queue); n > maxQueued {
		t.Errorf("%d messages wait for nobody", n)
	}
	if err := a.Close(until(t)); err == nil {
		t.Error("Close says that the server has heard all")
	}
	if raw, err := a.Manifest(until(t)); err != nil || string(raw) != `{"id":"1"}` {
		t.Errorf("asked again: %s, %v", raw, err)
	}
}

// TestAFlood: a server that asks and asks and does not listen costs a few messages of memory, and displaces no state.
func TestAFlood(t *testing.T) {
	listen, all := make(chan bool), make(chan []string, 1)
	s := cvmstest.Serve(t, func(s *cvmstest.Stream) error {
		for range 20_000 {
			s.Say(`{"agentStateReq": {"id": "` + strings.Repeat("q", maxID) + `"}}`)
		}
		s.Request(`{"id": "1"}`, 1<<20)
		<-listen
		all <- slices.DeleteFunc(s.HearAll(), func(said string) bool { return !strings.HasPrefix(said, "1: ") })
		return nil
	})
	a := connect(t, s.Addr)
	if _, err := a.Manifest(until(t)); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	waiting := len(a.queue)
	a.mu.Unlock()
	if waiting > maxAnswered {
		t.Errorf("%d answers wait, want %d at most", waiting, maxAnswered)
	}
	a.Send(did("manifest", result.Done))
	a.Send(ended(result.OK))
	listen <- true
	if err := a.Close(until(t)); err != nil {
		t.Error(err)
	}
	if got, want := <-all, []string{"1: taken", "1: Complete/Completed"}; !slices.Equal(got, want) {
		t.Errorf("the server heard %q, want %q", got, want)
	}
}

// TestAServerThatDoesNotListen does not hold the machine up beyond Close's own time.
func TestAServerThatDoesNotListen(t *testing.T) {
	end := make(chan bool)
	s := cvmstest.Serve(t, func(s *cvmstest.Stream) error { s.Request(`{"id": "1"}`, 1<<20); <-end; return nil })
	defer close(end)
	a := connect(t, s.Addr)
	if _, err := a.Manifest(until(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := a.Close(ctx); err == nil {
		t.Error("Close says that the server has heard all")
	}
	<-a.ended
}
