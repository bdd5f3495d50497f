package cvms

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// maxMessage is the most bytes of one message of the server: a chunk of MaxRequest, and what is around it.
const maxMessage = MaxRequest + 4<<10

// newTransport carries gRPC: HTTP/2 in clear, and nothing from the environment. What a server can make it hold is bounded.
func newTransport() *http.Transport {
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	return &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		Protocols:              &h2,
		HTTP2:                  &http.HTTP2Config{MaxReadFrameSize: 16 << 10, MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 256 << 10},
		MaxResponseHeaderBytes: 16 << 10,
		DisableCompression:     true,
	}
}

// open begins the one call, cvms.Service/Process. A server sends its header with its first message, so that this returns no sooner.
func open(ctx context.Context, t *http.Transport, addr string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/cvms.Service/Process", body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	req.Header.Set("User-Agent", "ampoule")
	resp, err := t.RoundTrip(req) // and no redirect is followed
	if err != nil {
		return nil, err
	}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), "+")
	if resp.StatusCode != http.StatusOK || kind != "application/grpc" {
		resp.Body.Close()
		return nil, fmt.Errorf("status %d with content of type %.80q, want 200 and application/grpc", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return resp, nil
}

// frame puts a message into gRPC's five bytes: not compressed, and its length.
func frame(m []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

// readFrame reads the next message into buf, which it returns, grown if need be. The error is io.EOF between two messages.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return buf, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	switch {
	case head[0] != 0:
		return buf, fmt.Errorf("a message of flags %d, want none: nothing compressed was asked for", head[0])
	case size > maxMessage:
		return buf, fmt.Errorf("a message of %d bytes, at most %d", size, maxMessage)
	case uint32(cap(buf)) < size:
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if n, err := io.ReadFull(r, buf); err != nil {
		return buf, fmt.Errorf("a message breaks off at byte %d of %d: %v", n, size, err) // which is not the end of the call
	}
	return buf, nil
}

// ending is how the server ended the call; nil: well. It says so behind the last message, or in the header if there is none.
func ending(resp *http.Response) error {
	h := resp.Trailer
	if h.Get("Grpc-Status") == "" {
		h = resp.Header
	}
	if code := h.Get("Grpc-Status"); code != "0" {
		return fmt.Errorf("the server ended the call with status %.20q: %.200q", code, h.Get("Grpc-Message"))
	}
	return nil
}
