package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/guestapi"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/registryauth"
	"github.com/ampoule-vm/ampoule/internal/result"
	vault "github.com/ampoule-vm/ampoule/internal/secret"
)

// toBrokers gives the one client of this boot: what attested to a broker once need not do so again.
func (r *run) toBrokers() (keyBrokers, error) {
	if r.brokers != nil {
		return r.brokers, nil
	}
	initdata := r.initdata
	if r.binding != result.BindLaunch && r.register != evidence.PCR8 {
		initdata = nil // a broker holds it against the register of the launch, where it is not
	}
	var err error
	r.brokers, err = r.openBrokers(brokersOf(r.doc, r.opts.Allow.Has(cmdline.AllowHTTP)), r.dev, initdata)
	return r.brokers, err
}

// ask attests to the brokers of wants, where that has not been done, and takes what they give.
func (r *run) ask(ctx context.Context, wants []kbs.Want) (*kbs.Grant, error) {
	brokers, err := r.toBrokers()
	if err != nil {
		return nil, err
	}
	grant, err := brokers.Fetch(ctx, wants)
	if err != nil && ctx.Err() == nil {
		err = because(result.Denied, err)
	}
	return grant, err
}

func want(b manifest.BrokerResource) kbs.Want { return kbs.Want{Broker: b.Broker, Path: b.Path} }

// logins are the credentials of registries, by host.
type logins map[string]*registryauth.Credentials

func (l logins) find(host, uri string) *image.Login {
	c := l[host]
	if c == nil {
		return nil
	}
	user, password, ok := c.For(uri)
	if !ok {
		return nil
	}
	return &image.Login{User: user, Password: password}
}

// admit fetches what decides about images and files before one is asked for: credentials of registries and stores, and the image policy.
func (r *run) admit(ctx context.Context) error {
	var wants []kbs.Want
	for _, reg := range r.doc.Registries {
		if reg.Credentials != nil {
			wants = append(wants, want(*reg.Credentials))
		}
	}
	if r.doc.ImagePolicy != nil {
		wants = append(wants, want(*r.doc.ImagePolicy))
	}
	for _, s := range r.storesOf() {
		wants = append(wants, want(*s.Credentials))
	}
	if len(wants) == 0 {
		return r.admitInline(ctx)
	}
	grant, err := r.ask(ctx, wants)
	if err != nil {
		return err
	}
	defer grant.Zero()
	if err := r.admitStores(grant); err != nil {
		return err
	}
	r.logins = logins{}
	for _, reg := range r.doc.Registries {
		if reg.Credentials == nil {
			continue
		}
		c, err := registryauth.Parse(grant.Key(reg.Credentials.Broker, reg.Credentials.Path))
		if err != nil {
			return fmt.Errorf("credentials %s of registry %s: %w", reg.Credentials.Path, reg.Host, err)
		}
		r.logins[reg.Host] = c
	}
	if at := r.doc.ImagePolicy; at != nil {
		return r.admitBy(ctx, at.Path, grant.Key(at.Broker, at.Path), at.Broker)
	}
	return r.admitInline(ctx)
}

// secrets are what the workload is given: unsealed values by the sealed ones, and resources by their path.
type secrets struct {
	values    map[string][]byte
	resources map[string][]byte
}

func (s secrets) zero() {
	for _, m := range []map[string][]byte{s.values, s.resources} {
		for _, b := range m {
			clear(b)
		}
		clear(m)
	}
}

// closeGrace is how long the sessions may take to end. A device that hangs under one must not keep the outcome back; the
// machine is switched off next, and its memory with it.
const closeGrace = 5 * time.Second

// forget wipes what the brokers gave besides the keys, which pull wipes, wherever the boot ended.
func (r *run) forget() {
	if r.brokers != nil {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			r.brokers.Close()
		}()
		select {
		case <-closed:
		case <-time.After(closeGrace):
			r.private.Warn("key brokers", "error", "a request was still under way, and its key is not wiped")
		}
	}
	r.secrets.zero()
	for _, c := range r.logins {
		c.Zero()
	}
	r.zeroStoreLogins()
}

