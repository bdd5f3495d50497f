package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/tee"
)

var config = v1.Config{Entrypoint: []string{"/run"}}

// push publishes an image that is not encrypted.
func (f *flow) push(name string, files map[string]string) string {
	f.Helper()
	img, err := demo.Image(files, config)
	if err != nil {
		f.Fatal(err)
	}
	uri, err := f.world.Push(f.Context(), img, name)
	if err != nil {
		f.Fatal(err)
	}
	return strings.Replace(uri, "10.0.2.2", "127.0.0.1", 1)
}

// allPlain makes a manifest without encryption, and so without a broker to ask.
func (f *flow) allPlain() {
	f.Helper()
	f.raw = f.world.Manifest(demo.Job{
		Algorithm: f.push("plain-algorithm", map[string]string{"algorithm.py": "pass"}),
		Dataset:   f.push("plain-dataset", map[string]string{"table.csv": "1\n"}),
		Plain:     true,
	})
}

// pin puts the manifest's digest on the command line; HOST_DATA stays zero.
func (f *flow) pin() {
	f.unbound = true
	f.line += fmt.Sprintf(" ampoule.manifest-sha384=%x", sha512.Sum384(f.raw))
}

// TestPlainWhereEncryptionIsAsked: a host that swaps an encrypted image for a plain one of its own gets no further than
// the manifest of the image: no key is asked for, and nothing of it is unpacked.
func TestPlainWhereEncryptionIsAsked(t *testing.T) {
	for _, which := range []string{"algorithm", "datasets[0]"} {
		t.Run(which, func(t *testing.T) {
			f := newFlow(t)
			job := demo.Job{
				Algorithm: f.publish("algorithm", demo.AlgorithmKey, map[string]string{"algorithm.py": "pass"}),
				Dataset:   f.publish("dataset", demo.DatasetKey, map[string]string{"table.csv": "1\n"}),
			}
			if which == "algorithm" {
				job.Algorithm = f.push("swapped", map[string]string{"algorithm.py": "steal"})
			} else {
				job.Dataset = f.push("swapped", map[string]string{"table.csv": "2\n"})
			}
			f.raw = f.world.Manifest(job)
			f.tamper = func(m *machine) {
				m.unpack = func(context.Context, *image.Image, string, image.Keys, image.Limits, func(int64)) error {
					t.Error("an image was unpacked")
					return errors.New("unpacked")
				}
			}
			f.boot()
			f.ends("resolve", result.BadImage, false)
			if f.asked {
				t.Error("a broker was asked")
			}
			if log := f.log(); !strings.Contains(log, which) || !strings.Contains(log, image.ErrPlain.Error()) {
				t.Errorf("the sealed log does not say that %s is plain:\n%s", which, log)
			}
		})
	}
}

// TestPermits: what an image permits beyond the strict default works, and the receipt says that it was used.
func TestPermits(t *testing.T) {
	for name, c := range map[string]struct {
		set     func(*flow)
		binding string
		sealed  bool
		note    string // in the receipt
	}{
		"nothing, and bound by the launch":  {func(f *flow) { f.allPlain() }, result.BindLaunch, true, ""},
		"nothing, and pinned":               {func(f *flow) { f.allPlain(); f.pin() }, result.BindPinned, true, ""},
		"bound by the launch and pinned":    {func(f *flow) { f.allPlain(); f.pin(); f.unbound = false }, result.BindLaunch, true, ""},
		"unbound":                           {func(f *flow) { f.allPlain(); f.unbound = true; f.line += ",unbound" }, result.BindNone, true, "bound to nothing"},
		"unbound, and bound nevertheless":   {func(f *flow) { f.allPlain(); f.line += ",unbound" }, result.BindLaunch, true, ""},
		"unsealed":                          {func(f *flow) { f.allPlain(); f.nobody(); f.line += ",unsealed" }, result.BindLaunch, false, "in clear"},
		"unsealed, and sealed nevertheless": {func(f *flow) { f.allPlain(); f.line += ",unsealed" }, result.BindLaunch, true, ""},
		"a tag":                             {func(f *flow) { f.allPlain(); f.byTag(); f.line += ",tag" }, result.BindLaunch, true, "by tag"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			c.set(f)
			f.boot()
			f.ends("", result.OK, true)
			if c.binding != result.BindNone {
				f.verdict() // proven
			}
			p := f.statement().Predicate
			if p.Binding != c.binding || p.Sealed != c.sealed {
				t.Errorf("the receipt says binding %q and sealed %v; want %q and %v", p.Binding, p.Sealed, c.binding, c.sealed)
			}
			for _, note := range []string{"bound to nothing", "in clear", "by tag"} {
				if got := strings.Contains(strings.Join(p.Notes, "\n"), note); got != (note == c.note) {
					t.Errorf("the receipt's notes say %q: %v, want %v: %q", note, got, note == c.note, p.Notes)
				}
			}
			if !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.Contains(n, "simulated") }) {
				t.Errorf("the receipt does not say that the TEE is simulated: %q", p.Notes)
			}
			if c.sealed {
				f.opened()
				return
			}
			dir := t.TempDir()
			clear, err := result.Open(bytes.NewReader(f.peer.result), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer clear.Close()
			if err := result.ExtractTar(clear, dir, 1<<20); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "results/copy.csv")); err != nil || string(b) != "1\n" {
				t.Errorf("result %q, %v", b, err)
			}
		})
	}
}

