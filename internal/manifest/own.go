package manifest

import (
	"crypto/x509"
	"encoding/pem"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// own reads Ampoule's spelling: all of the remote-resources one, and more. docs/MANIFEST.md lists it.
func (r *reader) own(o *object, m *Manifest) {
	m.Spelling = Own
	if n := o.get("version", '0'); n != nil && n.text != "1" {
		r.problem(n.path, "is %.20s, want 1", n.text)
	}
	r.identify(o, m, "computation_id")
	m.Workload.Kind = r.kind(o, "workload", defaultKind)
	var wishes []wish
	if a := r.algorithm(o); a != nil {
		res := r.where(a, false)
		if !res.IsFile() {
			r.keyPath(a, res) // of a file, file asks
		}
		res.SHA256, res.SHA3_256 = r.hexDigest(a, "sha256", 32), r.hexDigest(a, "sha3_256", 32)
		res.Decompress, m.Workload.Path = a.flag("decompress", false), r.algorithmPath(a)
		r.algorithmFile(a, res, m)
		wishes = append(wishes, wish{res, a.n.path, r.broker(a, true)})
		a.done()
	}
	taken := map[string]string{}
	for _, n := range o.list("datasets") {
		if d := r.object(n); d != nil {
			res := r.where(d, false)
			r.filename(d, res, taken)
			if !res.IsFile() {
				r.keyPath(d, res) // of a file, file asks
			}
			res.SHA256, res.SHA3_256 = r.hexDigest(d, "sha256", 32), r.hexDigest(d, "sha3_256", 32)
			res.Decompress = d.flag("decompress", false)
			r.file(d, res, taken)
			d.later("path")
			wishes = append(wishes, wish{res, n.path, r.broker(d, true)})
			d.done()
		}
	}
	wishes = append(wishes, r.runtime(o, m)...)
	general := r.brokers(o, m)
	r.workload(o, m)
	r.limits(o.child("resources"), m)
	r.results(o.child("results"), m, general)
	r.registries(o, m, general)
	r.stores(o, m, general)
	r.images(o, m, general)
	r.guestAPI(o.child("guest_api"), m, general)
	r.sealed(o, m, general)
	switch o.text("logs") {
	case "", "sealed":
	case "host":
		m.Logs = "host"
	default:
		r.problem(o.path("logs"), "want sealed or host")
	}
	o.done()
	r.finish(m, wishes, general)
}

func (r *reader) keyPath(o *object, res *Resource) {
	if res.Encrypted && res.KeyPath == "" {
		if s := o.members["source"]; s != nil {
			r.problem(join(s.path, "kbs_resource_path"), "is missing, and the image is encrypted")
		} else {
			r.problem(o.path("kbs_resource_path"), "is missing, and the image is encrypted")
		}
	}
}

// brokers reads "kbs" as a list with pins, or as the remote spelling has it.
func (r *reader) brokers(o *object, m *Manifest) []string {
	if n := o.members["kbs"]; n == nil || n.kind != '[' {
		return r.generalBroker(o)
	}
	if o.has("kbs_url") {
		o.known["kbs_url"] = true
		r.problem(o.path("kbs_url"), "stands beside kbs, which lists the key brokers; keep one")
	}
	var urls []string
	for _, n := range o.list("kbs") {
		e := r.object(n)
		if e == nil {
			continue
		}
		b := Broker{URL: r.url(e, "url"), CA: r.certificates(e, "ca"), SPKI: r.hexDigest(e, "spki", 32), KeyType: e.text("key_type")}
		if b.KeyType != "" && !slices.Contains(KeyTypes, b.KeyType) {
			r.problem(e.path("key_type"), "%.40q: want one of %s", b.KeyType, strings.Join(KeyTypes, ", "))
		}
		e.later("resources")
		e.done()
		switch {
		case b.URL == "":
			r.problem(e.path("url"), "is missing")
		case slices.Contains(urls, b.URL):
			r.problem(e.path("url"), "%s: is listed twice", b.URL)
		case strings.HasPrefix(b.URL, "http:") && (b.CA != nil || b.SPKI != nil):
			r.problem(e.path("url"), "%s: plain http has no certificate to pin; want https", b.URL)
		case strings.HasPrefix(b.URL, "http:") && !r.allow(allowHTTP):
			r.problem(e.path("url"), "%s: this image allows no key broker over plain http; want https", b.URL)
		}
		urls, m.Brokers = append(urls, b.URL), append(m.Brokers, b)
	}
	return urls
}

// certificates reads PEM and sees that there is nothing but certificates in it.
func (r *reader) certificates(o *object, name string) []byte {
	n := o.get(name, '"')
	if n == nil || n.text == "" {
		return nil
	}
	for rest := []byte(n.text); len(strings.TrimSpace(string(rest))) > 0; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			r.problem(n.path, "is not PEM of certificates alone")
			return nil
		}
		if _, err := x509.ParseCertificate(b.Bytes); err != nil {
			r.problem(n.path, "has a certificate that cannot be read: %v", err)
			return nil
		}
	}
	return []byte(n.text)
}