// sealedValues are the sealed secrets of the manifest, each once.
func sealedValues(w manifest.Workload) []string {
	var all []string
	for _, v := range slices.Sorted(maps.Values(w.Env)) {
		if vault.Sealed(v) {
			all = append(all, v)
		}
	}
	for _, f := range w.Files {
		if vault.Sealed(f.Value) {
			all = append(all, f.Value)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// workloadWants are the resources that the manifest grants to the workload, and the keys that its sealed secrets are
// signed with.
func (r *run) workloadWants() []kbs.Want {
	var wants []kbs.Want
	for _, g := range r.doc.GuestAPI.Resources {
		wants = append(wants, want(g))
	}
	for _, v := range sealedValues(r.doc.Workload) {
		if path, err := vault.Signer(v); err == nil { // what cannot be read is refused by unseal
			wants = append(wants, kbs.Want{Broker: r.doc.Workload.SealedBroker, Path: path})
		}
	}
	return wants
}

// unseal verifies the sealed secrets, fetches what they stand for, and keeps a copy of what the workload is granted:
// the grant itself does not outlive pull.
func (r *run) unseal(ctx context.Context) error {
	r.secrets = secrets{map[string][]byte{}, map[string][]byte{}}
	for _, g := range r.doc.GuestAPI.Resources {
		r.secrets.resources[g.Path] = bytes.Clone(r.grant.Key(g.Broker, g.Path))
	}
	broker := r.doc.Workload.SealedBroker
	paths := map[string]string{}
	var wants []kbs.Want
	for i, v := range sealedValues(r.doc.Workload) {
		path, err := vault.Parse(v, func(path string) ([]byte, error) {
			if k := r.grant.Key(broker, path); k != nil {
				return k, nil
			}
			return nil, fmt.Errorf("key %s was not fetched", path)
		})
		if err != nil {
			return because(result.BadManifest, fmt.Errorf("sealed secret %d: %w", i, err))
		}
		paths[v] = path
		wants = append(wants, kbs.Want{Broker: broker, Path: path})
	}
	if len(wants) == 0 {
		return nil
	}
	grant, err := r.ask(ctx, wants)
	if err != nil {
		return err
	}
	defer grant.Zero()
	for v, path := range paths {
		r.secrets.values[v] = bytes.Clone(grant.Key(broker, path))
	}
	return nil
}

// open gives the value that the manifest says, or the one that it stands for.
func (s secrets) open(value string) []byte {
	if b, sealed := s.values[value]; sealed {
		return b
	}
	return []byte(value)
}

// workloadEnv is the manifest's environment with its sealed values opened.
func (r *run) workloadEnv() (map[string]string, error) {
	env := map[string]string{}
	for name, v := range r.doc.Workload.Env {
		b := r.secrets.open(v)
		if bytes.IndexByte(b, 0) >= 0 {
			return nil, because(result.Denied, fmt.Errorf("environment variable %s: its secret holds a zero byte, which no environment can; use a file", name))
		}
		env[name] = string(b)
	}
	r.offerProxy(env)
	return env, nil
}

// guestAPIAddress is where CoCo's guests answer their workloads.
const guestAPIAddress = "127.0.0.1:8006"

// guestAPI is what the workload may ask, or nil if it may ask nothing.
func (r *run) guestAPI() *guestapi.API {
	g := r.doc.GuestAPI
	if !g.Granted() {
		return nil
	}
	api := &guestapi.API{TEE: string(r.dev.Kind())}
	for _, res := range g.Resources {
		api.Resources = append(api.Resources, res.Path)
	}
	api.Resource = func(_ context.Context, path string) ([]byte, error) {
		if b := r.secrets.resources[path]; b != nil {
			return b, nil
		}
		return nil, errors.New("not granted")
	}
	var one sync.Mutex // around the device, which both ask
	if g.Token {
		api.Token = func(ctx context.Context) (string, []byte, error) {
			one.Lock()
			defer one.Unlock()
			brokers, err := r.toBrokers()
			if err != nil {
				return "", nil, err
			}
			return brokers.Token(ctx, g.TokenBroker)
		}
	}
	if g.Evidence {
		api.Evidence = func(ctx context.Context, data [64]byte) ([]byte, error) {
			one.Lock()
			defer one.Unlock()
			ev, err := r.dev.Evidence(ctx, data)
			if err != nil {
				return nil, err
			}
			b, err := ev.JSON()
			return json.RawMessage(b), err
		}
	}
	return api
}
