package manifest

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
)

// choice is the key broker that a resource names for itself.
type choice struct {
	url string // normalised; empty: the manifest's
	off bool   // "enabled" is false
}

// wish is a resource whose broker is not yet settled.
type wish struct {
	*Resource
	path string
	choice
}

// where reads what names a resource: type and uri, or source{type,url,…}; the rest of the form is the same in all
// spellings. onlySource is agent.Computation, which has no other way.
func (r *reader) where(o *object, onlySource bool) *Resource {
	res := &Resource{}
	src, uriKey := o, "uri"
	if onlySource || o.has("source") {
		if src = o.child("source"); src == nil && !o.has("source") {
			r.problem(o.path("source"), "is missing: this build takes no uploads")
		}
		uriKey = "url"
		if !onlySource {
			for _, name := range []string{"type", "uri", "encrypted", "kbs_resource_path"} {
				if o.has(name) {
					o.known[name] = true
					r.problem(o.path(name), "stands beside source, which says it too; keep one")
				}
			}
		}
	}
	if src == nil {
		return res
	}
	res.Type, res.URI = src.text("type"), src.text(uriKey)
	res.Encrypted, res.KeyPath = src.flag("encrypted", false), src.text("kbs_resource_path")
	if src != o {
		src.done()
	}
	r.source(src, res, uriKey)
	if res.KeyPath == "" {
		return res
	}
	at, ok := r.place(src.path("kbs_resource_path"), res.KeyPath)
	if ok {
		res.KeyPath, r.places[res] = at.path, at
	}
	if ok && !res.Encrypted {
		// Taking it for a plain one would let a registry swap the encrypted one for it.
		r.problem(src.path("encrypted"), `is not true, and kbs_resource_path names a key; say "encrypted": true or drop the key`)
	}
	return res
}

// source judges type and URI together. Cocos infers an absent type from the scheme.
func (r *reader) source(src *object, res *Resource, uriKey string) {
	path := src.path(uriKey)
	if res.URI == "" {
		r.problem(path, "is missing: this build takes no uploads; want docker://host/repository@sha256:…")
		return
	}
	if res.Type == "" {
		switch scheme, _, _ := strings.Cut(res.URI, "://"); scheme {
		case "s3", "https", "http":
			res.Type = scheme
		case "gs":
			res.Type = "gcs"
		default:
			res.Type = "oci-image"
		}
	}
	switch res.Type {
	case "oci-image":
	case "s3", "gcs", "https", "http":
		r.objects[res] = fileAt{src, path}
		return
	default:
		r.problem(src.path("type"), "%.40q: want oci-image, s3, gcs, https or http", res.Type)
		return
	}
	pinned, err := checkReference(res.URI)
	if err != nil {
		r.problem(path, "%v", err)
		return
	}
	if !pinned {
		r.references = append(r.references, src.members[uriKey])
		if !r.allow(allowTag) {
			r.problem(path, "%.200q names no digest; run `ampoule manifest pin`", res.URI)
		}
	}
}

// filename reads a dataset's name below /cocos/datasets.
func (r *reader) filename(o *object, res *Resource, taken map[string]string) {
	res.Filename = o.text("filename")
	switch f := res.Filename; {
	case f == "":
	case f == "." || f == ".." || strings.Contains(f, "/") || len(f) > 255:
		r.problem(o.path("filename"), "%.260q: want a name without slashes, at most 255 bytes", f)
	case taken[f] != "":
		r.problem(o.path("filename"), "%.260q: is %s as well", f, taken[f])
	default:
		taken[f] = o.path("filename")
	}
}

// broker reads a resource's own "kbs". enabled is what it means when it does not say.
func (r *reader) broker(o *object, enabled bool) choice {
	kbs := o.child("kbs")
	if kbs == nil {
		return choice{}
	}
	c := choice{r.url(kbs, "url"), !kbs.flag("enabled", enabled)}
	kbs.done()
	return c
}

// url reads a broker's URL. One that is wrong is returned as it is: it has been reported, and is not missing as well.
func (r *reader) url(o *object, name string) string {
	s := o.text(name)
	if s == "" {
		return ""
	}
	u, err := brokerURL(s)
	if err != nil {
		r.problem(o.path(name), "%v", err)
		return s
	}
	return u
}

// settle gives every encrypted resource its broker: its own, else the manifest's, of which there must then be one.
func (r *reader) settle(m *Manifest, wishes []wish, general []string) {
	for _, w := range wishes {
		switch {
		case !w.Encrypted:
		case w.off:
			r.problem(join(w.path, "kbs"), "is not enabled, and the resource is encrypted: nobody would give its key")
		default:
			w.Broker = r.pick(m, join(w.path, "kbs"), w.url, general, "the resource is encrypted")
			r.agree(r.places[w.Resource], w.Broker)
		}
	}
}

// pick settles which broker is asked: own, which is named at path or would be, else the only one of general; why one
// is needed. It is empty after a problem.
func (r *reader) pick(m *Manifest, path, own string, general []string, why string) string {
	broker := own
	switch {
	case own != "":
	case len(general) == 1:
		broker = general[0]
	case len(general) > 1:
		r.problem(path, "is missing: the manifest lists %d key brokers, and the resource must name one", len(general))
		return ""
	default:
		r.problem(path, `is missing: %s and no key broker is named; want "kbs": {"url": "https://…"} here or for all`, why)
		return ""
	}
	if !slices.ContainsFunc(m.Brokers, func(b Broker) bool { return b.URL == broker }) {
		m.Brokers = append(m.Brokers, Broker{URL: broker})
	}
	if strings.HasPrefix(broker, "http:") && !r.allow(allowHTTP) {
		r.problem(path, "%s: this image allows no key broker over plain http; want https", broker)
	}
	return broker
}

// hexDigest reads n bytes in lower-case hex.
func (r *reader) hexDigest(o *object, name string, n int) []byte {
	s := o.text(name)
	if s == "" {
		return nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n || strings.ToLower(s) != s {
		r.problem(o.path(name), "%.140q: want %d lower-case hex digits", s, 2*n)
		return nil
	}
	return b
}

// base64Key reads a PKIX key as Go marshals bytes.
func (r *reader) base64Key(o *object, name string) []byte {
	s := o.text(name)
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		r.problem(o.path(name), "is not base64: %v", err)
	}
	return b
}
