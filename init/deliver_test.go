package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

// A bucket keeps what is PUT, where the URL is signed, and refuses everything once it is full.
type bucket struct {
	*httptest.Server
	mu   sync.Mutex
	got  map[string][]byte
	full bool
}

const signature = "X-Amz-Signature=5ec4e7"

func newBucket(t *testing.T) *bucket {
	b := &bucket{got: map[string][]byte{}}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		b.mu.Lock()
		defer b.mu.Unlock()
		switch {
		case b.full || err != nil || r.Method != http.MethodPut || r.URL.RawQuery != signature:
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, "<Error><Code>AccessDenied</Code></Error>")
		default:
			b.got[r.URL.Path] = body
		}
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *bucket) url(path string) string { return b.URL + path + "?" + signature }

// sinks puts them into the manifest.
func (f *flow) sinks(list string) { f.edit(`"results": {`, `"results": {"sinks": `+list+`,`) }

// late is the sealed log of what came after the result, "" if there was none.
func (f *flow) late() string {
	f.Helper()
	if f.peer.late == nil {
		return ""
	}
	r, err := result.Open(bytes.NewReader(f.peer.late), []age.Identity{f.world.Identity})
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	dir := f.TempDir()
	if err := result.ExtractTar(r, dir, 1<<30); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, result.BootLogName))
	if err != nil {
		f.Fatal(err)
	}
	return string(b)
}

// aboutRun asserts that the host has the run's receipt, whoever has the result.
func (f *flow) aboutRun() {
	f.Helper()
	root, err := verify.LoadRoot(f.world.PSP.RootPEM())
	if err != nil {
		f.Fatal(err)
	}
	v, err := verify.Receipt(f.peer.receipt, verify.Expect{Roots: []verify.Root{root}, Manifest: f.raw})
	if err != nil || !v.Proven || v.Statement.Predicate.Reason != result.OK {
		f.Errorf("the receipt that the host has: %+v, %v", v, err)
	}
}

func (f *flow) tellsNoSignature() {
	f.Helper()
	if all := f.console.String() + f.late() + f.log(); strings.Contains(all, "5ec4e7") {
		f.Errorf("a log has the signature of a URL:\n%s", all)
	}
}

