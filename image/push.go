package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// A Target is a repository that artifacts are pushed to. Its methods try once; what may go better another time is [Transient].
type Target struct {
	reg  *registry
	at   *place
	tag  string
	repo string
}

// A Descriptor names a blob or a manifest (OCI image spec, descriptor.md).
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Data         []byte            `json:"data,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Describe is the descriptor of b.
func Describe(mediaType string, b []byte) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: digestOf(b), Size: int64(len(b))}
}

// Empty is the config of an artifact that has none, {} (OCI image spec, manifest.md).
func Empty() Descriptor {
	d := Describe("application/vnd.oci.empty.v1+json", []byte("{}"))
	d.Data = []byte("{}")
	return d
}

// An Artifact is one file with a type, and of another artifact if it has a subject.
type Artifact struct {
	Type    string
	File    Descriptor
	Subject *Descriptor
}

// OpenTarget reads docker://host[:port]/repository[:tag]. Mirrors are not written to. Nobody is asked yet.
func OpenTarget(uri string, o Options) (*Target, error) {
	ref, pinned, err := parseURI(uri, o.PlainHTTP)
	if err != nil {
		return nil, err
	}
	if pinned {
		return nil, fmt.Errorf("%w: push to %.200q: name no digest, it follows from the bytes", ErrFormat, uri)
	}
	o.Mirrors = nil
	t := &Target{reg: openRegistry(ref.Context(), o), repo: ref.Context().RepositoryStr()}
	t.at = t.reg.places[0]
	t.at.push = true
	if tag, ok := ref.(name.Tag); ok && strings.HasSuffix(uri, ":"+tag.TagStr()) { // the library makes "latest" of none
		t.tag = tag.TagStr()
	}
	return t, nil
}

// Blob pushes what d describes, unless the registry has it (OCI distribution spec, "Pushing blobs": POST then PUT).
func (t *Target) Blob(ctx context.Context, d Descriptor, body io.Reader) error {
	blob := t.path("blobs", d.Digest)
	resp, err := t.reg.ask(ctx, t.at, http.MethodHead, blob, maxReply, http.Header{})
	if err != nil {
		return fmt.Errorf("push %s: %w", d.Digest, err)
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	if resp, err = t.reg.ask(ctx, t.at, http.MethodPost, t.path("blobs", "uploads/"), maxReply, http.Header{}); err != nil {
		return fmt.Errorf("push %s: %w", d.Digest, err)
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("push %s: %w", d.Digest, refusal(resp))
	}
	resp.Body.Close()
	from := resp.Request.URL
	at, err := from.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" || at.User != nil || at.Scheme != from.Scheme || special(from, at) {
		return fmt.Errorf("%w: push %s: %s opens no upload that could be used", ErrFormat, d.Digest, t.at.host)
	}
	q := at.Query()
	q.Set("digest", d.Digest)
	at.RawQuery = q.Encode()
	resp, err = t.put(ctx, at, "application/octet-stream", body, d.Size)
	if err != nil {
		return fmt.Errorf("push %s: %w", d.Digest, err)
	}
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("push %s: %w", d.Digest, refusal(resp))
	}
	return resp.Body.Close()
}

func (t *Target) path(kind, ref string) string { return fmt.Sprintf("/v2/%s/%s/%s", t.repo, kind, ref) }

// put sends a body to where the registry said, with its credential if that is itself.
func (t *Target) put(ctx context.Context, u *url.URL, mediaType string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), io.NopCloser(body))
	if err != nil {
		return nil, errors.New("no URL to put to") // which the error would quote
	}
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", mediaType)
	f := &flight{place: t.at, max: maxReply}
	t.at.mu.Lock()
	if u.Host == t.at.host && u.Scheme == t.at.scheme {
		f.auth = t.at.auth
	}
	t.at.mu.Unlock()
	return t.reg.fly(req, f)
}

// Manifest pushes the manifest of an artifact whose blobs are there, and returns its descriptor. It has the target's tag, or
// if it has a subject none. A registry that does not list it as one of its subject's referrers gets that list as an index
// at the tag that the specification keeps for it (OCI distribution spec, "Referrers Tag Schema").
func (t *Target) Manifest(ctx context.Context, a Artifact) (Descriptor, error) {
	body, err := json.Marshal(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		ArtifactType  string       `json:"artifactType"`
		Config        Descriptor   `json:"config"`
		Layers        []Descriptor `json:"layers"`
		Subject       *Descriptor  `json:"subject,omitempty"`
	}{2, ociManifest, a.Type, Empty(), []Descriptor{a.File}, a.Subject})
	if err != nil {
		return Descriptor{}, err
	}
	d := Describe(ociManifest, body)
	ref := d.Digest
	if a.Subject == nil && t.tag != "" {
		ref = t.tag
	}
	header, err := t.putManifest(ctx, ref, ociManifest, body)
	if err != nil || a.Subject == nil || header.Get("OCI-Subject") != "" {
		return d, err
	}
	d.ArtifactType = a.Type
	return d, t.refer(ctx, *a.Subject, d)
}

// putManifest pushes once, and once more when a token had to be renewed.
func (t *Target) putManifest(ctx context.Context, ref, mediaType string, body []byte) (http.Header, error) {
	t.at.mu.Lock()
	u, auth := &url.URL{Scheme: t.at.scheme, Host: t.at.host, Path: t.path("manifests", ref)}, t.at.auth
	t.at.mu.Unlock()
	resp, err := t.put(ctx, u, mediaType, bytes.NewReader(body), int64(len(body)))
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		resp.Body.Close()
		if err := t.reg.authenticate(ctx, t.at, auth, resp); err != nil {
			return nil, err
		}
		resp, err = t.put(ctx, u, mediaType, bytes.NewReader(body), int64(len(body)))
	}
	if err != nil {
		return nil, fmt.Errorf("push manifest %s: %w", ref, err)
	}
	if resp.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("push manifest %s: %w", ref, refusal(resp))
	}
	return resp.Header, resp.Body.Close()
}

// refer adds d to the index of subject's referrers. Others' entries stay as they are.
func (t *Target) refer(ctx context.Context, subject, d Descriptor) error {
	tag := strings.Replace(subject.Digest, ":", "-", 1)
	var index struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
		Annotations   map[string]string `json:"annotations,omitempty"`
	}
	resp, err := t.reg.ask(ctx, t.at, http.MethodGet, t.path("manifests", tag), maxManifest, http.Header{"Accept": {ociIndex}})
	if err != nil {
		return fmt.Errorf("referrers of %s: %w", subject.Digest, err)
	}
	switch resp.StatusCode {
	case http.StatusNotFound:
		resp.Body.Close()
	case http.StatusOK:
		b, err := readAll(resp.Body, maxManifest)
		resp.Body.Close()
		if err == nil {
			err = one(b, &index)
		}
		if err != nil || index.MediaType != ociIndex {
			return fmt.Errorf("%w: the index of the referrers of %s cannot be read (%w)", ErrFormat, subject.Digest, err)
		}
	default:
		return fmt.Errorf("referrers of %s: %w", subject.Digest, refusal(resp))
	}
	entry, err := json.Marshal(d)
	if err != nil {
		return err
	}
	for _, m := range index.Manifests {
		if bytes.Contains(m, []byte(d.Digest)) {
			return nil // from a try whose answer was lost
		}
	}
	index.SchemaVersion, index.MediaType, index.Manifests = 2, ociIndex, append(index.Manifests, entry)
	body, err := json.Marshal(index)
	if err != nil {
		return err
	}
	_, err = t.putManifest(ctx, tag, ociIndex, body)
	return err
}