func (r *reader) workload(o *object, m *Manifest) {
	w := &m.Workload
	r.network(o, m)
	w.Args = o.texts("args")
	w.User, w.Cwd = o.text("user"), o.text("cwd")
	if w.User != "" && (strings.Count(w.User, ":") > 1 || !word(strings.Replace(w.User, ":", "", 1), alnum+"_.-", "") || strings.HasSuffix(w.User, ":") || strings.HasPrefix(w.User, ":")) {
		r.problem(o.path("user"), "%.80q: want user or user:group, by name or number", w.User)
	}
	if w.Cwd != "" && (!path.IsAbs(w.Cwd) || path.Clean(w.Cwd) != w.Cwd) {
		r.problem(o.path("cwd"), "%.200q: want an absolute path without . or ..", w.Cwd)
	}
	w.Files = r.files(o)
	if env := o.child("env"); env != nil {
		w.Env = map[string]string{}
		for _, name := range slices.Sorted(maps.Keys(env.members)) {
			n := env.get(name, '"')
			if n == nil {
				continue
			}
			r.noNUL(n)
			if name == "" || strings.ContainsAny(name, "=\x00") {
				r.problem(n.path, "is not a name of a variable; want one without = and NUL")
			}
			w.Env[name] = n.text
		}
	}
}

func (r *reader) limits(o *object, m *Manifest) {
	l := &m.Resources
	o.number("memory_bytes", &l.MemoryBytes, 1<<20, 1<<50)
	o.number("pids", &l.PIDs, 1, 1<<22)
	o.number("input_bytes", &l.InputBytes, 1<<20, 1<<50)
	o.number("disk_bytes", &l.DiskBytes, 1<<20, 1<<50)
	o.number("cpus", &l.CPUs, 1, 1<<12)
	l.Deadline, l.Grace = r.duration(o, "deadline", 30*24*time.Hour, "720h"), r.duration(o, "grace", MaxGrace, "10m")
	r.together(o, m)
	o.done()
}

func (r *reader) results(o *object, m *Manifest, general []string) {
	s := &m.Results
	if p := o.text("path"); p != "" && p != ResultsPath {
		r.problem(o.path("path"), "%.200q: not supported in this build; want %s", p, ResultsPath)
	}
	o.number("limit_bytes", &s.LimitBytes, 1, 1<<50)
	s.Recipients = r.recipients(o)
	r.sinks(o, m, general)
	o.done()
}

// recipientForms are how public keys begin that a result can be sealed to.
var recipientForms = []string{"age1", "ssh-ed25519 ", "ssh-rsa ", "-----BEGIN PUBLIC KEY-----"}

// recipients reads public keys. That each is one is package result's to say; that they go together is said here,
// because otherwise it would come out only when there is a result to lose.
func (r *reader) recipients(o *object) []string {
	var all []string
	quantum := 0
	for _, n := range o.list("recipients") {
		switch s := n.text; {
		case n.kind != '"':
			r.problem(n.path, "is %v, want a string", n)
		case !slices.ContainsFunc(recipientForms, func(form string) bool { return strings.HasPrefix(s, form) }):
			r.problem(n.path, "is no age1…, ssh-ed25519, ssh-rsa or PEM public key") // not quoted: it may be a secret key
		case len(s) > 4096:
			r.problem(n.path, "is %d bytes, at most 4096", len(s))
		case slices.Contains(all, s):
			r.problem(n.path, "is there twice")
		default:
			if !strings.HasPrefix(s, "-----") { // PEM has lines
				r.plain(n)
			}
			if strings.HasPrefix(s, "age1pq1") {
				quantum++
			}
			all = append(all, s)
		}
	}
	if quantum > 0 && quantum < len(all) {
		r.problem(o.path("recipients"), "mixes post-quantum age1pq1… keys with others, which age does not seal to together")
	}
	return all
}

func (r *reader) registries(o *object, m *Manifest, general []string) {
	for _, n := range o.list("registries") {
		e := r.object(n)
		if e == nil {
			continue
		}
		reg := Registry{Host: e.text("host"), CA: r.certificates(e, "ca")}
		if err := checkHost(reg.Host); err != nil {
			r.problem(e.path("host"), "%v", err)
		}
		if slices.ContainsFunc(m.Registries, func(other Registry) bool { return other.Host == reg.Host }) {
			r.problem(e.path("host"), "%.200q: is listed twice", reg.Host)
		}
		if n := e.member("credentials"); n != nil {
			reg.Credentials = r.brokerResource(m, n, general)
		}
		reg.Mirrors = r.mirrors(e, reg.Host)
		if reg.Proxy = e.text("proxy"); e.has("proxy") {
			if err := checkProxy(reg.Proxy); err != nil {
				r.problem(e.path("proxy"), "%v", err)
			}
		}
		if !e.has("ca") && !e.has("credentials") && !e.has("mirrors") && !e.has("proxy") {
			r.problem(e.path("ca"), "is missing, and so are credentials, mirrors and proxy: nothing is said of the registry")
		}
		e.done()
		m.Registries = append(m.Registries, reg)
	}
}

// maxMirrors of a registry.
const maxMirrors = 8

func (r *reader) mirrors(e *object, host string) []string {
	var all []string
	for _, n := range e.list("mirrors") {
		if n.kind != '"' {
			r.problem(n.path, "is %v, want a string", n)
			continue
		}
		if err := checkMirror(n.text); err != nil {
			r.problem(n.path, "%v", err)
		} else if n.text == host || slices.Contains(all, n.text) {
			r.problem(n.path, "%s: is the registry itself, or there twice", n.text)
		}
		all = append(all, n.text)
	}
	if e.has("mirrors") && (len(all) == 0 || len(all) > maxMirrors) {
		r.problem(e.path("mirrors"), "%d of them; want 1 to %d", len(all), maxMirrors)
	}
	return all
}
