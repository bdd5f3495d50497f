package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/apitest"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/guest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/sink"
	"github.com/ampoule-vm/ampoule/internal/source"
	"github.com/ampoule-vm/ampoule/internal/timeline"
)

// clientOf is PID 1's client, whose connections go to a TCP address instead of the vsock.
func clientOf(addr string) *http.Client {
	return guest.HostClient(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	})
}

// askHost has PID 1 make one request of the host API, by its operation.
func askHost(ctx context.Context, c *http.Client, operation string) ([]byte, error) {
	v := sink.NewVsock(c)
	switch operation {
	case "GET /v1/manifest":
		s, err := source.Open(cmdline.Source{Kind: "vsock", Arg: "1024"}, func(uint32) *http.Client { return c })
		if err != nil {
			return nil, err
		}
		return s.Fetch(ctx)
	case "POST /v1/events":
		s := v.Events(ctx)
		s.Send(result.Event{Event: result.StepEvent, Step: "mount", State: result.Start})
		s.Send(result.Event{Event: result.OutcomeEvent, Reason: result.OK})
		return nil, s.Close(ctx)
	case "PUT /v1/result":
		return nil, v.PutResult(ctx, strings.NewReader("sealed"), 6)
	case "PUT /v1/log":
		return nil, v.PutLog(ctx, strings.NewReader("sealed"), 6)
	case "PUT /v1/receipt":
		return nil, v.PutReceipt(ctx, []byte("{}"))
	}
	return nil, errors.New(operation + " is not PID 1's")
}

// TestClientIsAsDocumented: a host that was written from docs/host-api.yaml alone understands PID 1, and PID 1 it, whatever
// answer of the document it gives.
func TestClientIsAsDocumented(t *testing.T) {
	doc, err := apitest.Load("../docs/host-api.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, answer := range doc.Answers() {
		t.Run(answer, func(t *testing.T) {
			operation, code, _ := strings.Cut(answer[strings.Index(answer, "/"):], " ")
			operation = answer[:strings.Index(answer, "/")] + operation
			status, err := strconv.Atoi(code)
			if err != nil {
				t.Fatal(err)
			}
			host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				sent, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				e := apitest.Exchange{Request: r, Sent: sent, Status: status}
				seen = append(seen, e.String())
				if err := doc.CheckRequest(e); err != nil {
					t.Error(err)
				}
				if r.Host != "host" || r.ProtoMajor != 1 || r.Method == "PUT" && r.ContentLength != int64(len(sent)) {
					t.Errorf("%s, host %s, length %d of %d", r.Proto, r.Host, r.ContentLength, len(sent))
				}
				if r.Method == "POST" {
					for line := range strings.Lines(string(sent)) {
						if _, err := result.ParseEvent([]byte(line)); err != nil {
							t.Error(err)
						}
					}
				}
				w.WriteHeader(status)
				if status == http.StatusOK {
					io.WriteString(w, "a manifest")
				}
			}))
			defer host.Close()
			c := clientOf(host.Listener.Addr().String())
			defer c.CloseIdleConnections()
			got, err := askHost(t.Context(), c, operation)
			if (err == nil) != (status/100 == 2) || err != nil && !strings.Contains(err.Error(), code) {
				t.Errorf("PID 1 takes %s as %v", answer, err)
			}
			if status == http.StatusOK && string(got) != "a manifest" {
				t.Errorf("PID 1 has %q", got)
			}
		})
	}
	slices.Sort(seen)
	if d := cmp.Diff(doc.Answers(), seen); d != "" {
		t.Errorf("requests (-documented +seen):\n%s", d)
	}
}

// TestExampleHost boots with docs/host.py, which knows the document and nothing of this code, as its host.
func TestExampleHost(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 to run docs/host.py")
	}
	f := newFlow(t)
	dir := t.TempDir()
	job, out := filepath.Join(dir, "job.json"), filepath.Join(dir, "out")
	if err := os.WriteFile(job, f.raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "../docs/host.py", "--manifest", job, "--out", out, "--tcp", "127.0.0.1:0")
	var trouble strings.Builder
	cmd.Stderr = &trouble
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(stdout)
	first, err := said.ReadString('\n')
	if err != nil {
		t.Fatal(errors.Join(err, cmd.Wait()), trouble.String())
	}
	c := clientOf("127.0.0.1:" + first[strings.LastIndex(strings.TrimSpace(first), " ")+1:len(first)-1])
	defer c.CloseIdleConnections()
	f.tamper = func(m *machine) {
		m.fetchManifest = func(ctx context.Context, s cmdline.Source) ([]byte, error) {
			src, err := source.Open(s, func(uint32) *http.Client { return c })
			if err != nil {
				return nil, err
			}
			return src.Fetch(ctx)
		}
		m.host = func(ctx context.Context, _ uint32) host {
			v := sink.NewVsock(c)
			return vsockHost{v, v.Events(ctx)}
		}
	}
	f.boot()
	rest, err := io.ReadAll(said)
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Fatalf("%v: %s%s", err, rest, trouble.String())
	}
	if !strings.HasSuffix(string(rest), "outcome 'ok'\n") {
		t.Errorf("the host said:\n%s", rest)
	}
	for name, to := range map[string]*[]byte{"result.tar.age": &f.peer.result, "receipt.json": &f.peer.receipt} {
		if *to, err = os.ReadFile(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
	f.verdict()
	if b, err := os.ReadFile(filepath.Join(f.opened(), "results/copy.csv")); err != nil || string(b) != "1\n" {
		t.Errorf("result %q, %v", b, err)
	}
	b, err := os.ReadFile(filepath.Join(out, "events.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	events, err := timeline.Read(bytes.NewReader(b))
	if err != nil || events[0].Step != "mount" || events[len(events)-1].Event != result.OutcomeEvent {
		t.Errorf("%v in:\n%s", err, b)
	}
}
