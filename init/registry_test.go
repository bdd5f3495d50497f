package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/registryauth"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// TestMirrorsOfTheManifest are each reached as their own entry says, never as the registry's.
func TestMirrorsOfTheManifest(t *testing.T) {
	login, err := registryauth.Parse([]byte(`{"auths": {"two.example:5000": {"auth": "Ym9iOng="}, "one.example": {"auth": "Ym9iOnk="}, "r.example": {"auth": "YWxpY2U6eg=="}}}`))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	doc := &manifest.Manifest{Registries: []manifest.Registry{
		{Host: "r.example", CA: ca, Mirrors: []string{"one.example", "two.example:5000/some/prefix"}},
		{Host: "two.example:5000", Proxy: "http://proxy.example:3128", Mirrors: []string{"three.example"}},
	}}
	r := newRun(&machine{})
	r.doc, r.opts.Allow = doc, cmdline.Allow{cmdline.AllowHTTP: true}
	r.logins = logins{"r.example": login, "two.example:5000": login} // one.example has no entry, whatever the file says
	o, err := r.imageOptions("docker://r.example/some/image@sha256:" + strings.Repeat("0", 64))
	if err != nil {
		t.Fatal(err)
	}
	type reached struct {
		At, User string
		Plain    bool // http is permitted
		Own      bool // with a transport of its own
		Proxy    bool
		Pinned   bool
	}
	say := func(at string, tr http.RoundTripper, l *image.Login, plain bool) reached {
		one := reached{At: at, Plain: plain, Own: tr != nil}
		if l != nil {
			one.User = l.User
		}
		if tr, ok := tr.(*http.Transport); ok {
			one.Proxy, one.Pinned = tr.Proxy != nil, tr.TLSClientConfig.RootCAs != nil
		}
		return one
	}
	got := []reached{say("", o.Transport, o.Login, o.PlainHTTP)}
	for _, m := range o.Mirrors {
		got = append(got, say(m.At, m.Transport, m.Login, m.PlainHTTP))
	}
	want := []reached{
		{User: "alice", Own: true, Pinned: true}, // and so never over http
		{At: "one.example", Plain: true},
		{At: "two.example:5000/some/prefix", User: "bob", Plain: true, Own: true, Proxy: true},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if o.Log != r.private || o.Buffers != r.buffers {
		t.Error("what mirrors do wrong is not for the sealed log, or the memory is not the run's")
	}
}

// TestMirrorThatIsNotThere: the run goes on with the registry, and the sealed log says why.
func TestMirrorThatIsNotThere(t *testing.T) {
	f := newFlow(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer s.Close()
	mirror := strings.TrimPrefix(s.URL, "http://")
	host := strings.Replace(f.world.Registry, "10.0.2.2", "127.0.0.1", 1)
	f.edit(`"results": {`, fmt.Sprintf(`"registries": [{"host": %q, "mirrors": [%q]}], "results": {`, host, mirror))
	f.boot()
	f.ends("", result.OK, true)
	if log := f.log(); !strings.Contains(log, "mirror") || !strings.Contains(log, "status 418") {
		t.Errorf("the sealed log does not say what the mirror did:\n%s", log)
	}
	if strings.Contains(f.console.String(), mirror) {
		t.Error("the console names the mirror")
	}
}

// TestAlgorithmThatIsAnArtifact has no config to run by, and is refused before a key is asked for.
func TestAlgorithmThatIsAnArtifact(t *testing.T) {
	f := newFlow(t)
	f.allPlain()
	f.tamper = func(m *machine) {
		inner := m.resolve
		m.resolve = func(ctx context.Context, uri string, o image.Options) (*image.Image, error) {
			i, err := inner(ctx, uri, o)
			if err == nil {
				i.Artifact = true // the dataset too, which may be one
			}
			return i, err
		}
	}
	f.boot()
	f.ends("resolve", result.BadImage, false)
	if log := f.log(); !strings.Contains(log, "algorithm") || !strings.Contains(log, "is an artifact") || f.asked {
		t.Errorf("the sealed log does not say why:\n%s", log)
	}
}