// drop takes a member out of the manifest.
func (f *flow) drop(name string) {
	f.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(f.raw, &m); err != nil || m[name] == nil {
		f.Fatalf("no %s in %s (%v)", name, f.raw, err)
	}
	delete(m, name)
	f.raw, _ = json.Marshal(m)
}

// nobody takes the recipient away.
func (f *flow) nobody() { f.edit(fmt.Sprintf("%q", f.world.Identity.Recipient()), "") }

func (f *flow) byTag() {
	f.Helper()
	before, rest, ok := strings.Cut(string(f.raw), "/plain-dataset@")
	if !ok {
		f.Fatalf("no dataset in %s", f.raw)
	}
	_, after, _ := strings.Cut(rest, `"`)
	f.raw = []byte(before + `/plain-dataset:latest"` + after)
}

func (f *flow) statement() *result.Statement {
	f.Helper()
	_, s, err := result.ParseReceipt(f.peer.receipt)
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// TestUnsealedFailureSaysNothing: without recipients there is nobody to seal the log to, and it does not go in clear.
func TestUnsealedFailureSaysNothing(t *testing.T) {
	f := newFlow(t)
	f.allPlain()
	f.nobody()
	f.line += ",unsealed"
	f.tamper = func(m *machine) {
		m.unpack = func(context.Context, *image.Image, string, image.Keys, image.Limits, func(int64)) error {
			return errors.New(secret)
		}
	}
	f.boot()
	f.ends("pull", result.BadImage, false)
	f.isPrivate(secret)
	if f.peer.result != nil {
		t.Error("a log was delivered in clear")
	}
}

// TestInitdataForBrokers: a broker holds the initdata against HOST_DATA, so it gets one only where HOST_DATA has it.
func TestInitdataForBrokers(t *testing.T) {
	for name, pinned := range map[string]bool{"bound by the launch": false, "pinned": true} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t)
			if pinned {
				f.pin()
			}
			f.tamper = func(m *machine) {
				next := m.openBrokers
				m.openBrokers = func(b []kbs.Broker, dev tee.Device, initdata []byte) (keyBrokers, error) {
					if (initdata == nil) != pinned {
						t.Errorf("the broker gets initdata of %d bytes", len(initdata))
					}
					return next(b, dev, initdata)
				}
				m.onFetch(func(_ context.Context, wants []kbs.Want, _ fetch) (*kbs.Grant, error) {
					f.asked = true
					if len(wants) != 2 || wants[0].Path != demo.AlgorithmKey || wants[1].Path != demo.DatasetKey {
						t.Errorf("wants %+v", wants)
					}
					return nil, errors.New(secret)
				})
			}
			f.boot()
			f.ends("attest", result.Denied, false)
			if !f.asked {
				t.Error("no broker was asked")
			}
		})
	}
}

// TestImageAgainstManifest: an image may leave open where its keys are, or agree; it may not choose.
func TestImageAgainstManifest(t *testing.T) {
	for host, ok := range map[string]bool{"": true, "kbs.example:8080": true, "KBS.example:8080": true, "kbs.example": false, "127.0.0.1:8080": false} {
		var hosts []string
		if host != "" {
			hosts = []string{host}
		}
		if err := contradicts(hosts, "https://kbs.example:8080/prefix"); (err == nil) != ok {
			t.Errorf("an image that names %q: %v", host, err)
		}
	}
}
