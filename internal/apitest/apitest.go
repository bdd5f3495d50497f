// Package apitest holds HTTP requests and answers against docs/host-api.yaml, for tests of both ends of it.
package apitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"
)

// A Document is the description of the host API.
type Document struct {
	doc    *openapi3.T
	router routers.Router
}

// Load reads and validates a document.
func Load(path string) (*Document, error) {
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", openapi3filter.PlainBodyDecoder)
	doc, err := openapi3.NewLoader().LoadFromFile(path)
	if err != nil {
		return nil, err
	}
	if err := doc.Validate(context.Background()); err != nil {
		return nil, err
	}
	router, err := legacy.NewRouter(doc)
	return &Document{doc, router}, err
}

// Answers lists what the document has, as "METHOD PATH STATUS", sorted.
func (d *Document) Answers() (all []string) {
	for path, item := range d.doc.Paths.Map() {
		for method, op := range item.Operations() {
			for status := range op.Responses.Map() {
				all = append(all, method+" "+path+" "+status)
			}
		}
	}
	slices.Sort(all)
	return all
}

// An Exchange is one request and what was answered.
type Exchange struct {
	Request *http.Request // its body is not read
	Sent    []byte
	Status  int
	Header  http.Header
	Body    []byte
}

// String names what was answered as Answers does.
func (e Exchange) String() string {
	return e.Request.Method + " " + e.Request.URL.Path + " " + strconv.Itoa(e.Status)
}

// CheckRequest holds the request alone against the document.
func (d *Document) CheckRequest(e Exchange) error {
	_, err := d.checkRequest(e)
	return err
}

func (d *Document) checkRequest(e Exchange) (*openapi3filter.RequestValidationInput, error) {
	r := e.Request.Clone(context.Background())
	r.URL.Scheme, r.URL.Host = "http", "host"
	r.Body = io.NopCloser(bytes.NewReader(e.Sent))
	route, params, err := d.router.FindRoute(r)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL, err)
	}
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route}
	return in, openapi3filter.ValidateRequest(context.Background(), in)
}

// Check holds both against it. A request that the host refuses may break the rules.
func (d *Document) Check(e Exchange) error {
	in, err := d.checkRequest(e)
	if in == nil || err != nil && e.Status/100 == 2 {
		return err
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: e.Status, Header: e.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true}}
	out.SetBodyBytes(e.Body)
	if err := openapi3filter.ValidateResponse(context.Background(), out); err != nil {
		return fmt.Errorf("answer %s: %w", e, err)
	}
	if e.Status == http.StatusNoContent && len(e.Body) > 0 {
		return errors.New("204 with a body")
	}
	return nil
}