func TestSinks(t *testing.T) {
	t.Run("all of them take it", func(t *testing.T) {
		f, b := newFlow(t), newBucket(t)
		reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
		t.Cleanup(reg.Close)
		repo := strings.TrimPrefix(reg.URL, "http://") + "/team/results"
		f.sinks(fmt.Sprintf(`["vsock", {"upload": {"url": %q, "receipt_url": %q}}, "docker://%s:run-1"]`, b.url("/r"), b.url("/receipt"), repo))
		f.boot()
		f.ends("", result.OK, true)
		if !bytes.Equal(b.got["/r"], f.peer.result) || !bytes.Equal(b.got["/receipt"], f.peer.receipt) || len(b.got["/r"]) == 0 {
			t.Errorf("the bucket has %d objects", len(b.got))
		}
		var m struct{ Layers []struct{ Digest string } }
		resp, err := http.Get(reg.URL + "/v2/team/results/manifests/run-1")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&m); err != nil || len(m.Layers) != 1 || m.Layers[0].Digest != fmt.Sprintf("sha256:%x", sha256.Sum256(f.peer.result)) {
			t.Errorf("the registry has %+v, %v", m, err)
		}
		if f.peer.late != nil {
			t.Error("a log of failures was sent, and nothing failed")
		}
		f.tellsNoSignature()
	})
	t.Run("by URLs that a broker keeps", func(t *testing.T) {
		f, b := newFlow(t), newBucket(t)
		const path = "default/sink/results"
		file := filepath.Join(f.world.Dir, "kbs", "keys", filepath.FromSlash(path))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(b.url("/r")+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		f.grants = []string{path}
		f.sinks(`[{"upload": "` + path + `"}]`)
		f.boot()
		f.ends("", result.OK, true)
		if len(b.got["/r"]) == 0 || f.peer.result != nil {
			t.Errorf("the bucket has %d bytes, the host %d, which is no sink", len(b.got["/r"]), len(f.peer.result))
		}
		f.aboutRun()
	})
	t.Run("one fails", func(t *testing.T) {
		f, b := newFlow(t), newBucket(t)
		b.full = true
		f.sinks(fmt.Sprintf(`[%q, "vsock"]`, b.url("/r")))
		f.boot()
		f.ends("", result.OK, true)
		f.aboutRun()
		if f.peer.result == nil || !strings.Contains(f.late(), "AccessDenied") || !strings.Contains(f.late(), b.URL+"/r") {
			t.Errorf("the owner is not told what failed:\n%s", f.late())
		}
		f.tellsNoSignature()
	})
	t.Run("one takes no receipt", func(t *testing.T) {
		f, b := newFlow(t), newBucket(t)
		f.sinks(fmt.Sprintf(`[{"upload": {"url": %q, "receipt_url": %q}}]`, b.url("/r"), b.URL+"/receipt?X-Amz-Signature=other"))
		f.boot()
		f.ends("", result.OK, true)
		f.aboutRun()
		if len(b.got["/r"]) == 0 || !strings.Contains(f.late(), "it took the result, and not the receipt") {
			t.Errorf("the owner is not told what failed:\n%s", f.late())
		}
	})
	t.Run("the host fails, and the bucket takes it", func(t *testing.T) {
		f, b := newFlow(t), newBucket(t)
		f.refuse = errors.New("no room")
		f.sinks(fmt.Sprintf(`[%q, "vsock"]`, b.url("/r")))
		f.boot()
		f.ends("", result.OK, true)
		f.aboutRun()
		if len(b.got["/r"]) == 0 || !strings.Contains(f.late(), "no room") {
			t.Errorf("the owner is not told what failed:\n%s", f.late())
		}
	})
	t.Run("all fail", func(t *testing.T) {
		f, b := newFlow(t), newBucket(t)
		b.full = true
		f.refuse = errors.New("no room")
		f.sinks(fmt.Sprintf(`["vsock", %q, "docker://127.0.0.1:1/team/results"]`, b.url("/r")))
		f.edit(`"docker://127.0.0.1:1/team/results"`, `{"to": "docker://127.0.0.1:1/team/results", "deadline": "1s"}`)
		f.boot()
		f.ends("deliver", result.Undelivered, true)
		f.aboutRun()
		for _, want := range []string{"no room", "AccessDenied", "docker://127.0.0.1:1/team/results"} {
			if !strings.Contains(f.late(), want) {
				t.Errorf("the owner is not told of %q:\n%s", want, f.late())
			}
		}
		f.tellsNoSignature()
	})
	t.Run("a bad upload at the broker is found before a key is used", func(t *testing.T) {
		f := newFlow(t)
		f.grants = []string{demoSink}
		file := filepath.Join(f.world.Dir, "kbs", "keys", filepath.FromSlash(demoSink))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(`{"method":"ftp"}`), 0o600)); err != nil {
			t.Fatal(err)
		}
		f.sinks(`[{"upload": "` + demoSink + `"}]`)
		f.boot()
		f.ends("attest", result.Denied, false)
		if !strings.Contains(f.log(), "results.sinks[0]") {
			t.Errorf("the owner is not told:\n%s", f.log())
		}
	})
	t.Run("a bad upload in the manifest is found at once", func(t *testing.T) {
		f := newFlow(t)
		f.sinks(`[{"upload": {"url": "https://h.example/x", "method": "ftp"}}]`)
		f.boot()
		f.ends("manifest", result.BadManifest, false)
	})
}

const demoSink = "default/sink/bad"

// TestCocosConsumers: who is named in result_consumers of a Cocos computation opens the result with the private key.
func TestCocosConsumers(t *testing.T) {
	f := newFlow(t)
	var own struct {
		Algorithm struct{ URI string }
		Datasets  []struct{ URI string }
	}
	if err := json.Unmarshal(f.raw, &own); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	resource := func(uri, path string) map[string]any {
		return map[string]any{"hash": make([]int, 32), "source": map[string]any{"type": "oci-image", "url": uri, "encrypted": true, "kbs_resource_path": path},
			"kbs": map[string]any{"url": f.world.Broker, "enabled": true}}
	}
	algorithm, dataset := resource(own.Algorithm.URI, demo.AlgorithmKey), resource(own.Datasets[0].URI, demo.DatasetKey)
	algorithm["algo_type"], dataset["filename"] = "docker", "table.csv"
	if f.raw, err = json.Marshal(map[string]any{"id": "c-1", "algorithm": algorithm, "datasets": []any{dataset},
		"result_consumers": []any{map[string]any{"user_key": pub}}}); err != nil {
		t.Fatal(err)
	}
	f.boot()
	if o := f.peer.outcomes(); len(o) != 1 || o[0].Reason != result.OK {
		t.Fatalf("outcomes %+v", o)
	}
	ids, err := result.ParseIdentities(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv}))
	if err != nil {
		t.Fatal(err)
	}
	r, err := result.Open(bytes.NewReader(f.peer.result), ids)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dir := t.TempDir()
	if err := result.ExtractTar(r, dir, 1<<30); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "results/copy.csv")); err != nil || string(b) != "1\n" {
		t.Errorf("result %q, %v", b, err)
	}
	f.aboutRun()
}
