package sink

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/ampoule-vm/ampoule/image"
)

// An ociDouble is a registry that wants tokens for pushing, over TLS, and does as told.
type ociDouble struct {
	*httptest.Server
	t         *testing.T
	mu        sync.Mutex
	asked     []string
	referrers bool           // it knows the referrers API, and says so
	says      map[string]int // the status that a request that begins so gets once
	elsewhere string         // where uploads are sent
	scopes    []string
}

func newOCI(t *testing.T) *ociDouble {
	d := &ociDouble{t: t, says: map[string]int{}}
	var inner [2]http.Handler
	for i := range inner {
		inner[i] = registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(i == 1))
	}
	d.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		what := r.Method + " " + r.URL.Path
		if r.URL.Path == "/token" {
			if user, password, _ := r.BasicAuth(); user != "owner" || password != "5ec4e7" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			d.scopes = append(d.scopes, r.URL.Query().Get("scope"))
			io.WriteString(w, `{"token":"t0k3n"}`)
			return
		}
		d.asked = append(d.asked, what)
		if r.Header.Get("Authorization") != "Bearer t0k3n" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+d.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		for begin, status := range d.says {
			if strings.HasPrefix(what, begin) {
				delete(d.says, begin)
				io.CopyN(io.Discard, r.Body, 100)
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+d.URL+`/token",service="x"`)
				w.WriteHeader(status)
				return
			}
		}
		if d.elsewhere != "" && r.Method == http.MethodPost {
			w.Header().Set("Location", d.elsewhere)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		h := inner[0]
		if d.referrers {
			h = inner[1]
			if b, err := io.ReadAll(r.Body); err == nil {
				r.Body = io.NopCloser(bytes.NewReader(b))
				var m struct{ Subject *struct{ Digest string } }
				if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") && json.Unmarshal(b, &m) == nil && m.Subject != nil {
					w.Header().Set("OCI-Subject", m.Subject.Digest)
				}
			}
		}
		h.ServeHTTP(w, r)
	}))
	d.Server.Config.ErrorLog = log.New(io.Discard, "", 0)
	d.StartTLS()
	t.Cleanup(d.Close)
	return d
}

func (d *ociDouble) open(path string) Sink {
	d.t.Helper()
	s, err := OpenOCI("docker://"+strings.TrimPrefix(d.URL, "https://")+path, image.Options{Transport: d.Client().Transport, Login: &image.Login{User: "owner", Password: "5ec4e7"}})
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// get reads what is there, as JSON.
func (d *ociDouble) get(path string, v any) []byte {
	d.t.Helper()
	req, err := http.NewRequest("GET", d.URL+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer t0k3n")
	resp, err := d.Client().Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		d.t.Fatalf("GET %s: %d %s, %v", path, resp.StatusCode, b, err)
	}
	if err := json.Unmarshal(b, v); v != nil && err != nil {
		d.t.Fatal(err)
	}
	return b
}

type ociManifest struct {
	MediaType    string             `json:"mediaType"`
	ArtifactType string             `json:"artifactType"`
	Config       image.Descriptor   `json:"config"`
	Layers       []image.Descriptor `json:"layers"`
	Subject      *image.Descriptor  `json:"subject"`
}

type ociIndex struct {
	MediaType string             `json:"mediaType"`
	Manifests []image.Descriptor `json:"manifests"`
}

// TestRegistry: the result is an artifact of one file, and the receipt one of its referrers, whether the registry lists those or not.
func TestRegistry(t *testing.T) {
	for name, referrers := range map[string]bool{"with a list of referrers": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			d := newOCI(t)
			d.referrers = referrers
			s := d.open("/team/results:run-1")
			r, want := aResult(1 << 20)
			if err := s.PutResult(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the answer may have been lost
				if err := s.PutReceipt(t.Context(), []byte(`{"receipt":1}`)); err != nil {
					t.Fatal(err)
				}
			}
			var m ociManifest
			raw := d.get("/v2/team/results/manifests/run-1", &m)
			if m.ArtifactType != ResultType || m.Config.MediaType != "application/vnd.oci.empty.v1+json" || len(m.Layers) != 1 || m.Layers[0].Annotations[title] != r.Name ||
				m.Layers[0].MediaType != ResultType+".tar+zstd+age" {
				t.Errorf("manifest %s", raw)
			}
			if got := d.get("/v2/team/results/blobs/"+m.Layers[0].Digest, nil); !bytes.Equal(got, want) {
				t.Errorf("a result of %d other bytes", len(got))
			}
			digest := fmt.Sprintf("sha256:%x", sha256.Sum256(raw))
			list := "/v2/team/results/referrers/" + digest
			if !referrers {
				list = "/v2/team/results/manifests/" + strings.Replace(digest, ":", "-", 1)
			}
			var index ociIndex
			d.get(list, &index)
			// The library's registry lists the config's type in the place of the artifact's.
			if len(index.Manifests) != 1 || !referrers && index.Manifests[0].ArtifactType != ReceiptType {
				t.Fatalf("referrers %+v", index)
			}
			var receipt ociManifest
			d.get("/v2/team/results/manifests/"+index.Manifests[0].Digest, &receipt)
			if receipt.Subject == nil || receipt.Subject.Digest != digest || receipt.Subject.Size != int64(len(raw)) {
				t.Errorf("the receipt is about %+v", receipt.Subject)
			}
			if got := d.get("/v2/team/results/blobs/"+receipt.Layers[0].Digest, nil); string(got) != `{"receipt":1}` {
				t.Errorf("receipt %s", got)
			}
			if len(d.scopes) == 0 || d.scopes[0] != "repository:team/results:pull,push" {
				t.Errorf("tokens for %q", d.scopes)
			}
		})
	}
}

