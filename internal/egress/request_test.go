package egress

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

func read(s string) (request, string, error) {
	r, left := headReader(strings.NewReader(s))
	req, err := readHTTP(r, left)
	rest, _ := io.ReadAll(r)
	return req, string(rest), err
}

func TestRequestsThatAreRead(t *testing.T) {
	for asked, want := range map[string]struct {
		host, head, rest string
		port             uint16
		body             int64
	}{
		"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nhello":  {"a.example", "", "hello", 443, 0},
		"CONNECT [2001:db8::1]:443 HTTP/1.0\r\n\r\n":                          {"2001:db8::1", "", "", 443, 0},
		"CONNECT A.Example.:65535 HTTP/1.1\r\nProxy-Authorization: x\r\n\r\n": {"A.Example.", "", "", 65535, 0},
		"GET http://a.example/x?y=http://b/ HTTP/1.1\r\nHost: b.example\r\nAccept: */*\r\nProxy-Connection: keep-alive\r\nConnection: X-Hop, Content-Length\r\nX-Hop: 1\r\nproxy-authorization: Basic x\r\n\r\n": {
			"a.example", "GET /x?y=http://b/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nAccept: */*\r\n\r\n", "", 80, 0},
		"POST HTTP://a.example:8080?q HTTP/1.1\r\ncontent-length: 5\r\nConnection: content-length\r\n\r\nhello": {
			"a.example", "POST /?q HTTP/1.1\r\nHost: a.example:8080\r\nConnection: close\r\nContent-Length: 5\r\n\r\n", "hello", 8080, 5},
		// What is written otherwise than HTTP says comes out as HTTP says, or not at all.
		"GET http://a.example/#\xff HTTP/1.0\nA: b\n c\nX Y: z\nHost : x\nTE: trailers\nContent-Length: 1\nContent-Length: 1\n\n-": {
			"a.example", "GET /%23%FF HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 1\r\nA: b c\r\n\r\n", "-", 80, 1},
		"GET http://[2001:db8::1] HTTP/1.1\r\n\r\n": {"2001:db8::1", "GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\nConnection: close\r\n\r\n", "", 80, 0},
	} {
		req, rest, err := read(asked)
		if err != nil || req.host != want.host || req.port != want.port || string(req.head) != want.head || rest != want.rest || req.body != want.body {
			t.Errorf("%q: %+v (head %q), %v, rest %q; want %+v", asked, req, req.head, err, rest, want)
		}
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	const lines = "\r\nHost: x\r\n\r\n"
	for asked, status := range map[string]string{
		"GET / HTTP/1.1" + lines:                                        "400",
		"GET https://a.example/ HTTP/1.1" + lines:                       "400",
		"GET ftp://a.example/ HTTP/1.1" + lines:                         "400",
		"OPTIONS * HTTP/1.1" + lines:                                    "400",
		"GET http:///x HTTP/1.1" + lines:                                "400",
		"GET http://:80/x HTTP/1.1" + lines:                             "400",
		"GET http://a.example:0/ HTTP/1.1" + lines:                      "400",
		"GET http://a.example:/ HTTP/1.1" + lines:                       "400",
		"GET http://a.example:99999/ HTTP/1.1" + lines:                  "400",
		"GET http://u:p@a.example/ HTTP/1.1" + lines:                    "400",
		"GET http://a.example/\x01 HTTP/1.1" + lines:                    "400",
		"GET http://a.example/ HTTP/2.0" + lines:                        "400",
		"GET http://a.example/ http/1.1" + lines:                        "400",
		"GET  http://a.example/ HTTP/1.1" + lines:                       "400",
		"GET http://a.example/ x HTTP/1.1" + lines:                      "400",
		"GET http://a.example/" + lines:                                 "400",
		"G(T http://a.example/ HTTP/1.1" + lines:                        "400",
		"CONNECT a.example HTTP/1.1" + lines:                            "400",
		"CONNECT a.example:https HTTP/1.1" + lines:                      "400",
		"CONNECT a.example:0 HTTP/1.1" + lines:                          "400",
		"CONNECT http://a.example:443 HTTP/1.1" + lines:                 "400",
		"CONNECT 2001:db8::1:443 HTTP/1.1" + lines:                      "400",
		"CONNECT [a.example]:443 HTTP/1.1" + lines:                      "400",
		"CONNECT [fe80::1%25eth0]:443 HTTP/1.1" + lines:                 "400",
		"CONNECT u@a.example:443 HTTP/1.1" + lines:                      "400",
		"CONNECT :443 HTTP/1.1" + lines:                                 "400",
		"connect a.example:443 HTTP/1.1" + lines:                        "400", // methods are in capitals, so this is another one
		"CONNECT " + strings.Repeat("a", 255) + ":443 HTTP/1.1" + lines: "400",
		"CONNECT a.example:443 HTTP/1.1\r\nHost\r\n\r\n":                "400",
		"CONNECT a.example:443 HTTP/1.1\r\nA: x\rB: y\r\n\r\n":          "400",
		"CONNECT a.example:443 HTTP/1.1\r\nA: \x00\r\n\r\n":             "400",
		"\r\n\r\n": "400",
		"GET http://a.example/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n":                         "400",
		"GET http://a.example/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n":                                             "400",
		"GET http://a.example/ HTTP/1.1\r\nContent-Length: +1\r\n\r\n":                                             "400",
		"GET http://a.example/ HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n":                           "400",
		"POST http://a.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n":                                    "411",
		"POST http://a.example/ HTTP/1.1\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n":               "411",
		"CONNECT a.example:443 HTTP/1.1\r\n" + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 20) + "\r\n": "431",
		"CONNECT a.example:443 HTTP/1.1\r\n" + strings.Repeat("A:\r\n", 5000) + "\r\n":                             "431",
		"CONNECT a.example:443 HTTP/1.1\r\nA: " + strings.Repeat("b", 1<<20):                                       "431",
		strings.Repeat("x", 1<<20): "431",
	} {
		req, _, err := read(asked)
		if e, ok := errors.AsType[*badRequest](err); !ok || !strings.HasPrefix(e.status, status) {
			t.Errorf("%.80q: %+v, %v; want %s", asked, req, err, status)
		}
	}
	for _, asked := range []string{"", "CONNECT a.example:443 HTTP/1.1", "CONNECT a.example:443 HTTP/1.1\r\n", "CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n"} {
		if _, _, err := read(asked); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v, want that there is more to come", asked, err)
		}
	}
}

