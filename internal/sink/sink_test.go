package sink

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ampoule-vm/ampoule/internal/result"
)

// host is a sink whose requests go to handler.
func host(t *testing.T, handler http.HandlerFunc) *Vsock {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return NewVsock(&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}}})
}

var progress = result.Event{Event: result.ProgressEvent, Step: "pull", Input: new(0), Phase: result.Pulling, Bytes: 1}

var output = result.Event{Event: result.OutputEvent, Step: "execute", Stream: result.Stdout, Bytes: 1, Text: "a"}

func step(name string) result.Event {
	return result.Event{Event: result.StepEvent, Step: name, State: result.Start}
}

// readLines returns the steps of the events on r.
func readLines(t *testing.T, r io.Reader) (steps []string) {
	for in := bufio.NewScanner(r); in.Scan(); {
		e, err := result.ParseEvent(in.Bytes())
		if err != nil {
			t.Errorf("line %q: %v", in.Bytes(), err)
		}
		steps = append(steps, e.Event+" "+e.Step)
	}
	return steps
}

func TestEventsArriveWhileTheStreamIsOpen(t *testing.T) {
	first, all := make(chan string, 1), make(chan []string, 1)
	v := host(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.URL.Path != "/v1/events" || r.ContentLength != -1 {
			t.Errorf("%s %s, length %d", r.Method, r.URL, r.ContentLength)
		}
		in := bufio.NewReader(r.Body)
		line, err := in.ReadString('\n')
		if err != nil {
			t.Error(err)
		}
		first <- line
		all <- readLines(t, in)
	})
	s := v.Events(t.Context())
	s.Send(step("mount"))
	if line := <-first; !strings.Contains(line, `"mount"`) {
		t.Errorf("first line %q", line)
	}
	s.Send(step("lockdown"))
	s.Send(result.Event{Event: result.OutcomeEvent, Reason: result.OK})
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if got := strings.Join(<-all, ", "); got != "step lockdown, outcome " {
		t.Errorf("the rest is %q", got)
	}
	s.Send(step("mount"))
	if s.Dropped() != 1 {
		t.Errorf("%d dropped, want the one after Close", s.Dropped())
	}
}

// TestOutcomeSurvivesABrokenStream: a host that gave up on the request, for it was silent too long, still hears how it ended.
func TestOutcomeSurvivesABrokenStream(t *testing.T) {
	for name, answer := range map[string]string{
		"hangs up":       "",
		"refuses":        "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
		"has had enough": "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			first, second := make(chan bool), make(chan []string, 1)
			conns := 0
			v := NewVsock(&http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
				conns++
				n := conns
				guest, host := net.Pipe()
				go func() {
					defer host.Close()
					r, err := http.ReadRequest(bufio.NewReaderSize(host, 16))
					if err != nil {
						t.Error(err)
						return
					}
					if n == 1 {
						if _, err := bufio.NewReaderSize(r.Body, 16).ReadString('\n'); err != nil {
							t.Error(err)
						}
						io.WriteString(host, answer)
						close(first)
						return
					}
					second <- readLines(t, r.Body)
					io.WriteString(host, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
				}()
				return guest, nil
			}}})
			s := v.Events(t.Context())
			s.Send(step("mount"))
			<-first
			s.Send(step("execute")) // the client may find out only when it writes, so this one may be lost
			<-s.ended
			s.Send(step("seal"))
			s.Send(result.Event{Event: result.OutcomeEvent, Reason: result.OK})
			if err := s.Close(t.Context()); err == nil && name != "has had enough" {
				t.Error("no error says that events were lost")
			}
			if got := strings.Join(<-second, ", "); !strings.HasSuffix(got, "step seal, outcome ") {
				t.Errorf("the second request has %q", got)
			}
		})
	}
}

func TestEventsReportRefusal(t *testing.T) {
	v := host(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) })
	s := v.Events(t.Context())
	s.Send(step("mount"))
	if err := s.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "418") {
		t.Errorf("error %v, want status 418", err)
	}
	dead := NewVsock(&http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("nobody there")
	}}})
	s = dead.Events(t.Context())
	for range maxQueued * 3 {
		s.Send(progress)
	}
	if err := s.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "nobody there") {
		t.Errorf("error %v, want the dial's", err)
	}
}

