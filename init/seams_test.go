package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// TestKeysAreWiped when pull is over, also by an error or a panic: before the workload starts nothing holds a key.
func TestKeysAreWiped(t *testing.T) {
	for name, c := range map[string]struct {
		fail   func() error
		step   string
		reason result.Reason
	}{
		"it succeeds": {nil, "", result.OK},
		"it fails":    {func() error { return errors.New(secret) }, "pull", result.BadImage},
		"it panics":   {func() error { panic(secret) }, "pull", result.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			var mu sync.Mutex
			var held [][]byte
			wiped := func() bool {
				mu.Lock()
				defer mu.Unlock()
				return !slices.ContainsFunc(held, func(k []byte) bool { return !bytes.Equal(k, make([]byte, len(k))) })
			}
			f.tamper = func(m *machine) {
				unpack, work := m.unpack, m.runWorkload
				m.onFetch(func(ctx context.Context, wants []kbs.Want, next fetch) (*kbs.Grant, error) {
					g, err := next(ctx, wants)
					if err != nil {
						return nil, err
					}
					for _, w := range wants {
						held = append(held, g.Key(w.Broker, w.Path))
					}
					if wiped() {
						t.Error("the broker gave no keys")
					}
					return g, nil
				})
				m.unpack = func(ctx context.Context, i *image.Image, dir string, k image.Keys, l image.Limits, progress func(int64)) error {
					mu.Lock()
					for _, key := range k {
						held = append(held, key)
					}
					mu.Unlock()
					if len(k) != 1 {
						t.Errorf("an image gets %d keys, want its own", len(k))
					}
					if c.fail != nil {
						return c.fail()
					}
					return unpack(ctx, i, dir, k, l, progress)
				}
				m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) {
					if !wiped() {
						t.Error("a key is held while the workload runs")
					}
					return work(ctx, s)
				}
			}
			f.boot()
			f.ends(c.step, c.reason, c.fail == nil)
			if len(held) != 4 || !wiped() {
				t.Errorf("of %d keys some are not wiped", len(held))
			}
		})
	}
}

// TestPlainHTTP goes to a registry or a broker only where the image permits it.
func TestPlainHTTP(t *testing.T) {
	f := newFlow(t)
	f.allPlain()
	f.drop("kbs") // whose URL would be refused before
	f.line = "ampoule.profile=simulation"
	f.boot()
	f.ends("resolve", result.BadImage, false)
	if !strings.Contains(f.log(), image.ErrPlainHTTP.Error()) {
		t.Errorf("the log does not say why:\n%s", f.log())
	}

	doc := &manifest.Manifest{Brokers: []manifest.Broker{{URL: "http://b.example", KeyType: "RSA-OAEP-256"}}}
	for _, permitted := range []bool{false, true} {
		b := brokersOf(doc, permitted)[0]
		if b.AllowHTTP != permitted || b.KeyType != "RSA-OAEP-256" {
			t.Errorf("permitted %t: the broker is asked as %+v", permitted, b)
		}
	}
}

// TestRegistryAuthority: the authority that a manifest names for a registry is the one that counts there, and only
// there.
func TestRegistryAuthority(t *testing.T) {
	serve := func() *httptest.Server {
		s := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	s := serve()
	host := strings.TrimPrefix(s.URL, "https://")
	img, err := demo.Image(map[string]string{"a": "1\n"}, config)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := image.Push(t.Context(), img, "docker://"+host+"/some/image", image.Options{Transport: s.Client().Transport})
	if err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for name, c := range map[string]struct {
		named string
		ok    bool
	}{"its own": {host, true}, "another registry's": {"r.example", false}, "that of a host with the same beginning": {host + "0", false}} {
		r := &run{doc: &manifest.Manifest{Registries: []manifest.Registry{{Host: c.named, CA: ca}}}}
		o, err := r.imageOptions(uri)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := image.Resolve(t.Context(), uri, o); (err == nil) != c.ok {
			t.Errorf("authority is %s: error %v", name, err)
		}
		if tr, ok := o.Transport.(*http.Transport); ok {
			if tr.Proxy != nil {
				t.Error("the environment's proxy is asked")
			}
			tr.CloseIdleConnections()
		}
	}
}

// TestRegistryAuthorityThatIsNone: what was pinned and cannot be read is never the same as nothing pinned.
func TestRegistryAuthorityThatIsNone(t *testing.T) {
	r := &run{doc: &manifest.Manifest{Registries: []manifest.Registry{{Host: "r.example", CA: []byte("no certificate")}}}}
	if o, err := r.imageOptions("docker://r.example/some/image"); err == nil {
		t.Errorf("options %+v, want an error", o)
	}
}

// TestWhatTheWorkloadGets when the manifest sets no limits: all memory but what PID 1 needs to seal.
func TestWhatTheWorkloadGets(t *testing.T) {
	f := newFlow(t)
	var got workload.Spec
	f.tamper = func(m *machine) {
		work := m.runWorkload
		m.runWorkload = func(ctx context.Context, s workload.Spec) (workload.Outcome, error) { got = s; return work(ctx, s) }
	}
	f.boot()
	f.ends("", result.OK, true)
	if got.MemoryBytes != 1<<30-memoryReserve {
		t.Errorf("the workload may take %d bytes", got.MemoryBytes)
	}
	if got.UID == 0 || got.GID == 0 {
		t.Errorf("the workload is user %d, group %d", got.UID, got.GID)
	}
	if strings.Contains(f.console.String(), "output of the workload") {
		t.Error("the console has the workload's output, which is sealed")
	}
}

// TestEventsFromBeforeTheHost: what happens before there is a channel to the host is handed over in order.
func TestEventsFromBeforeTheHost(t *testing.T) {
	f := newFlow(t)
	f.boot()
	var got []string
	last := int64(0)
	for _, e := range f.peer.events {
		if e.Event != result.ProgressEvent {
			got = append(got, e.Step+" "+e.State)
		}
		if e.Time <= last || e.Profile != cmdline.Simulation {
			t.Errorf("event %s: time after %d and the profile are wanted", e.Line(), last)
		}
		last = e.Time
	}
	var want []string
	for _, s := range sequence {
		want = append(want, s.name+" "+result.Start, s.name+" "+result.Done)
	}
	if want = append(want, "wipe start", "wipe ok", " "); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}
