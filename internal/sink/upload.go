package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// The bounds of an upload: its bytes, its URLs and its headers.
const (
	MaxUpload  = 1 << 20
	maxURL     = 8192
	maxParts   = 10_000 // as S3 has it
	maxHeaders = 32
)

// methods are how object stores take a result. A new one is a file and a line here.
var methods = map[string]method{
	"put":   {putWhole, nil},
	"gcs":   {putGCS, nil},
	"azure": {putAzure, nil},
	"s3":    {putS3, checkS3},
}

type method struct {
	put   func(context.Context, *store, Result) error
	check func(*Upload) error
}

// An Upload is how a store takes a result: pre-signed URLs, which are secrets, for who has one can write there.
type Upload struct {
	method    method
	url       *url.URL
	receipt   *url.URL // nil: the receipt does not go there
	headers   http.Header
	parts     []*url.URL
	partBytes int64
	complete  *url.URL
}

const secret = "[secret]"

func (*Upload) String() string               { return secret }
func (*Upload) GoString() string             { return secret }
func (*Upload) LogValue() slog.Value         { return slog.StringValue(secret) }
func (*Upload) MarshalJSON() ([]byte, error) { return []byte(`"` + secret + `"`), nil }

// ParseUpload reads a URL, or a JSON object as docs/RESULTS.md has it. Nothing of it is quoted in errors but hosts.
func ParseUpload(b []byte, plainHTTP bool) (*Upload, error) {
	b = bytes.TrimSpace(b)
	if len(b) > MaxUpload {
		return nil, fmt.Errorf("upload: %d bytes, at most %d", len(b), MaxUpload)
	}
	if bytes.HasPrefix(b, []byte("http")) {
		b, _ = json.Marshal(map[string]string{"url": string(b)})
	}
	m, err := evidence.ObjectOf(b, nil, []string{"method", "url", "receipt_url", "headers", "parts", "part_bytes", "complete_url"})
	if err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	var doc struct {
		Method, URL string
		Receipt     string `json:"receipt_url"`
		Headers     map[string]string
		Parts       []string
		PartBytes   int64  `json:"part_bytes"`
		Complete    string `json:"complete_url"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, fmt.Errorf("upload: %s is of type %s", e.Field, e.Value)
		}
		return nil, errors.New("upload: is no JSON object")
	}
	for _, name := range []string{"url", "receipt_url", "complete_url", "method"} {
		if string(m[name]) == `""` {
			return nil, fmt.Errorf("upload: %s is empty", name)
		}
	}
	u := &Upload{partBytes: doc.PartBytes, headers: http.Header{}}
	one := func(name, text string) (parsed *url.URL) {
		if err == nil && text != "" {
			if parsed, err = parseURL(text, plainHTTP); err != nil {
				err = fmt.Errorf("upload: %s: %w", name, err)
			}
		}
		return parsed
	}
	u.url, u.receipt, u.complete = one("url", doc.URL), one("receipt_url", doc.Receipt), one("complete_url", doc.Complete)
	if len(doc.Parts) > maxParts {
		return nil, fmt.Errorf("upload: %d parts, at most %d", len(doc.Parts), maxParts)
	}
	for i, p := range doc.Parts {
		if p == "" {
			return nil, fmt.Errorf("upload: parts[%d] is empty", i)
		}
		u.parts = append(u.parts, one(fmt.Sprintf("parts[%d]", i), p))
	}
	if err != nil {
		return nil, err
	}
	if u.headers, err = parseHeaders(doc.Headers); err != nil {
		return nil, err
	}
	return u, u.choose(doc.Method)
}

// choose settles the method: the one that is named, else by what there is.
func (u *Upload) choose(name string) error {
	switch {
	case name != "":
	case len(u.parts) > 0:
		name = "s3"
	case u.url != nil && isAzure(u.url):
		name = "azure"
	default:
		name = "put"
	}
	m, ok := methods[name]
	if !ok {
		return fmt.Errorf("upload: method %.20q; want put, gcs, azure or s3", name)
	}
	u.method = m
	if m.check != nil {
		return m.check(u)
	}
	if u.url == nil || len(u.parts) > 0 || u.complete != nil || u.partBytes != 0 {
		return fmt.Errorf("upload: method %s wants url, and no parts", name)
	}
	return nil
}

// parseURL reads a pre-signed URL. Its errors do not quote it.
func parseURL(s string, plainHTTP bool) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case len(s) > maxURL:
		return nil, fmt.Errorf("is %d bytes, at most %d", len(s), maxURL)
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return nil, errors.New("is no https URL")
	case u.User != nil || u.Fragment != "":
		return nil, fmt.Errorf("has a user or a fragment; want https://%s/…", u.Host)
	case u.Scheme == "http" && !plainHTTP:
		return nil, fmt.Errorf("http://%s: this image allows no plain http; want https", u.Host)
	}
	return u, nil
}

// parseHeaders reads those that a URL was signed with. What frames the request is ours.
func parseHeaders(all map[string]string) (http.Header, error) {
	if len(all) > maxHeaders {
		return nil, fmt.Errorf("upload: %d headers, at most %d", len(all), maxHeaders)
	}
	h := http.Header{}
	for name, value := range all {
		key := http.CanonicalHeaderKey(name)
		switch {
		case strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" || name == "" || len(name) > 128:
			return nil, fmt.Errorf("upload: headers: %.40q is no name of one", name)
		case slices.Contains([]string{"Host", "Content-Length", "Content-Range", "Transfer-Encoding", "Connection", "Expect", "Trailer", "Te", "Upgrade"}, key):
			return nil, fmt.Errorf("upload: headers: %s is not yours to say", key)
		case len(value) > 4096 || strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c >= 0x7f }):
			return nil, fmt.Errorf("upload: headers: the value of %s is too long or has other characters than ASCII", key)
		case h[key] != nil:
			return nil, fmt.Errorf("upload: headers: %s is there twice", key)
		}
		h.Set(key, value)
	}
	return h, nil
}
