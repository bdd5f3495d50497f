package egress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// maxHead bounds the head of a request to the proxy, bytes, and what is read with it.
const maxHead = 16 << 10

// A request asks the proxy to connect.
type request struct {
	host string
	port uint16
	head []byte // of a request that is passed on, rewritten for the server; nil: the connection is all that is wanted
	body int64  // bytes that follow such a head
}

// A badRequest is answered with its status.
type badRequest struct {
	status string // code and phrase
	why    string
}

func (e *badRequest) Error() string { return e.why }

func bad(format string, args ...any) error {
	return &badRequest{"400 Bad Request", fmt.Sprintf(format, args...)}
}

// headReader bounds what readHTTP reads of a connection.
func headReader(c io.Reader) (*bufio.Reader, *io.LimitedReader) {
	l := &io.LimitedReader{R: c, N: maxHead}
	return bufio.NewReader(l), l
}

// readHTTP reads the head of one HTTP/1 request (RFC 9112): CONNECT host:port, or another method with an http:// URL. What follows the head,
// a body or the program's own bytes, stays in r.
func readHTTP(r *bufio.Reader, left *io.LimitedReader) (request, error) {
	h, err := http.ReadRequest(r)
	if left.N <= 0 {
		return request{}, &badRequest{"431 Request Header Fields Too Large", fmt.Sprintf("a head of more than %d bytes", maxHead)}
	}
	left.N = math.MaxInt64
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrDeadlineExceeded):
		return request{}, err
	case err != nil || h.ProtoMajor != 1:
		return request{}, bad("no request of HTTP/1.1")
	case h.Method == http.MethodConnect:
		return splitTarget(h.RequestURI, 0)
	case h.URL.Scheme != "http" || h.URL.User != nil:
		return request{}, bad("want CONNECT host:port, or the whole URL of a request over http://, without a user")
	case len(h.TransferEncoding) > 0:
		return request{}, &badRequest{"411 Length Required", "a body without Content-Length; use CONNECT, or connect to the name itself"}
	}
	req, err := splitTarget(h.URL.Host, 80)
	if err != nil {
		return request{}, err
	}
	req.body = max(0, h.ContentLength)
	// What is between the program and the proxy stays there; each connection takes one request.
	drop := map[string]bool{}
	for _, name := range []string{"Connection", "Content-Length", "Host", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Te", "Upgrade"} {
		drop[name] = true
	}
	for _, names := range h.Header["Connection"] {
		for name := range strings.SplitSeq(names, ",") {
			drop[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", h.Method, h.URL.RequestURI(), h.URL.Host)
	if h.ContentLength > 0 || h.Header["Content-Length"] != nil {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", h.ContentLength)
	}
	h.Header.WriteSubset(&head, drop)
	head.WriteString("\r\n")
	req.head = head.Bytes()
	return req, nil
}

// splitTarget reads host:port, with IPv6 in brackets. A port may be missing only where there is an absent one.
func splitTarget(s string, absent uint16) (request, error) {
	if absent != 0 && (!strings.Contains(s, ":") || strings.HasSuffix(s, "]")) {
		s += ":" + strconv.Itoa(int(absent))
	}
	host, p, err := net.SplitHostPort(s)
	n, err2 := strconv.ParseUint(p, 10, 16)
	if err != nil || err2 != nil || n == 0 {
		return request{}, bad("want host:port, with a port from 1 to 65535")
	}
	_, err = netip.ParseAddr(host)
	if !isTarget(host) || err != nil && strings.HasPrefix(s, "[") {
		return request{}, bad("a host that is neither a name nor an address")
	}
	return request{host: host, port: uint16(n)}, nil
}

// isTarget keeps out what is in no name and no address.
func isTarget(host string) bool {
	return host != "" && len(host) <= 254 && !strings.ContainsFunc(host, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"#%/<>?@[\]^{|}`+"`", c)
	})
}

// The parts of SOCKS 5, RFC 1928.
const (
	socksVersion  = 5
	socksNoAuth   = 0
	socksNoMethod = 0xff
	socksConnect  = 1
	socksIPv4     = 1
	socksName     = 3
	socksIPv6     = 4

	socksOK          = 0
	socksFailed      = 1
	socksRefused     = 2
	socksUnreachable = 4
	socksNoCommand   = 7
	socksNoType      = 8
)

// A badSOCKS is answered with its code.
type badSOCKS struct {
	code byte
	why  string
}

func (e *badSOCKS) Error() string { return e.why }

// readSOCKS reads a SOCKS 5 request for a connection and answers the greeting before it, on w.
func readSOCKS(r io.Reader, w io.Writer) (request, error) {
	b := make([]byte, 256)
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return request{}, err
	}
	methods := b[2 : 2+min(int(b[1]), 254)]
	if b[0] != socksVersion || int(b[1]) != len(methods) {
		return request{}, errors.New("no greeting of SOCKS 5")
	}
	if _, err := io.ReadFull(r, methods); err != nil {
		return request{}, err
	}
	if !bytes.Contains(methods, []byte{socksNoAuth}) {
		w.Write([]byte{socksVersion, socksNoMethod})
		return request{}, errors.New("SOCKS 5 with a login")
	}
	if _, err := w.Write([]byte{socksVersion, socksNoAuth}); err != nil {
		return request{}, err
	}
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return request{}, err
	}
	if b[0] != socksVersion || b[2] != 0 {
		return request{}, &badSOCKS{socksFailed, "no request of SOCKS 5"}
	}
	if b[1] != socksConnect {
		return request{}, &badSOCKS{socksNoCommand, "only CONNECT is served"}
	}
	kind, size := b[3], 0
	switch kind {
	case socksIPv4:
		size = 4
	case socksIPv6:
		size = 16
	case socksName:
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return request{}, err
		}
		size = int(b[0])
	default:
		return request{}, &badSOCKS{socksNoType, "an unknown type of address"}
	}
	if _, err := io.ReadFull(r, b[:size]); err != nil {
		return request{}, err
	}
	req := request{host: string(b[:size])}
	if kind != socksName {
		a, _ := netip.AddrFromSlice(b[:size])
		req.host = a.String()
	} else if !isTarget(req.host) {
		return request{}, &badSOCKS{socksFailed, "a host that is neither a name nor an address"}
	}
	if _, err := io.ReadFull(r, b[:2]); err != nil {
		return request{}, err
	}
	if req.port = uint16(b[0])<<8 | uint16(b[1]); req.port == 0 {
		return request{}, &badSOCKS{socksFailed, "port 0"}
	}
	return req, nil
}

// socksReply tells how a request ended. The address that a connection is from is not told.
func socksReply(code byte) []byte {
	return []byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0}
}
