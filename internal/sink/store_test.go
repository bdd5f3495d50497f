package sink

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/result"
)

const sig = "sig=5ec4e7"

// aResult is size random bytes.
func aResult(size int) (Result, []byte) {
	b := make([]byte, size)
	rand.Read(b)
	return Result{bytes.NewReader(b), result.SealedName, int64(size), sha256.Sum256(b)}, b
}

// A double is a store that breaks off as told, and writes down what it was asked.
type double struct {
	*httptest.Server
	t  *testing.T
	mu sync.Mutex

	asked  []string          // method, path, and query without the signature
	blobs  map[string][]byte // by path
	blocks map[string][]byte // by id or number
	breaks map[string]int    // a request that begins so is cut after so many bytes of its body, once
	says   map[string][]int  // statuses that a request that begins so gets first
	have   []byte            // of a resumable upload
	keeps  int               // of a body that breaks off, the store keeps so much of it
	lost   int               // sessions that were opened and are forgotten
}

func serve(t *testing.T, handle func(*double, http.ResponseWriter, *http.Request, []byte)) *double {
	d := &double{t: t, blobs: map[string][]byte{}, blocks: map[string][]byte{}, breaks: map[string]int{}, says: map[string][]int{}}
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, signed := strings.CutPrefix(r.URL.RawQuery, sig)
		what := strings.TrimSuffix(r.Method+" "+r.URL.Path+"?"+strings.TrimPrefix(rest, "&"), "?")
		d.mu.Lock()
		d.asked = append(d.asked, what)
		cut, breaks := d.breaks[what]
		delete(d.breaks, what)
		var status int
		if s := d.says[what]; len(s) > 0 {
			status, d.says[what] = s[0], s[1:]
		}
		d.mu.Unlock()
		if r.ContentLength < 0 || len(r.TransferEncoding) > 0 {
			t.Errorf("%s: no Content-Length", what)
		}
		if breaks {
			b, _ := io.ReadAll(io.LimitReader(r.Body, int64(cut)))
			d.mu.Lock()
			d.have = append(d.have, b[:min(len(b), d.keeps)]...)
			d.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		b, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
			return
		case !signed:
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, "<Error><Code>AccessDenied</Code></Error>")
			return
		case status != 0:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(status)
			return
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		handle(d, w, r, b)
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *double) at(path string) string { return d.URL + path + "?" + sig }

func (d *double) open(doc map[string]any) Sink {
	d.t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		d.t.Fatal(err)
	}
	u, err := ParseUpload(b, true)
	if err != nil {
		d.t.Fatal(err)
	}
	tr, err := image.NewTransport(nil, "")
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(tr.CloseIdleConnections)
	return u.Open(tr)
}

