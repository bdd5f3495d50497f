package manifest

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// schemes are what URIs of files begin with, by Resource.Type.
var schemes = map[string]string{"s3": "s3", "gcs": "gs", "https": "https", "http": "http"}

// IsFile reports whether the resource is a file, from an object store or a web server, and not an image.
func (r Resource) IsFile() bool { return schemes[r.Type] != "" }

// fileAt is where in the manifest a file's URI is, and the object that it is a member of.
type fileAt struct {
	src *object
	at  string
}

// withoutQuery is a URI as it may be shown: what is behind the ? may be a signature.
func withoutQuery(uri string) string {
	uri, _, _ = strings.Cut(uri, "?")
	return uri
}

// checkFile judges where a file is, and says what it is called there; empty if its place tells no name.
func checkFile(scheme, uri string) (name string, err error) {
	rest, ok := strings.CutPrefix(uri, scheme+"://")
	switch {
	case !ok:
		return "", fmt.Errorf("%.200q: want %s://…", withoutQuery(uri), scheme)
	case len(uri) > 8192:
		return "", fmt.Errorf("%.200q…: is %d bytes, at most 8192", withoutQuery(uri), len(uri))
	case scheme == "https" || scheme == "http":
		u, err := url.Parse(uri)
		switch {
		case err != nil: // which quotes the query
			return "", fmt.Errorf("%.200q: is no URL", withoutQuery(uri))
		case u.User != nil || strings.Contains(uri, "#"):
			return "", fmt.Errorf("%.200q: has a user or a fragment; want %s://host[:port]/path", withoutQuery(u.Redacted()), scheme)
		}
		if err := checkHost(u.Host); err != nil {
			return "", fmt.Errorf("%.200q: %w", withoutQuery(uri), err)
		}
		rest = u.Path
	default:
		bucket, key, _ := strings.Cut(rest, "/")
		if err := checkBucket(bucket); err != nil {
			return "", fmt.Errorf("%.200q: %w", uri, err)
		}
		if key == "" || len(key) > 1024 {
			return "", fmt.Errorf("%.200q: a key of %d bytes; want %s://bucket/key, at most 1024", uri, len(key), scheme)
		}
		if parts := strings.Split(key, "/"); slices.Contains(parts, ".") || slices.Contains(parts, "..") {
			return "", fmt.Errorf("%.200q: . or .. in the key, which servers take for another key", uri)
		}
		rest = "/" + key
	}
	name = rest[strings.LastIndex(rest, "/")+1:]
	if name == "." || name == ".." || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
		name = ""
	}
	return name, nil
}

func checkBucket(s string) error {
	if len(s) < 3 || len(s) > 222 || !word(s, lower+digits, "._-") {
		return fmt.Errorf("bucket %.230q: want 3 characters or more, lower-case letters, digits and inner . _ -", s)
	}
	return nil
}

// file judges a dataset's file, or an algorithm's, once its members are read: which bytes it must have, and what it is called.
func (r *reader) file(o *object, res *Resource, taken map[string]string) {
	f, ok := r.objects[res]
	at := f.at
	if !ok {
		if res.Decompress {
			r.problem(o.path("decompress"), "is of a file, zip or tar; an image is unpacked anyway")
		}
		return
	}
	name, err := checkFile(schemes[res.Type], res.URI)
	if err != nil {
		r.problem(at, "%v", err)
		return
	}
	switch {
	case res.Type == "http" && !r.allow(allowHTTP):
		r.problem(at, "%.200q: this image allows no plain http; want https", withoutQuery(res.URI))
	case res.Encrypted && res.KeyPath == "":
		r.problem(f.src.path("kbs_resource_path"), "is missing, and the file is encrypted: unlike an image it names no key")
	case !res.Pinned() && !r.allow(allowTag):
		r.problem(at, `%.200q: is not encrypted and has no digest, so whoever serves it could change it; want "sha256"`, withoutQuery(res.URI))
	}
	if res.Filename != "" || res.Decompress {
		return
	}
	if name == "" {
		r.problem(o.path("filename"), "is missing, and the URI ends in no name")
		return
	}
	if taken[name] != "" {
		r.problem(o.path("filename"), "is missing: by its URI the file is %.260q, as %s is", name, taken[name])
	}
	res.Filename, taken[name] = name, at
}

// Store is how a bucket, or a web server, is reached.
type Store struct {
	URL       string // s3://bucket, gs://bucket or https://host[:port]
	Endpoint  string // https://host[:port][/path], normalised; empty: that of AWS or Google
	Region    string // that signatures name; empty: the store's default
	PathStyle bool   // the bucket is in the path and not in the host

	Credentials *BrokerResource // an access key or a token; nil: none
}

// StoreOf is what the manifest says of the store that a file is in; nil: nothing.
func (m *Manifest) StoreOf(res Resource) *Store {
	key := storeOf(res.URI)
	for i := range m.Stores {
		if m.Stores[i].URL == key {
			return &m.Stores[i]
		}
	}
	return nil
}

// storeOf is the store's part of a URI, as Store.URL has it.
func storeOf(uri string) string {
	scheme, rest, _ := strings.Cut(uri, "://")
	host, _, _ := strings.Cut(withoutQuery(rest), "/")
	if scheme != "https" {
		return scheme + "://" + host
	}
	if u, err := brokerURL("https://" + host); err == nil {
		return u
	}
	return ""
}

func (r *reader) stores(o *object, m *Manifest, general []string) {
	for _, n := range o.list("stores") {
		e := r.object(n)
		if e == nil {
			continue
		}
		s := Store{URL: e.text("url"), Region: e.text("region")}
		scheme, rest, _ := strings.Cut(s.URL, "://")
		bucket := strings.TrimSuffix(rest, "/")
		switch scheme {
		case "s3", "gs":
			if err := checkBucket(bucket); err != nil {
				r.problem(e.path("url"), "%.200q: %v", s.URL, err)
			}
		case "https":
			if err := checkHost(bucket); err != nil {
				r.problem(e.path("url"), "%.200q: %v", withoutQuery(s.URL), err)
			}
			for _, name := range []string{"endpoint", "region", "path_style"} {
				if e.has(name) {
					r.problem(e.path(name), "is of a bucket, s3:// or gs://")
				}
			}
			if !e.has("credentials") {
				r.problem(e.path("credentials"), "is missing: nothing is said of the server")
			}
		default:
			r.problem(e.path("url"), "%.200q: want s3://bucket, gs://bucket or https://host", withoutQuery(s.URL))
		}
		s.URL = storeOf(s.URL)
		if slices.ContainsFunc(m.Stores, func(other Store) bool { return other.URL == s.URL }) {
			r.problem(e.path("url"), "%.200q: is listed twice", s.URL)
		}
		s.Endpoint = r.url(e, "endpoint")
		s.PathStyle = e.flag("path_style", s.Endpoint != "")
		if s.Region != "" && !word(s.Region, lower+digits, "-") {
			r.problem(e.path("region"), "%.80q: want one as eu-central-1", s.Region)
		}
		if n := e.member("credentials"); n != nil {
			s.Credentials = r.brokerResource(m, n, general)
		}
		switch plain := strings.HasPrefix(s.Endpoint, "http:"); {
		case plain && s.Credentials != nil:
			r.problem(e.path("endpoint"), "%s: credentials go over https alone", s.Endpoint)
		case plain && !r.allow(allowHTTP):
			r.problem(e.path("endpoint"), "%s: this image allows no plain http; want https", s.Endpoint)
		}
		e.done()
		m.Stores = append(m.Stores, s)
	}
}
