package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
)

// The bounds of signatures: how many of one digest are read, and the bytes of each.
const (
	maxSignatures   = 32
	maxSignature    = 64 << 10
	maxSignatureDoc = 256 << 10 // of the manifest that lists cosign's, bytes
)

const (
	cosignLayer      = "application/vnd.dev.cosign.simplesigning.v1+json"
	cosignAnnotation = "dev.cosignproject.cosign/signature"
)

// A Signature is one that cosign keeps beside an image. Nothing of it has been verified but that it came whole.
type Signature struct {
	Payload   []byte // the signed bytes, JSON
	Signature string // base64
}

// Signatures reads what cosign has signed of digest, the image's or its manifest's: the layers of repository:sha256-….sig.
// They are returned besides an error too, which may be that there are none: what they are worth is the caller's to say.
func (i *Image) Signatures(ctx context.Context, digest string) ([]Signature, error) {
	all, err := i.signatures(ctx, digest)
	if err != nil {
		return all, fmt.Errorf("signatures of %s: %w", digest, err)
	}
	return all, nil
}

func (i *Image) signatures(ctx context.Context, digest string) ([]Signature, error) {
	body, _, err := i.reg.manifest(ctx, strings.Replace(digest, ":", "-", 1)+".sig", maxSignatureDoc)
	if err != nil {
		return nil, err
	}
	var doc document // its config is whatever signed it, and not read
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrFormat, err)
	}
	if doc.SchemaVersion != 2 || len(doc.Layers) > maxSignatures {
		return nil, fmt.Errorf("%w: schema %d, %d layers; want schema 2 and at most %d", ErrFormat, doc.SchemaVersion, len(doc.Layers), maxSignatures)
	}
	var all []Signature
	var errs []error
	for n, l := range doc.Layers {
		signature := l.Annotations[cosignAnnotation]
		if l.MediaType != cosignLayer || signature == "" {
			errs = append(errs, fmt.Errorf("layer %d: %w: type %.100q is none of cosign's, or bears no %s", n, ErrFormat, l.MediaType, cosignAnnotation))
			continue
		}
		payload, err := i.payload(ctx, l)
		if err != nil {
			errs = append(errs, fmt.Errorf("layer %d: %w", n, err))
			continue
		}
		all = append(all, Signature{payload, signature})
	}
	return all, errors.Join(errs...)
}

func (i *Image) payload(ctx context.Context, d descriptor) ([]byte, error) {
	if err := d.check("payload", maxSignature); err != nil {
		return nil, err
	}
	return i.reg.small(ctx, d.Digest, d.Size)
}

// Lookaside reads the simple signatures of digest, the image's or its manifest's, that are kept beside a registry:
// base/repository@sha256=…/signature-1, and so on to the first that is not there (containers-registries.d(5)). Of o the
// Transport and PlainHTTP count; nobody logs in, and a redirect is an error. What was read is returned besides an error.
func (i *Image) Lookaside(ctx context.Context, base, digest string, o Options) ([][]byte, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%w: lookaside %.200q; want https://host[:port][/path]", ErrFormat, base)
	}
	ref, _, err := parseURI(i.URI, o.PlainHTTP)
	if err != nil {
		return nil, err
	}
	inner := o.Transport
	if inner == nil {
		inner = newTransport()
	}
	client := &http.Client{Transport: &schemeGuard{inner, o.PlainHTTP}, CheckRedirect: func(req *http.Request, _ []*http.Request) error {
		return fmt.Errorf("redirect to %s is refused", req.URL.Host)
	}}
	dir := path.Join(u.Path, "/"+ref.Context().RepositoryStr()+"@"+strings.Replace(digest, ":", "=", 1))
	var all [][]byte
	for n := 1; n <= maxSignatures; n++ {
		u.Path = fmt.Sprintf("%s/signature-%d", dir, n)
		b, err := lookaside(ctx, client, u.String())
		if err != nil {
			return all, fmt.Errorf("lookaside %s: %w", u, err)
		}
		if b == nil {
			break
		}
		all = append(all, b)
	}
	return all, nil
}

// lookaside is one signature, nil where there is none.
func lookaside(ctx context.Context, client *http.Client, u string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		b, err := readAll(resp.Body, maxSignature)
		if b == nil && err == nil {
			b = []byte{}
		}
		return b, err
	case http.StatusNotFound:
		return nil, nil
	}
	return nil, fmt.Errorf("the server says %s", resp.Status)
}