func (d *double) asks(want ...string) {
	d.t.Helper()
	if got := strings.Join(d.asked, "\n"); got != strings.Join(want, "\n") {
		d.t.Errorf("the store was asked\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func keep(d *double, _ http.ResponseWriter, r *http.Request, b []byte) { d.blobs[r.URL.Path] = b }

func TestPutWhole(t *testing.T) {
	d := serve(t, func(d *double, w http.ResponseWriter, r *http.Request, b []byte) {
		if r.Header.Get("X-Amz-Server-Side-Encryption") == "" && r.URL.Path == "/r" || r.Header.Get("Content-Type") != "" || r.Header.Get(blobType) != "" {
			t.Errorf("%s: headers %v", r.URL.Path, r.Header)
		}
		keep(d, w, r, b)
	})
	d.breaks["PUT /r"], d.says["PUT /r"] = 1<<20, []int{503, 429}
	s := d.open(map[string]any{"url": d.at("/r"), "receipt_url": d.at("/receipt"), "headers": map[string]string{"x-amz-server-side-encryption": "AES256"}})
	r, want := aResult(3 << 20)
	if err := s.PutResult(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := s.PutReceipt(t.Context(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	d.asks("PUT /r", "PUT /r", "PUT /r", "PUT /receipt")
	if !bytes.Equal(d.blobs["/r"], want) || string(d.blobs["/receipt"]) != "{}" {
		t.Errorf("it has %d bytes and receipt %q", len(d.blobs["/r"]), d.blobs["/receipt"])
	}
}

// gcsStore is Google's resumable protocol: 308 and Range until all is there.
func gcsStore(d *double, w http.ResponseWriter, r *http.Request, b []byte) {
	id := r.URL.Query().Get("upload_id")
	if r.Method == http.MethodPost {
		if r.Header.Get("X-Goog-Resumable") != "start" || len(b) > 0 || r.Header.Get("X-Goog-Meta-Run") != "7" {
			d.t.Errorf("start: %d bytes, headers %v", len(b), r.Header)
		}
		d.have = nil
		d.blocks["session"] = []byte(strconv.Itoa(len(d.asked)))
		w.Header().Set("Location", d.at("/session")+"&upload_id=s"+string(d.blocks["session"]))
		w.WriteHeader(http.StatusCreated)
		return
	}
	if id != "s"+string(d.blocks["session"]) || d.lost > 0 {
		d.lost--
		w.WriteHeader(http.StatusGone)
		return
	}
	var first, last, size int
	span := r.Header.Get("Content-Range")
	if n, _ := fmt.Sscanf(span, "bytes */%d", &size); n == 1 {
		if len(b) > 0 {
			d.t.Errorf("%s with %d bytes", span, len(b))
		}
	} else if n, _ := fmt.Sscanf(span, "bytes %d-%d/%d", &first, &last, &size); n != 3 || first != len(d.have) || last-first+1 != len(b) {
		d.t.Errorf("Content-Range %q with %d bytes, %d are there", span, len(b), len(d.have))
	}
	if d.have = append(d.have, b...); len(d.have) < size {
		if len(d.have) > 0 {
			w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(d.have)-1))
		}
		w.WriteHeader(http.StatusPermanentRedirect)
		return
	}
	d.blobs["/r"] = d.have
}

func TestGCSResumes(t *testing.T) {
	r, want := aResult(3 << 20)
	const start, session = "POST /r", "PUT /session?upload_id=s1"
	for name, c := range map[string]struct {
		set   func(*double)
		asked []string
	}{
		"nothing breaks":      {func(*double) {}, []string{start, session}},
		"it breaks half-way":  {func(d *double) { d.breaks[session], d.keeps = 2<<20, 1<<20 }, []string{start, session, session, session}},
		"nothing was kept":    {func(d *double) { d.breaks[session], d.keeps = 2<<20, 0 }, []string{start, session, session, session}},
		"all had been kept":   {func(d *double) { d.breaks[session], d.keeps = 3<<20, 3<<20 }, []string{start, session, session}},
		"busy":                {func(d *double) { d.says[session] = []int{503} }, []string{start, session, session, session}},
		"the session is over": {func(d *double) { d.lost = 1 }, []string{start, session, start, "PUT /session?upload_id=s3"}},
		"busy at the start":   {func(d *double) { d.says[start] = []int{500} }, []string{start, start, "PUT /session?upload_id=s2"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, gcsStore)
			c.set(d)
			s := d.open(map[string]any{"method": "gcs", "url": d.at("/r"), "headers": map[string]string{"x-goog-meta-run": "7"}})
			if err := s.PutResult(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			d.asks(c.asked...)
			if !bytes.Equal(d.blobs["/r"], want) {
				t.Errorf("it has %d other bytes", len(d.blobs["/r"]))
			}
		})
	}
	t.Run("a session that its owner opened", func(t *testing.T) {
		d := serve(t, gcsStore)
		d.blocks["session"], d.have = []byte("1"), bytes.Clone(want[:1000])
		if err := d.open(map[string]any{"method": "gcs", "url": d.at("/session") + "&upload_id=s1"}).PutResult(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		d.asks(session, session)
		if !bytes.Equal(d.blobs["/r"], want) {
			t.Errorf("it has %d other bytes", len(d.blobs["/r"]))
		}
	})
	t.Run("a session that its owner opened and that is over", func(t *testing.T) {
		d := serve(t, gcsStore)
		if err := d.open(map[string]any{"method": "gcs", "url": d.at("/session") + "&upload_id=s1"}).PutResult(t.Context(), r); err == nil || strings.Contains(err.Error(), "5ec4e7") {
			t.Errorf("%v, want an error without the signature", err)
		}
		d.asks(session)
	})
}

func TestGCSThatLies(t *testing.T) {
	r, _ := aResult(1000)
	for name, handle := range map[string]func(*double, http.ResponseWriter, *http.Request, []byte){
		"it takes nothing and says to go on": func(_ *double, w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(308) },
		"it has more than there is": func(_ *double, w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("Range", "bytes=0-1000")
			w.WriteHeader(308)
		},
		"its Range is another": func(_ *double, w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("Range", "bytes=5-9")
			w.WriteHeader(308)
		},
	} {
		d := serve(t, handle)
		if err := d.open(map[string]any{"method": "gcs", "url": d.at("/s") + "&upload_id=x"}).PutResult(t.Context(), r); err == nil || len(d.asked) > 2 {
			t.Errorf("%s: %v after %d requests", name, err, len(d.asked))
		}
	}
	d := serve(t, func(_ *double, w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("Location", "https://169.254.169.254/x")
		w.WriteHeader(201)
	})
	if err := d.open(map[string]any{"method": "gcs", "url": d.at("/s")}).PutResult(t.Context(), r); err == nil {
		t.Error("a session on another host is used")
	}
}

// azureStore is Put Blob, Put Block and Put Block List.
func azureStore(d *double, w http.ResponseWriter, r *http.Request, b []byte) {
	q := r.URL.Query()
	switch q.Get("comp") {
	case "block":
		d.blocks[q.Get("blockid")] = b
	case "blocklist":
		if r.Header.Get("X-Ms-Meta-Run") != "7" || !strings.HasPrefix(string(b), `<?xml version="1.0" encoding="utf-8"?><BlockList><Latest>`) {
			d.t.Errorf("block list %s, headers %v", b, r.Header)
		}
		var all []byte
		for _, part := range strings.Split(string(b), "<Latest>")[1:] {
			id, _, _ := strings.Cut(part, "</Latest>")
			all = append(all, d.blocks[id]...)
		}
		d.blobs[r.URL.Path] = all
	default:
		if r.Header.Get("x-ms-blob-type") != "BlockBlob" {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, "<Error><Code>MissingRequiredHeader</Code></Error>")
			return
		}
		d.blobs[r.URL.Path] = b
	}
	w.WriteHeader(http.StatusCreated)
}

func TestAzureBlocks(t *testing.T) {
	block := func(n int) string {
		return fmt.Sprintf("PUT /c/r?comp=block&blockid=%s", url.QueryEscape([]string{"MDAwMDAwMDA=", "MDAwMDAwMDE=", "MDAwMDAwMDI="}[n]))
	}
	const list = "PUT /c/r?comp=blocklist"
	for name, c := range map[string]struct {
		size  int
		set   func(*double)
		asked []string
	}{
		"small":               {1 << 20, func(*double) {}, []string{"PUT /c/r"}},
		"large":               {20 << 20, func(*double) {}, []string{block(0), block(1), block(2), list}},
		"a block breaks off":  {20 << 20, func(d *double) { d.breaks[block(1)] = 1 << 20 }, []string{block(0), block(1), block(1), block(2), list}},
		"the list breaks off": {20 << 20, func(d *double) { d.breaks[list] = 10 }, []string{block(0), block(1), block(2), list, list}},
		"busy":                {20 << 20, func(d *double) { d.says[block(2)] = []int{503} }, []string{block(0), block(1), block(2), block(2), list}},
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, azureStore)
			c.set(d)
			s := d.open(map[string]any{"method": "azure", "url": d.at("/c/r"), "headers": map[string]string{"x-ms-meta-run": "7"}})
			r, want := aResult(c.size)
			if err := s.PutResult(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			d.asks(c.asked...)
			if !bytes.Equal(d.blobs["/c/r"], want) {
				t.Errorf("it has %d other bytes", len(d.blobs["/c/r"]))
			}
		})
	}
}

// s3Store is UploadPart and CompleteMultipartUpload.
func s3Store(d *double, w http.ResponseWriter, r *http.Request, b []byte) {
	if r.Method == http.MethodPut {
		n := r.URL.Query().Get("partNumber")
		d.blocks[n] = b
		w.Header().Set("ETag", `"tag-`+n+`"`)
		return
	}
	var all []byte
	want := `<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`
	for i := 1; i <= len(d.blocks); i++ {
		n := strconv.Itoa(i)
		all = append(all, d.blocks[n]...)
		want += "<Part><PartNumber>" + n + `</PartNumber><ETag>"tag-` + n + `"</ETag></Part>`
	}
	if want += "</CompleteMultipartUpload>"; string(b) != want {
		d.t.Errorf("complete: %s\nwant %s", b, want)
	}
	if d.lost > 0 {
		d.lost--
		io.WriteString(w, "<Error><Code>InternalError</Code></Error>")
		return
	}
	d.blobs["/r"] = all
	io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
}

func TestS3Parts(t *testing.T) {
	part := func(n int) string { return fmt.Sprintf("PUT /r?partNumber=%d", n) }
	const complete = "POST /r?uploadId=u"
	for name, c := range map[string]struct {
		size  int
		set   func(*double)
		asked []string
		err   string
	}{
		"one part":             {1000, func(*double) {}, []string{part(1), complete}, ""},
		"all parts":            {3 * s3MinPart, func(*double) {}, []string{part(1), part(2), part(3), complete}, ""},
		"a part breaks off":    {2*s3MinPart + 1, func(d *double) { d.breaks[part(2)] = 1 << 20 }, []string{part(1), part(2), part(2), part(3), complete}, ""},
		"an error after a 200": {1000, func(d *double) { d.lost = 1 }, []string{part(1), complete, complete}, ""},
		"too few parts":        {3*s3MinPart + 1, func(*double) {}, nil, "it needs 4"},
		"refused":              {1000, func(d *double) { d.says[part(1)] = []int{404} }, []string{part(1)}, "status 404"},
	} {
		t.Run(name, func(t *testing.T) {
			d := serve(t, s3Store)
			c.set(d)
			var parts []string
			for i := range 3 {
				parts = append(parts, d.at("/r")+fmt.Sprintf("&partNumber=%d", i+1))
			}
			s := d.open(map[string]any{"parts": parts, "part_bytes": s3MinPart, "complete_url": d.at("/r") + "&uploadId=u"})
			r, want := aResult(c.size)
			err := s.PutResult(t.Context(), r)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "5ec4e7") {
					t.Errorf("%v, want %q", err, c.err)
				}
			} else if err != nil || !bytes.Equal(d.blobs["/r"], want) {
				t.Errorf("it has %d other bytes, %v", len(d.blobs["/r"]), err)
			}
			d.asks(c.asked...)
		})
	}
}

