package main

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ampoule-vm/ampoule/internal/guest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/sink"
	"github.com/ampoule-vm/ampoule/internal/source"
)

// A hostileHost does to each connection what behave says, and counts what the guest takes of it.
type hostileHost struct {
	behave func(net.Conn)
	taken  atomic.Int64
}

func (h *hostileHost) dial(context.Context) (net.Conn, error) {
	guest, host := net.Pipe()
	go func() {
		defer host.Close()
		h.behave(counted{host, &h.taken})
	}()
	return guest, nil
}

type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// asked waits for the beginning of a request, and has the rest of it read. Without one, net/http takes an answer or refuses it,
// as it sees it after its own sending or before.
func asked(c net.Conn) {
	c.Read(make([]byte, 1))
	go io.Copy(io.Discard, c)
}

// says answers with text, whatever is asked, while it reads all that comes.
func says(text string) func(net.Conn) {
	return func(c net.Conn) {
		asked(c)
		io.WriteString(c, text)
		time.Sleep(hangs)
	}
}

// repeats says text first, and then part again and again.
func repeats(text, part string, every time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		asked(c)
		_, err := io.WriteString(c, text)
		for err == nil {
			time.Sleep(every)
			_, err = io.WriteString(c, part)
		}
	}
}

// either: net/http sees the answer that is one too many in time, or it does not.
const either = "either"

var block = strings.Repeat("x", 64<<10)

// hostile are what a host may do to a request. Some of it is an answer: then what counts is that it is bounded.
var hostile = map[string]struct {
	behave func(net.Conn)
	fine   string // operations that take it as success, or either
}{
	"hangs up":                       {func(net.Conn) {}, ""},
	"neither reads nor speaks":       {func(net.Conn) { time.Sleep(hangs) }, ""},
	"reads and does not speak":       {says(""), ""},
	"reads a byte a minute":          {func(c net.Conn) { readSlowly(c) }, ""},
	"speaks garbage":                 {says("\x00\xff\x16\x03\x01 hello\r\n\r\n"), ""},
	"speaks garbage for ever":        {repeats("", block, 0), ""},
	"speaks HTTP/2":                  {says("HTTP/2.0 200 OK\r\n\r\n"), "PUT"},
	"switches protocols":             {says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: shell\r\nConnection: Upgrade\r\n\r\n"), ""},
	"continues for ever":             {repeats("", "HTTP/1.1 100 Continue\r\n\r\n", 0), ""},
	"has hints for ever":             {repeats("", "HTTP/1.1 103 Early Hints\r\nLink: "+block[:1000]+"\r\n\r\n", 0), ""},
	"sends headers for ever":         {repeats("HTTP/1.1 200 OK\r\n", "X: "+block[:1000]+"\r\n", 0), ""},
	"sends one header for ever":      {repeats("HTTP/1.1 200 OK\r\nX: ", block, 0), ""},
	"sends a header a byte a minute": {repeats("HTTP/1.1 200 OK\r\nX: ", "x", time.Minute), ""},
	"sends a body a byte a minute":   {repeats("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "x", time.Minute), "PUT"},
	"sends a body for ever":          {repeats("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", block, 0), "PUT"},
	"sends chunks for ever":          {repeats("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "10000\r\n"+block+"\r\n", 0), "PUT"},
	"sends 100 MB":                   {repeats("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", block, 0), "PUT"},
	"says 9 EB":                      {says("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n"), "PUT"},
	"says a negative length":         {says("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), ""},
	"says two lengths":               {says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), ""},
	"breaks off in the body": {func(c net.Conn) {
		asked(c)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1")
		time.Sleep(time.Second) // a request that is not read to its end fails
	}, "PUT"},
	"redirects to another path": {says("HTTP/1.1 307 Temporary Redirect\r\nLocation: /v1/other\r\nContent-Length: 0\r\n\r\n"), ""},
	"redirects to the network":  {says("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"), ""},
	"asks for a password":       {says("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"), ""},
	"fails":                     {says("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"), ""},
	"answers twice":             {says("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"), either},
	"answers before it is asked": {func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
		io.Copy(io.Discard, c)
	}, either},
	"compresses a bomb": {repeats("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n", "\x1f\x8b"+block, 0), "PUT"},
}

func readSlowly(c net.Conn) {
	for b := make([]byte, 1); ; time.Sleep(time.Minute) {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

// TestHostileHostCostsAvailabilityOnly: each request ends within its step's time, whatever the host does, and takes no more of it than
// a manifest may have, headers and buffers on top.
func TestHostileHostCostsAvailabilityOnly(t *testing.T) {
	const taken = source.MaxSize + 256<<10
	limits := map[string]time.Duration{"GET /v1/manifest": 2 * time.Minute, "PUT /v1/result": 30 * time.Minute, "PUT /v1/receipt": 30 * time.Minute}
	for name, c := range hostile {
		for operation, limit := range limits {
			t.Run(operation+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h := &hostileHost{behave: c.behave}
					client := guest.HostClient(h.dial)
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					defer cancel()
					begin := time.Now()
					got, err := askHost(ctx, client, operation)
					if time.Since(begin) > limit {
						t.Errorf("took %v", time.Since(begin))
					}
					if fine := c.fine != "" && strings.HasPrefix(operation, c.fine); c.fine != either && fine != (err == nil) {
						t.Errorf("error %v, and it is fine: %v", err, fine)
					}
					if len(got) > 0 && err != nil {
						t.Errorf("%d bytes beside an error", len(got))
					}
					cancel()
					client.CloseIdleConnections()
					synctest.Wait()
					if n := h.taken.Load(); n > taken {
						t.Errorf("took %d bytes of the host, want at most %d", n, taken)
					}
					time.Sleep(hangs) // a bubble must not end before its goroutines
				})
			})
		}
	}
}

// TestHostileHostOfEvents: the boot goes on at its own pace whatever becomes of its events, what waits for the host is bounded, and the
// end of it is as well.
func TestHostileHostOfEvents(t *testing.T) {
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hostileHost{behave: c.behave}
				client := guest.HostClient(h.dial)
				m, _, _ := bareMachine()
				m.console = io.Discard
				m.host = func(ctx context.Context, _ uint32) host {
					v := sink.NewVsock(client)
					return vsockHost{v, v.Events(ctx)}
				}
				var before, after runtime.MemStats
				// A workload that has 32 MiB to say.
				steps, _ := broken(len(sequence)-1, func(r *run, _ context.Context) error {
					text := strings.Repeat("y", result.MaxOutputText)
					for i := range int64(2000) {
						r.show(result.Stdout, text, 0, (i+1)*int64(len(text)))
					}
					runtime.GC()
					runtime.ReadMemStats(&after)
					return errors.New(secret)
				})
				runtime.GC()
				runtime.ReadMemStats(&before)
				begin := time.Now()
				boot(t.Context(), m, steps)
				if took := time.Since(begin); took > reportLimit {
					t.Errorf("the boot took %v", took)
				}
				if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
					t.Errorf("%d MiB are held for 32 MiB of events", grown>>20)
				}
				client.CloseIdleConnections()
				synctest.Wait()
				if n := h.taken.Load(); n > 512<<10 {
					t.Errorf("took %d bytes of the host", n)
				}
				time.Sleep(hangs)
			})
		})
	}
}
