package egress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxHead bounds the head of a request to the proxy, bytes.
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

// readHTTP reads the head of one HTTP/1 request (RFC 9112): CONNECT host:port, or another method with an http:// URL. It reads nothing
// beyond the head, whose body, if there is one, follows as it is.
func readHTTP(r *bufio.Reader) (request, error) {
	var lines [][]byte
	for size := 0; ; {
		line, err := r.ReadSlice('\n')
		size += len(line)
		if size > maxHead || errors.Is(err, bufio.ErrBufferFull) {
			return request{}, &badRequest{"431 Request Header Fields Too Large", fmt.Sprintf("a head of more than %d bytes", maxHead)}
		}
		if err != nil {
			return request{}, err
		}
		line, ok := bytes.CutSuffix(line, []byte("\r\n"))
		if !ok {
			return request{}, bad("a line that does not end in CR LF")
		}
		if len(line) == 0 {
			break
		}
		lines = append(lines, bytes.Clone(line))
	}
	if len(lines) == 0 {
		return request{}, bad("no request line")
	}
	field := strings.Split(string(lines[0]), " ")
	if len(field) != 3 || !isToken(field[0]) || field[2] != "HTTP/1.1" && field[2] != "HTTP/1.0" || !isVisible(field[1]) {
		return request{}, bad("want METHOD target HTTP/1.1")
	}
	names, err := headerNames(lines[1:])
	if err != nil {
		return request{}, err
	}
	if field[0] == "CONNECT" {
		host, port, err := splitTarget(field[1], 0)
		return request{host: host, port: port}, err
	}
	rest, ok := cutPrefixFold(field[1], "http://")
	if !ok {
		return request{}, bad("want CONNECT host:port, or the whole URL of a request over http://")
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end], rest[end:]
	if strings.Contains(path, "#") {
		return request{}, bad("a fragment in the URL")
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	host, port, err := splitTarget(authority, 80)
	if err != nil {
		return request{}, err
	}
	req := request{host: host, port: port}
	// What is between the program and the proxy stays there; each connection takes one request.
	drop := []string{"host", "connection", "proxy-connection", "proxy-authorization", "keep-alive", "upgrade", "te"}
	for i, name := range names {
		value := strings.TrimSpace(string(lines[1+i][len(name)+1:]))
		switch name {
		case "connection":
			for option := range strings.SplitSeq(value, ",") {
				drop = append(drop, strings.ToLower(strings.TrimSpace(option)))
			}
		case "transfer-encoding":
			return request{}, &badRequest{"411 Length Required", "a body without Content-Length; use CONNECT, or connect to the name itself"}
		case "content-length":
			n, err := strconv.ParseUint(value, 10, 63)
			if err != nil || slices.Contains(names[:i], name) {
				return request{}, bad("want one Content-Length")
			}
			req.body = int64(n)
		}
	}
	drop = slices.DeleteFunc(drop, func(name string) bool { return name == "content-length" })
	head := fmt.Appendf(nil, "%s %s %s\r\nHost: %s\r\nConnection: close\r\n", field[0], path, field[2], authority)
	for i, name := range names {
		if !slices.Contains(drop, name) {
			head = append(append(head, lines[1+i]...), "\r\n"...)
		}
	}
	req.head = append(head, "\r\n"...)
	return req, nil
}

// headerNames gives the name of each header line, in lower case.
func headerNames(lines [][]byte) (names []string, err error) {
	for _, line := range lines {
		name, value, ok := strings.Cut(string(line), ":")
		if !ok || !isToken(name) || strings.ContainsAny(value, "\x00\r\n") {
			return nil, bad("a header that is not name: value")
		}
		names = append(names, strings.ToLower(name))
	}
	return names, nil
}

func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
}

func isVisible(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// splitTarget reads host:port, with IPv6 in brackets. A port may be missing only where there is an absent one.
func splitTarget(s string, absent uint16) (host string, port uint16, err error) {
	if absent != 0 && (!strings.Contains(s, ":") || strings.HasSuffix(s, "]")) {
		s += ":" + strconv.Itoa(int(absent))
	}
	host, p, err := net.SplitHostPort(s)
	n, err2 := strconv.ParseUint(p, 10, 16)
	if err != nil || err2 != nil || n == 0 {
		return "", 0, bad("want host:port, with a port from 1 to 65535")
	}
	if err := checkTarget(host); err != nil {
		return "", 0, err
	}
	if _, err := netip.ParseAddr(host); strings.HasPrefix(s, "[") && err != nil {
		return "", 0, bad("what stands in brackets is an address")
	}
	return host, uint16(n), nil
}

// checkTarget keeps out what is in no name and no address.
func checkTarget(host string) error {
	if len(host) > 254 || !isVisible(host) || strings.ContainsAny(host, `"#%/<>?@[\]^{|}`+"`") {
		return bad("a host that is neither a name nor an address")
	}
	return nil
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
	} else if checkTarget(req.host) != nil {
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
