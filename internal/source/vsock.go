package source

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// remote is a manifest that the host serves.
type remote struct{ client *http.Client }

func (s *remote) Fetch(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host/v1/manifest", nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("manifest from the host: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("manifest from the host: status %d, want 200", resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("manifest from the host: %w", err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("manifest from the host: more than %d bytes", MaxSize)
	}
	return b, nil
}
