package vtpm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// imdsURL is Azure's metadata service. What it says is the host's word: callers check it against what hardware signed.
const imdsURL = "http://169.254.169.254"

// maxIMDS bounds an answer, bytes.
const maxIMDS = 64 << 10

// imdsTries is how often a service that is busy is asked, imdsPause what lies between.
const (
	imdsTries = 4
	imdsPause = time.Second
)

type imds struct {
	url    string
	client *http.Client
}

func newIMDS(url string) imds {
	return imds{url, &http.Client{
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       20 * time.Second,
	}}
}

// vcek gets the certificate of the chip's key, DER.
func (m imds) vcek(ctx context.Context) ([]byte, error) {
	var answer struct {
		VCEK string `json:"vcekCert"`
	}
	if err := m.ask(ctx, http.MethodGet, "/metadata/THIM/amd/certification", nil, &answer); err != nil {
		return nil, err
	}
	block, rest := pem.Decode([]byte(answer.VCEK))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("metadata service: vcekCert is not one PEM certificate")
	}
	return block.Bytes, nil
}

// tdQuote has a TDREPORT signed.
func (m imds) tdQuote(ctx context.Context, report []byte) ([]byte, error) {
	body, err := json.Marshal(map[string]string{"report": base64.RawURLEncoding.EncodeToString(report)})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Quote string `json:"quote"`
	}
	if err := m.ask(ctx, http.MethodPost, "/acc/tdquote", body, &answer); err != nil {
		return nil, err
	}
	quote, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimRight(answer.Quote, "="))
	if err != nil {
		return nil, fmt.Errorf("metadata service: quote: %w", err)
	}
	return quote, nil
}

func (m imds) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	for try := 1; ; try++ {
		busy, err := m.once(ctx, method, path, body, answer)
		if err == nil || !busy || try == imdsTries {
			return err
		}
		select {
		case <-time.After(imdsPause):
		case <-ctx.Done():
			return fmt.Errorf("%w, after: %w", context.Cause(ctx), err)
		}
	}
}

func (m imds) once(ctx context.Context, method, path string, body []byte, answer any) (busy bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, m.url+path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Metadata", "true")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return false, fmt.Errorf("metadata service: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		busy := resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500
		return busy, fmt.Errorf("metadata service: %s %s: %s", method, path, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxIMDS+1))
	if err != nil {
		return false, fmt.Errorf("metadata service: %s: %w", path, err)
	}
	if len(b) > maxIMDS {
		return false, fmt.Errorf("metadata service: %s: more than %d bytes", path, maxIMDS)
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return false, fmt.Errorf("metadata service: %s: %w", path, err)
	}
	return false, nil
}
