package manifest

import (
	"fmt"
	"net/url"
	"strings"
)

// place is a resource of a key broker as a manifest writes it: repository/type/tag, kbs:///repository/type/tag, or with
// a host, which must be the broker's (wire/SPEC.md §1.10).
type place struct {
	at        string // where in the manifest
	path      string
	authority string // host[:port] in lower case; empty: not said
}

func (r *reader) place(at, s string) (place, bool) {
	p := place{at: at, path: s}
	if rest, ok := strings.CutPrefix(s, "kbs://"); ok {
		authority, path, _ := strings.Cut(rest, "/")
		p.authority, p.path = strings.ToLower(authority), path
		if checkKeyPath(path) != nil || authority != "" && checkHost(authority) != nil {
			r.problem(at, "%.200q: want kbs:///repository/type/tag or kbs://host[:port]/repository/type/tag", s)
			return p, false
		}
	}
	if err := checkKeyPath(p.path); err != nil {
		r.problem(at, "%v", err)
		return p, false
	}
	return p, true
}

// agree sees that a place that names a host names its broker's. A port that is not said is any: kbs:// has none of its
// own.
func (r *reader) agree(p place, broker string) {
	u, err := url.Parse(broker)
	if p.authority == "" || broker == "" || err != nil {
		return
	}
	named := url.URL{Host: p.authority}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	if named.Hostname() != u.Hostname() || named.Port() != "" && named.Port() != port {
		r.problem(p.at, "names the key broker %s, and the manifest says %s for this resource; they must be one", p.authority, broker)
	}
}

// brokerResource reads a path, or {"kbs": url, "path": path} where the manifest lists several brokers. It is nil after a
// problem.
func (r *reader) brokerResource(m *Manifest, n *node, general []string) *BrokerResource {
	at, own, s := n.path, "", ""
	switch n.kind {
	case '"':
		s = n.text
	case '{':
		o := r.object(n)
		own, s = r.url(o, "kbs"), o.text("path")
		o.done()
		at = o.path("path")
		if s == "" {
			r.problem(at, "is missing")
			return nil
		}
	default:
		r.problem(n.path, `is %v, want "repository/type/tag" or {"kbs": "https://…", "path": "repository/type/tag"}`, n)
		return nil
	}
	p, ok := r.place(at, s)
	if !ok {
		return nil
	}
	missing := join(n.path, "kbs")
	if n.kind == '"' && len(general) != 1 {
		r.problem(n.path, `names no key broker, and the manifest has %d for all; want {"kbs": "https://…", "path": %q}`, len(general), p.path)
		return nil
	}
	broker := r.pick(m, missing, own, general, fmt.Sprintf("%s is kept at a key broker", p.path))
	if broker == "" {
		return nil
	}
	r.agree(p, broker)
	return &BrokerResource{broker, p.path}
}
