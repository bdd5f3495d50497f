package manifest

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"time"
)

// The types of sinks.
const (
	VsockSink  = "vsock"  // the host
	UploadSink = "upload" // an object store, by pre-signed URLs
	OCISink    = "oci"    // a registry
)

const maxSinks = 8

// sinkDeadline is how long a sink may take where it does not say; deliver has half an hour.
const sinkDeadline = 20 * time.Minute

// Sink is where a result goes.
type Sink struct {
	Type     string
	URI      string          // of a registry: docker://host[:port]/repository[:tag]
	Upload   []byte          // of an object store: the JSON that package sink reads; secret, for its URLs are signed
	At       *BrokerResource // in place of Upload: where that is kept
	Deadline time.Duration
}

// String names the sink, and shows no URL that may be signed.
func (s Sink) String() string {
	switch {
	case s.Type == OCISink:
		return s.URI
	case s.At != nil:
		return s.Type + " by " + s.At.Path
	}
	return s.Type
}

// sinks reads where the result goes: "vsock", "docker://…" or "https://…", or an object, which can say more.
func (r *reader) sinks(o *object, m *Manifest, general []string) {
	if !o.has("sinks") {
		return
	}
	m.Results.Sinks = nil
	list := o.list("sinks")
	if len(list) == 0 && o.members["sinks"].kind == '[' {
		r.problem(o.path("sinks"), "is empty: the result would go nowhere; want [%q]", defaultSink)
	}
	if len(list) > maxSinks {
		r.problem(o.path("sinks"), "%d of them, at most %d", len(list), maxSinks)
		return
	}
	for _, n := range list {
		s, ok := r.sink(n, m, general)
		if !ok {
			continue
		}
		same := func(other Sink) bool {
			return s.Type == other.Type && s.URI == other.URI && bytes.Equal(s.Upload, other.Upload) && (s.At == nil) == (other.At == nil) && (s.At == nil || *s.At == *other.At)
		}
		if slices.ContainsFunc(m.Results.Sinks, same) {
			r.problem(n.path, "%s: is there twice", s)
		}
		m.Results.Sinks = append(m.Results.Sinks, s)
	}
}

func (r *reader) sink(n *node, m *Manifest, general []string) (s Sink, ok bool) {
	s.Deadline = sinkDeadline
	switch n.kind {
	case '"':
		return s, r.sinkAt(n, &s)
	case '{':
	default:
		r.problem(n.path, "is %v, want a string or an object", n)
		return s, false
	}
	before := len(r.problems)
	o := r.object(n)
	if d := r.duration(o, "deadline", sinkDeadline, "20m"); d > 0 {
		s.Deadline = d
	}
	to, upload := o.get("to", '"'), o.member("upload")
	switch {
	case (to == nil) == (upload == nil):
		r.problem(n.path, `has both of "to" and "upload", or neither; want one`)
	case to != nil:
		r.sinkAt(to, &s)
	case slices.ContainsFunc(upload.members, func(m member) bool { return m.name == "url" || m.name == "parts" }):
		s.Type, s.Upload = UploadSink, bytes.Clone(r.b[upload.start:upload.end])
	default:
		s.Type, s.At = UploadSink, r.brokerResource(m, upload, general)
	}
	o.done()
	return s, len(r.problems) == before
}

// sinkAt reads where a sink is. A URL is not quoted: it may be signed.
func (r *reader) sinkAt(n *node, s *Sink) bool {
	scheme, rest, _ := strings.Cut(n.text, "://")
	switch {
	case n.text == VsockSink:
		s.Type = VsockSink
	case scheme == "https" || scheme == "http":
		s.Type, s.Upload = UploadSink, uploadTo(n.text)
	case scheme == "docker":
		if strings.Contains(rest, "@") {
			r.problem(n.path, "%.200q: has a digest, which the result gives; want docker://host/repository or with a :tag", n.text)
			return false
		}
		if _, err := checkReference(n.text); err != nil {
			r.problem(n.path, "%v", err)
			return false
		}
		s.Type, s.URI = OCISink, n.text
	default:
		r.problem(n.path, "%.80q: want vsock, https://… (pre-signed) or docker://host/repository", withoutQuery(n.text))
		return false
	}
	return true
}

// uploadTo is the object that a URL stands for.
func uploadTo(url string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(map[string]string{"url": url}) // of a string there is no error
	return bytes.TrimSpace(b.Bytes())
}

// recipientOf is a PKIX key in DER as recipients have it.
func recipientOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
