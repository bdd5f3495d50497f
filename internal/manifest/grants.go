package manifest

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

const (
	maxFiles  = 64
	maxGrants = 64
)

// sealedPrefix begins a value that is a sealed secret; package secret reads them.
const sealedPrefix = "sealed."

// guestAPI reads what the workload may ask for.
func (r *reader) guestAPI(o *object, m *Manifest, general []string) {
	if o == nil {
		return
	}
	g := &m.GuestAPI
	list := o.list("resources")
	if len(list) > maxGrants {
		r.problem(o.path("resources"), "has %d, at most %d", len(list), maxGrants)
		list = nil
	}
	for _, n := range list {
		b := r.brokerResource(m, n, general)
		if b == nil {
			continue
		}
		if slices.ContainsFunc(g.Resources, func(other BrokerResource) bool { return other.Path == b.Path }) {
			r.problem(n.path, "%s: is there twice; a workload names a path and no key broker", b.Path)
			continue
		}
		g.Resources = append(g.Resources, *b)
	}
	g.Token, g.Evidence = o.flag("token", false), o.flag("evidence", false)
	if g.Token {
		g.TokenBroker = r.onlyBroker(m, o.path("token"), "a token is of one key broker", general)
	}
	o.done()
}

// onlyBroker is the manifest's one key broker, for what cannot name its own.
func (r *reader) onlyBroker(m *Manifest, path, why string, general []string) string {
	if len(general) != 1 {
		r.problem(path, "%s, and the manifest has %d for all; want one, as kbs or kbs_url", why, len(general))
		return ""
	}
	return r.pick(m, path, "", general, why)
}

// images reads what is required of images beyond their digests.
func (r *reader) images(o *object, m *Manifest, general []string) {
	i := o.child("images")
	if i == nil {
		return
	}
	switch n := i.member("policy"); {
	case n == nil:
		r.problem(i.path("policy"), "is missing: nothing is said of the images")
	case slices.ContainsFunc(n.members, func(m member) bool { return m.name == "default" }):
		m.InlinePolicy = &InlinePolicy{JSON: bytes.Clone(r.b[n.start:n.end])}
		if n.has("keyPath") {
			m.InlinePolicy.Broker = r.onlyBroker(m, n.path, "names keys, which are kept at a key broker", general)
		}
	default:
		m.ImagePolicy = r.brokerResource(m, n, general)
	}
	l := i.child("lookaside")
	if l != nil {
		for _, scope := range slices.Sorted(maps.Keys(l.members)) {
			host, repository, deeper := strings.Cut(scope, "/")
			bad := checkHost(host) != nil || len(scope) > 512
			for part := range strings.SplitSeq(repository, "/") {
				bad = bad || deeper && !word(part, lower+digits, "._-")
			}
			if bad {
				r.problem(l.path(scope), "is no host[:port] or host[:port]/repository, as references write it")
			}
			u := r.url(l, scope)
			switch {
			case u == "":
				r.problem(l.path(scope), "is empty; want https://host[:port][/path]")
			case strings.HasPrefix(u, "http:") && !r.allow(allowHTTP):
				r.problem(l.path(scope), "%s: this image allows nothing over plain http; want https", u)
			}
			m.Lookaside = append(m.Lookaside, Lookaside{scope, u})
		}
	}
	l.done()
	i.done()
}

// has reports whether a member of that name is in n, at any depth.
func (n *node) has(name string) bool {
	for _, m := range n.members {
		if m.name == name || m.value.has(name) {
			return true
		}
	}
	return slices.ContainsFunc(n.items, func(i *node) bool { return i.has(name) })
}

// sealed finds the broker of sealed values.
func (r *reader) sealed(o *object, m *Manifest, general []string) {
	where := ""
	for i, f := range m.Workload.Files {
		if strings.HasPrefix(f.Value, sealedPrefix) {
			where = fmt.Sprintf("files[%d].value", i)
			break
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Workload.Env)) {
		if strings.HasPrefix(m.Workload.Env[name], sealedPrefix) {
			where = join(o.path("env"), name)
			break
		}
	}
	if where != "" {
		m.Workload.SealedBroker = r.onlyBroker(m, where, "is a sealed secret, which a key broker opens", general)
	}
}

// reserved are folders that the sandbox lays out itself.
var reserved = []string{"/cocos/datasets", "/cocos/results", "/dev", "/proc", "/sys"}

func (r *reader) files(o *object) []File {
	list := o.list("files")
	if len(list) > maxFiles {
		r.problem(o.path("files"), "has %d, at most %d", len(list), maxFiles)
		return nil
	}
	var all []File
	for _, n := range list {
		e := r.object(n)
		if e == nil {
			continue
		}
		f := File{Path: e.text("path")}
		if v := e.get("value", '"'); v != nil {
			f.Value = v.text // any bytes of UTF-8, lines too
		} else if !e.has("value") {
			r.problem(e.path("value"), "is missing")
		}
		e.done()
		all = append(all, f)
		if f.Path == "" {
			r.problem(e.path("path"), "is missing")
			continue
		}
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" || len(f.Path) > 1024 {
			r.problem(e.path("path"), "%.200q: want an absolute path without . or .., at most 1024 bytes", f.Path)
			continue
		}
		for _, dir := range reserved {
			if below(f.Path, dir) || below(dir, f.Path) {
				r.problem(e.path("path"), "%.200q: %s is the sandbox's own; want another folder, as in /run/secrets", f.Path, dir)
			}
		}
		for i, other := range all[:len(all)-1] {
			if below(f.Path, other.Path) || below(other.Path, f.Path) {
				r.problem(e.path("path"), "%.200q: is files[%d] as well, or one would be a folder of the other", f.Path, i)
			}
		}
	}
	return all
}

// below reports whether p is dir or in it.
func below(p, dir string) bool { return p == dir || dir != "" && strings.HasPrefix(p, dir+"/") }
