package qemu

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/internal/apitest"
	"github.com/ampoule-vm/ampoule/internal/result"
)

const hostAPI = "../docs/host-api.yaml"

// TestServerIsAsDocumented provokes every answer that the document has, by requests as anybody's client would make them.
func TestServerIsAsDocumented(t *testing.T) {
	doc, err := apitest.Load(hostAPI)
	if err != nil {
		t.Fatal(err)
	}
	outcome := string(finalEvent.Line())
	type request struct{ method, path, contentType, rng, body string }
	put := func(path, body string) request {
		return request{method: "PUT", path: path, contentType: "application/octet-stream", body: body}
	}
	post := func(body string) request {
		return request{method: "POST", path: "/v1/events", contentType: "application/x-ndjson", body: body}
	}
	part := put("/v1/result", "rest")
	part.rng = "bytes 4-7/8"
	partOfReceipt := part
	partOfReceipt.path = "/v1/receipt"
	partOfLog := partOfReceipt
	partOfLog.path = "/v1/log"
	full := strings.Repeat("x", maxReceipt+1)
	noDisk := func(s *server) error { return os.RemoveAll(s.cfg.Dir) }
	var seen []string
	for name, c := range map[string]struct {
		prepare  func(*server) error
		requests []request
		want     int // of the last one
	}{
		"the manifest":            {nil, []request{{method: "GET", path: "/v1/manifest"}}, 200},
		"events":                  {nil, []request{post(string(step("mount", 1).Line()) + outcome)}, 204},
		"a line that is no event": {nil, []request{post("hello\n")}, 400},
		"an event after the last": {nil, []request{post(outcome), post(outcome)}, 409},
		"more events than kept":   {func(s *server) error { s.eventSize = maxEvents; return nil }, []request{post(outcome)}, 413},
		"no room for events": {func(s *server) (err error) {
			s.eventFile.Close()
			s.eventFile, err = os.Open(s.eventFile.Name())
			return err
		}, []request{post(outcome)}, 507},
		"a result":                 {nil, []request{put("/v1/result", ageMagic+"rest")}, 204},
		"a part of a result":       {nil, []request{part}, 400},
		"a second result":          {nil, []request{put("/v1/result", "a"), put("/v1/result", "b")}, 409},
		"a result over the limit":  {func(s *server) error { s.cfg.ResultLimit = 3; return nil }, []request{put("/v1/result", "four")}, 413},
		"no disk for a result":     {noDisk, []request{put("/v1/result", "a")}, 500},
		"a log":                    {nil, []request{put("/v1/log", "sealed")}, 204},
		"a part of a log":          {nil, []request{partOfLog}, 400},
		"a second log":             {nil, []request{put("/v1/log", "sealed"), put("/v1/log", "sealed")}, 409},
		"a log over the limit":     {nil, []request{put("/v1/log", full)}, 413},
		"no disk for a log":        {noDisk, []request{put("/v1/log", "sealed")}, 500},
		"a receipt":                {nil, []request{put("/v1/receipt", "{}")}, 204},
		"a part of a receipt":      {nil, []request{partOfReceipt}, 400},
		"a second receipt":         {nil, []request{put("/v1/receipt", "{}"), put("/v1/receipt", "{}")}, 409},
		"a receipt over the limit": {nil, []request{put("/v1/receipt", full)}, 413},
		"no disk for a receipt":    {noDisk, []request{put("/v1/receipt", "{}")}, 500},
	} {
		t.Run(name, func(t *testing.T) {
			s, client := guest(t, Config{Manifest: []byte(`{"version": 1}`)})
			if c.prepare != nil {
				if err := c.prepare(s); err != nil {
					t.Fatal(err)
				}
			}
			var last apitest.Exchange
			for _, q := range c.requests {
				req, err := http.NewRequest(q.method, "http://host"+q.path, strings.NewReader(q.body))
				if err != nil {
					t.Fatal(err)
				}
				for name, v := range map[string]string{"Content-Type": q.contentType, "Content-Range": q.rng} {
					if v != "" {
						req.Header.Set(name, v)
					}
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if err := errors.Join(err, resp.Body.Close()); err != nil {
					t.Fatal(err)
				}
				last = apitest.Exchange{Request: req, Sent: []byte(q.body), Status: resp.StatusCode, Header: resp.Header, Body: body}
				if err := doc.Check(last); err != nil {
					t.Error(err)
				}
			}
			if last.Status != c.want {
				t.Errorf("status %d, want %d: %s", last.Status, c.want, last.Body)
			}
			seen = append(seen, last.String())
		})
	}
	slices.Sort(seen)
	if d := cmp.Diff(doc.Answers(), seen); d != "" {
		t.Errorf("answers (-documented +seen):\n%s", d)
	}
}

// The bounds in the document are the code's.
func TestDocumentedBounds(t *testing.T) {
	b, err := os.ReadFile(hostAPI)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(b)), " ")
	for _, c := range []struct {
		says string
		is   int64
		want int64
	}{
		{"is 16 MiB of ampoule run", maxEvents, 16 << 20}, {"is 4 GiB of ampoule run", defaultResultLimit, 4 << 30},
		{"larger than 4 MiB", maxReceipt, 4 << 20}, {"most 64 KiB and an instance of events.schema.json", result.MaxEventLine, 64 << 10},
	} {
		if !strings.Contains(text, c.says) || c.is != c.want {
			t.Errorf("the document says %q: %v; the bound is %d", c.says, bytes.Contains(b, []byte(c.says)), c.is)
		}
	}
}