func TestSOCKS(t *testing.T) {
	const hello = "\x05\x01\x00"
	for asked, want := range map[string]struct {
		said, host string
		port       uint16
		code       int // of a refusal; -1: none is sent
	}{
		hello + "\x05\x01\x00\x03\x09a.example\x01\xbb":                                          {"\x05\x00", "a.example", 443, -1},
		"\x05\x03\x01\x02\x00" + "\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x50":                      {"\x05\x00", "192.0.2.7", 80, -1},
		hello + "\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x00\x50": {"\x05\x00", "2001:db8::1", 80, -1},
		hello + "\x05\x01\x00\x03\x09192.0.2.7\x00\x50":                                          {"\x05\x00", "192.0.2.7", 80, -1},
		"\x05\x01\x02":                                          {"\x05\xff", "", 0, -1},
		"\x05\x00":                                              {"\x05\xff", "", 0, -1},
		"\x04\x01\x00\x50\xc0\x00\x02\x07\x00":                  {"", "", 0, -1},
		"\x05\xff" + strings.Repeat("\x00", 255):                {"", "", 0, -1},
		hello + "\x05\x02\x00\x01\xc0\x00\x02\x07\x00\x50":      {"\x05\x00", "", 0, socksNoCommand}, // BIND
		hello + "\x05\x03\x00\x01\xc0\x00\x02\x07\x00\x50":      {"\x05\x00", "", 0, socksNoCommand}, // UDP ASSOCIATE
		hello + "\x05\x01\x00\x02\xc0\x00\x02\x07\x00\x50":      {"\x05\x00", "", 0, socksNoType},
		hello + "\x05\x01\x01\x01\xc0\x00\x02\x07\x00\x50":      {"\x05\x00", "", 0, socksFailed},
		hello + "\x04\x01\x00\x01\xc0\x00\x02\x07\x00\x50":      {"\x05\x00", "", 0, socksFailed},
		hello + "\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x00":      {"\x05\x00", "", 0, socksFailed},
		hello + "\x05\x01\x00\x03\x00\x00\x50":                  {"\x05\x00", "", 0, socksFailed},
		hello + "\x05\x01\x00\x03\x09a example\x00\x50":         {"\x05\x00", "", 0, socksFailed},
		hello + "\x05\x01\x00\x03\x0afe80::1%lo\x00\x50":        {"\x05\x00", "", 0, socksFailed},
		hello + "\x05\x01\x00\x03\x09a.exampl":                  {"\x05\x00", "", 0, -1},
		hello + "\x05\x01\x00\x03\xff" + strings.Repeat("a", 9): {"\x05\x00", "", 0, -1},
		hello: {"\x05\x00", "", 0, -1},
	} {
		var said bytes.Buffer
		req, err := readSOCKS(strings.NewReader(asked), &said)
		code := -1
		if e, ok := errors.AsType[*badSOCKS](err); ok {
			code = int(e.code)
		}
		if (err == nil) != (want.host != "") || req.host != want.host || req.port != want.port || said.String() != want.said || code != want.code {
			t.Errorf("%q: %+v, %v, says %q; want %+v", asked, req, err, said.String(), want)
		}
	}
}