// TestFailuresShowNoSignature: what is in the query of a URL is in no error, whatever the server does.
func TestFailuresShowNoSignature(t *testing.T) {
	r, _ := aResult(1000)
	d := serve(t, keep)
	closed := httptest.NewServer(nil)
	closed.Close()
	moved := serve(t, func(d *double, w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("Location", d.at("/other"))
		w.WriteHeader(307)
	})
	for name, c := range map[string]struct{ url, want string }{
		"a wrong signature": {d.URL + "/r?wrong=5ec4e7", "status 403, AccessDenied"},
		"nobody listens":    {closed.URL + "/r?" + sig, "refused"},
		"sent elsewhere":    {moved.at("/r"), "status 307; a sink may not send us elsewhere"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if name != "nobody listens" {
			ctx = t.Context()
		}
		err := d.open(map[string]any{"url": c.url}).PutResult(ctx, r)
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "5ec4e7") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if len(moved.asked) != 1 {
		t.Errorf("it was followed: %q", moved.asked)
	}
}

// TestServerThatStallsIsLeft: the request ends long before the deadline, and another is made.
func TestServerThatStallsIsLeft(t *testing.T) {
	var tries int
	var mu sync.Mutex
	block := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		tries++
		first := tries == 1
		mu.Unlock()
		if first {
			<-block // reads nothing
			return
		}
		io.Copy(io.Discard, r.Body)
	}))
	t.Cleanup(func() { close(block); s.Close() })
	u, err := ParseUpload([]byte(s.URL+"/r?"+sig), true)
	if err != nil {
		t.Fatal(err)
	}
	to := u.Open(http.DefaultTransport).(*store)
	to.stall = 100 * time.Millisecond
	r, _ := aResult(64 << 20) // more than sockets hold
	if err := to.PutResult(t.Context(), r); err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
}
