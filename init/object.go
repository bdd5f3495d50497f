package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/ampoule-vm/ampoule/image"
	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/kbs"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/object"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// size is how much pull fetches, bytes.
func (in *input) size() int64 {
	if in.file != nil {
		return in.file.Size
	}
	return in.image.Size()
}

// resolveFile learns of a file what resolve learns of an image.
func (r *run) resolveFile(ctx context.Context, in *input) (err error) {
	src := object.Source{URI: in.want.URI}
	if s := r.doc.StoreOf(in.want); s != nil {
		src.Store = object.Store{Endpoint: s.Endpoint, Region: s.Region, PathStyle: s.PathStyle}
		src.Login = r.storeLogins[s.URL]
	}
	transport, err := r.fileTransport()
	if err != nil {
		return err
	}
	o := object.Options{Transport: transport, PlainHTTP: r.opts.Allow.Has(cmdline.AllowHTTP)}
	if in.file, err = object.Resolve(ctx, src, o); err != nil {
		return err
	}
	if !in.want.Encrypted {
		return nil
	}
	in.keys = []string{in.want.KeyPath}
	return in.file.CheckSealed()
}

// pullFile is pull for a file: what it is gets checked there, before it is a directory.
func (r *run) pullFile(ctx context.Context, in *input, limits image.Limits, progress func(int64)) error {
	w := object.Want{SHA256: in.want.SHA256, SHA3_256: in.want.SHA3_256, Expand: in.want.Decompress, Name: in.want.Filename}
	if in.want.Encrypted {
		w.Key = append([]byte{}, r.grant.Key(in.want.Broker, in.want.KeyPath)...)
		defer clear(w.Key)
	}
	return r.unpackFile(ctx, in.file, in.dir, w, limits, progress)
}

// byHost takes for each host the authority that the manifest pins for it: where a server sends us on, that of the first is not the one.
type byHost struct {
	pinned map[string]http.RoundTripper
	other  http.RoundTripper
}

func (t byHost) RoundTrip(req *http.Request) (*http.Response, error) {
	if own := t.pinned[canonicalHost(req.URL.Host)]; own != nil {
		return own.RoundTrip(req)
	}
	return t.other.RoundTrip(req)
}

func canonicalHost(host string) string { return strings.TrimSuffix(strings.ToLower(host), ":443") }

func (r *run) fileTransport() (http.RoundTripper, error) {
	other, err := image.NewTransport(nil, "")
	if err != nil {
		return nil, err
	}
	t := byHost{map[string]http.RoundTripper{}, other}
	for _, reg := range r.doc.Registries {
		if len(reg.CA) == 0 && reg.Proxy == "" {
			continue
		}
		if t.pinned[canonicalHost(reg.Host)], err = image.NewTransport(reg.CA, reg.Proxy); err != nil {
			return nil, fmt.Errorf("registry %s: %w", reg.Host, err) // never without the pin
		}
	}
	return t, nil
}

// storesOf are the stores with credentials that files of the manifest are in, each once.
func (r *run) storesOf() []*manifest.Store {
	var all []*manifest.Store
	seen := map[*manifest.Store]bool{}
	for _, in := range r.inputs {
		if !in.want.IsFile() {
			continue
		}
		if s := r.doc.StoreOf(in.want); s != nil && s.Credentials != nil && !seen[s] {
			seen[s] = true
			all = append(all, s)
		}
	}
	return all
}

func (r *run) admitStores(grant *kbs.Grant) error {
	r.storeLogins = map[string]*object.Credentials{}
	for _, s := range r.storesOf() {
		c, err := object.ParseCredentials(grant.Key(s.Credentials.Broker, s.Credentials.Path))
		if err != nil {
			return fmt.Errorf("store %s: credentials %s: %w", s.URL, s.Credentials.Path, err)
		}
		r.storeLogins[s.URL] = c
	}
	return nil
}

func (r *run) zeroStoreLogins() {
	for _, c := range r.storeLogins {
		c.Zero()
	}
}

// described is an input as the receipt has it.
func (in *input) described() result.Image {
	d := result.Image{Name: in.name, URI: in.want.URI, Pinned: in.want.Pinned()}
	if f := in.file; f != nil {
		d.URI, d.Digest, d.Content, d.Encrypted, d.PlainHTTP = f.URI, f.Digest, f.Content, in.want.Encrypted, f.PlainHTTP
		return d
	}
	i := in.image
	d.Digest, d.ConfigDigest, d.Encrypted, d.Pinned, d.PlainHTTP = i.Digest, i.ConfigDigest, i.Encrypted(), i.Pinned, i.PlainHTTP
	for _, l := range i.Layers {
		d.Layers = append(d.Layers, l.Digest)
	}
	return d
}
