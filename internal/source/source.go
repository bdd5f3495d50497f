// Package source fetches the manifest from where the measured command line says it is: one file per kind of source.
//
// A source gives bytes, at most MaxSize of them, and judges nothing else: parsing is package manifest's, and whether
// these are the right bytes is decided against the evidence. All sources belong to the host.
package source

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

// MaxSize is the largest manifest, in bytes, after any decompression.
const MaxSize = 1 << 20

// A Source is one place to get a manifest from.
type Source interface {
	Fetch(ctx context.Context) ([]byte, error)
}

// Open returns the source that s names. vsock makes a client for the HTTP server on a port of the host; it is called
// for sources that need one.
func Open(s cmdline.Source, vsock func(port uint32) *http.Client) (Source, error) {
	switch s.Kind {
	case "cmdline":
		return inline(s.Arg), nil
	case "vsock":
		port, err := strconv.ParseUint(s.Arg, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("manifest source vsock:%s: want a port number", s.Arg)
		}
		return &remote{vsock(uint32(port))}, nil
	}
	return nil, fmt.Errorf("manifest source %q: want vsock:PORT or cmdline:DATA", s.Kind)
}
