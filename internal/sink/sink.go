// Package sink hands over what a run gives: events while it goes on, the sealed result and its receipt at the end.
//
// The taker is the host, or belongs to it. It may refuse, stop reading, or never answer; the boot then goes on without
// events, and a delivery fails when its context ends. It is told nothing that is not public or sealed.
package sink

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ampoule-vm/ampoule/image"
)

// Vsock delivers to the HTTP server that the host runs behind the vsock.
type Vsock struct{ client *http.Client }

// NewVsock uses a client whose requests to http://host/ reach the host.
func NewVsock(c *http.Client) *Vsock { return &Vsock{c} }

// PutResult delivers the sealed result of size bytes from r, which it does not close.
func (v *Vsock) PutResult(ctx context.Context, r io.Reader, size int64) error {
	return v.put(ctx, "/v1/result", r, size)
}

// PutReceipt delivers receipt.json.
func (v *Vsock) PutReceipt(ctx context.Context, receipt []byte) error {
	return v.put(ctx, "/v1/receipt", bytes.NewReader(receipt), int64(len(receipt)))
}

// PutLog delivers a sealed log of size bytes: of what went wrong after the result was sealed.
func (v *Vsock) PutLog(ctx context.Context, r io.Reader, size int64) error {
	return v.put(ctx, "/v1/log", r, size)
}

func (v *Vsock) put(ctx context.Context, path string, r io.Reader, size int64) error {
	if size < 0 {
		return fmt.Errorf("PUT %s: size %d is negative", path, size)
	}
	body := io.NopCloser(r)
	if size == 0 {
		body = http.NoBody // otherwise a length of 0 stands for an unknown one
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://host"+path, body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	return v.do(req)
}

// do takes no status but 2xx for a delivery. What else the host says is not read.
func (v *Vsock) do(req *http.Request) error {
	resp, err := v.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return &statusError{req.Method + " " + req.URL.Path, resp.StatusCode, "", image.RetryAfter(resp.Header, time.Now())}
	}
	return nil
}