// TestRegistryKeepsOtherReferrers of the same result, of which this code knows nothing.
func TestRegistryKeepsOtherReferrers(t *testing.T) {
	d := newOCI(t)
	s := d.open("/team/results")
	r, _ := aResult(10)
	if err := s.PutResult(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	subject := s.(*oci).result.Digest
	tag := "/v2/team/results/manifests/" + strings.Replace(subject, ":", "-", 1)
	other := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + subject + `","size":1,"artifactType":"a/signature","new":true}`
	req, err := http.NewRequest("PUT", d.URL+tag, strings.NewReader(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`+other+`]}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer t0k3n")
	req.Header.Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	resp, err := d.Client().Do(req)
	if err != nil || resp.StatusCode != 201 {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	if err := s.PutReceipt(t.Context(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if b := d.get(tag, nil); !bytes.Contains(b, []byte(other)) || bytes.Count(b, []byte(`"artifactType"`)) != 2 {
		t.Errorf("index %s", b)
	}
}

func TestRegistryThatFails(t *testing.T) {
	r, _ := aResult(3 << 20)
	for name, c := range map[string]struct {
		set  func(*ociDouble)
		want string // "" is taken in the end
	}{
		"busy at the upload":             {func(d *ociDouble) { d.says["PUT /v2/team/results/blobs/"] = 503 }, ""},
		"busy at the manifest":           {func(d *ociDouble) { d.says["PUT /v2/team/results/manifests/"] = 429 }, ""},
		"busy at the start":              {func(d *ociDouble) { d.says["HEAD "] = 500 }, ""},
		"a token that is over":           {func(d *ociDouble) { d.says["PUT /v2/team/results/manifests/"] = 401 }, ""},
		"no right to push":               {func(d *ociDouble) { d.says["POST "] = 403 }, "status 403"},
		"uploads go to cloud metadata":   {func(d *ociDouble) { d.elsewhere = "https://169.254.169.254/x" }, "opens no upload"},
		"uploads go over http":           {func(d *ociDouble) { d.elsewhere = "http://h.example/x" }, "opens no upload"},
		"the upload is sent elsewhere":   {func(d *ociDouble) { d.says["PUT /v2/team/results/blobs/"] = 307 }, "307"},
		"the manifest is not its digest": {func(d *ociDouble) { d.says["PUT /v2/team/results/manifests/"] = 400 }, "status 400"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newOCI(t)
			c.set(d)
			err := d.open("/team/results").PutResult(t.Context(), r)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "5ec4e7") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

// TestUploadElsewhereGetsNoToken: a registry may name another server for the bytes, which must not learn who we are there.
func TestUploadElsewhereGetsNoToken(t *testing.T) {
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			t.Errorf("it gets %q", a)
		}
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
	}))
	defer other.Close()
	d := newOCI(t)
	d.elsewhere = other.URL + "/upload?a=b"
	d.says["PUT /v2/team/results/manifests/"] = 400
	r, _ := aResult(10)
	if err := d.open("/team/results").PutResult(t.Context(), r); err == nil || !strings.Contains(err.Error(), "manifest") {
		t.Errorf("%v, want to get as far as the manifest", err)
	}
}

func TestRegistryWithoutAResultTakesNoReceipt(t *testing.T) {
	if err := newOCI(t).open("/team/results").PutReceipt(context.Background(), nil); err == nil {
		t.Error("a receipt of nothing was taken")
	}
}
