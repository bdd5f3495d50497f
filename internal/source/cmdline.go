package source

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
)

// inline is a manifest on the command line: base64url without padding, of one gzip member.
type inline string

func (s inline) Fetch(context.Context) ([]byte, error) {
	b, err := s.decode()
	if err != nil {
		return nil, fmt.Errorf("manifest on the command line: %w", err)
	}
	return b, nil
}

func (s inline) decode() ([]byte, error) {
	if strings.ContainsAny(string(s), "\r\n") {
		return nil, fmt.Errorf("base64url: line break") // the decoder would skip it
	}
	packed, err := base64.RawURLEncoding.Strict().DecodeString(string(s))
	if err != nil {
		return nil, fmt.Errorf("base64url without padding: %w", err)
	}
	rest := bytes.NewReader(packed)
	z, err := gzip.NewReader(rest)
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	z.Multistream(false)
	b, err := io.ReadAll(io.LimitReader(z, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("gzip: more than %d bytes inside", MaxSize)
	}
	if n := rest.Len(); n > 0 {
		return nil, fmt.Errorf("gzip: %d bytes behind the first member; pack the manifest as one", n)
	}
	return b, nil
}