// stalled is a transport whose host reads the first line, then nothing until it is told to.
type stalled struct {
	t      *testing.T
	resume chan struct{}
	lines  chan []string
}

func (s stalled) RoundTrip(r *http.Request) (*http.Response, error) {
	defer r.Body.Close()
	in := bufio.NewReaderSize(r.Body, 16)
	if _, err := in.ReadString('\n'); err != nil {
		return nil, err
	}
	select {
	case <-s.resume:
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	}
	s.lines <- readLines(s.t, in)
	return &http.Response{StatusCode: 204, Body: http.NoBody}, nil
}

func TestEventsNeverHoldUpTheBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stalled{t, make(chan struct{}), make(chan []string, 1)}
		es := NewVsock(&http.Client{Transport: s}).Events(t.Context())
		es.Send(step("mount"))
		synctest.Wait() // the host has read it, and stops
		es.Send(step("in-flight"))
		synctest.Wait()
		begin := time.Now()
		for i := range maxProgress + 5 {
			es.Send([]result.Event{progress, output}[i%2])
		}
		for range maxQueued - maxProgress + 3 {
			es.Send(step("pull"))
		}
		es.Send(result.Event{Event: result.OutcomeEvent, Reason: result.OK})
		if took := time.Since(begin); took != 0 {
			t.Errorf("Send took %v", took)
		}
		if n := es.Dropped(); n != 5+3 {
			t.Errorf("%d dropped, want 5 of progress and output, and 3 steps", n)
		}
		close(s.resume)
		if err := es.Close(t.Context()); err != nil {
			t.Error(err)
		}
		lines := <-s.lines
		if len(lines) != maxQueued+2 || lines[len(lines)-1] != "outcome " {
			t.Errorf("%d lines, the last is %q; want %d that end with the outcome", len(lines), lines[len(lines)-1], maxQueued+2)
		}
		if n := strings.Count(strings.Join(lines, "\n"), "step pull"); n != maxQueued-maxProgress {
			t.Errorf("%d steps found room beside the progress, want %d", n, maxQueued-maxProgress)
		}
	})
}

func TestCloseIsBoundedByItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stalled{t, make(chan struct{}), make(chan []string, 1)}
		es := NewVsock(&http.Client{Transport: s}).Events(t.Context())
		es.Send(step("mount"))
		es.Send(result.Event{Event: result.OutcomeEvent, Reason: result.OK})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		if err := es.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline", err)
		}
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
		synctest.Wait() // and nothing is left running, or synctest complains
	})
}

func TestPut(t *testing.T) {
	for _, tc := range []struct {
		name string
		body string
		size int64
		code int
		err  string
	}{
		{"a result", "sealed", 6, 204, ""},
		{"an empty one", "", 0, 200, ""},
		{"refused", "sealed", 6, 507, "status 507"},
		{"redirected", "sealed", 6, 304, "status 304"},
		{"shorter than announced", "seal", 6, 200, "ContentLength"},
		{"longer than announced", "sealed and more", 6, 200, "ContentLength"},
		{"of no size", "sealed", -1, 200, "negative"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := host(t, func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if r.Method != "PUT" || r.URL.Path != "/v1/result" || r.ContentLength != tc.size || len(r.TransferEncoding) > 0 {
					t.Errorf("%s %s, length %d, encoding %v", r.Method, r.URL, r.ContentLength, r.TransferEncoding)
				}
				if tc.err == "" && (err != nil || string(b) != tc.body) {
					t.Errorf("body %q, %v", b, err)
				}
				w.WriteHeader(tc.code)
			})
			err := v.PutResult(t.Context(), strings.NewReader(tc.body), tc.size)
			if (tc.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
		})
	}
}

func TestPutReceipt(t *testing.T) {
	v := host(t, func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != "{}" || r.URL.Path != "/v1/receipt" {
			t.Errorf("%s: %q, %v", r.URL, b, err)
		}
		w.WriteHeader(http.StatusCreated)
	})
	if err := v.PutReceipt(t.Context(), []byte("{}")); err != nil {
		t.Error(err)
	}
}

func TestPutEndsWithItsContext(t *testing.T) {
	v := host(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // only then does the server notice that the client leaves
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := v.PutReceipt(ctx, []byte("{}")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline", err)
	}
}