// FuzzRequest: whatever comes, a request names one host and one port, and a head that is passed on is one request for them.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a.example/x HTTP/1.1\r\nConnection: a,b\r\nContent-Length: 3\r\n\r\nabc",
		"GET http://[2001:db8::1]:80?x HTTP/1.0\r\n\r\n", "\x05\x01\x00\x05\x01\x00\x03\x09a.example\x01\xbb", "\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x07\x00\x50",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var said bytes.Buffer
		for i, read := range []func() (request, error){
			func() (request, error) { return readHTTP(headReader(bytes.NewReader(b))) },
			func() (request, error) { return readSOCKS(bytes.NewReader(b), &said) },
		} {
			req, err := read()
			if err != nil {
				if req.host != "" || req.head != nil {
					t.Errorf("%d: %+v beside %v", i, req, err)
				}
				continue
			}
			if req.host == "" || req.port == 0 || req.body < 0 || strings.ContainsAny(req.host, " \r\n\x00/@%") {
				t.Errorf("%d: %+v", i, req)
			}
			if req.head == nil {
				continue
			}
			if i == 1 || len(req.head) > 2*maxHead || bytes.Count(req.head, []byte("\r\n\r\n")) != 1 || !bytes.HasSuffix(req.head, []byte("\r\n\r\n")) {
				t.Fatalf("%d: head %q", i, req.head)
			}
			line, headers, _ := strings.Cut(strings.TrimSuffix(string(req.head), "\r\n\r\n"), "\r\n")
			if _, target, _ := strings.Cut(line, " "); !strings.HasPrefix(target, "/") || strings.ContainsAny(headers, "\x00") {
				t.Errorf("head %q", req.head)
			}
			var hosts []string
			for h := range strings.SplitSeq(headers, "\r\n") {
				name, value, ok := strings.Cut(h, ":")
				if !ok || strings.ContainsAny(h, "\r\n") {
					t.Errorf("header %q", h)
				}
				if strings.EqualFold(name, "host") {
					hosts = append(hosts, strings.TrimSpace(value))
				}
				if strings.EqualFold(name, "transfer-encoding") || strings.EqualFold(name, "proxy-authorization") {
					t.Errorf("header %q is passed on", h)
				}
			}
			named, err := splitTarget(slices.Concat(hosts, []string{""})[0], 80)
			if len(hosts) != 1 || err != nil || named.host != req.host || named.port != req.port {
				t.Errorf("Host %q, for %s", hosts, net.JoinHostPort(req.host, "?"))
			}
		}
		if said.Len() > 2 {
			t.Errorf("says %q", said.Bytes())
		}
	})
}
