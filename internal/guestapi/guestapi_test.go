package guestapi

import (
	"bufio"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// everything is an API that grants all there is, and notes what it was asked for.
func everything(asked *[]string) *API {
	return &API{
		Resources: []string{"default/key/a", "default/key/broken"},
		Resource: func(_ context.Context, path string) ([]byte, error) {
			*asked = append(*asked, path)
			if path == "default/key/broken" {
				return nil, errors.New("broker says no")
			}
			return []byte("\x00secret\xff"), nil
		},
		Token: func(context.Context) (string, []byte, error) {
			*asked = append(*asked, "token")
			return "a.b.c", []byte("-----BEGIN\n"), nil
		},
		Evidence: func(_ context.Context, d [64]byte) ([]byte, error) {
			*asked = append(*asked, hex.EncodeToString(d[:]))
			return []byte(`{"svn":"1"}`), nil
		},
		TEE: "snp",
	}
}

func get(h http.Handler, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:4242"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func reportData(s string) string {
	sum := sha512.Sum512([]byte("ampoule workload evidence v1\x00\x00\x00\x00\x00\x00\x00\x00" + string(rune(len(s))) + s))
	return hex.EncodeToString(sum[:])
}

func TestAnswers(t *testing.T) {
	const octets, document = "application/octet-stream", "application/json"
	long := strings.Repeat("x", 127)
	for name, c := range map[string]struct {
		method, target, body string
		status               int
		kind, want, asked    string
	}{
		"a resource":                       {"GET", "/cdh/resource/default/key/a", "", 200, octets, "\x00secret\xff", "default/key/a"},
		"a resource and a query":           {"GET", "/cdh/resource/default/key/a?x=%zz", "", 200, octets, "\x00secret\xff", "default/key/a"},
		"a resource that is refused":       {"GET", "/cdh/resource/default/key/broken", "", 500, "", "broker says no", "default/key/broken"},
		"a resource that is not granted":   {"GET", "/cdh/resource/default/key/b", "", 500, "", "resource is not granted by the manifest", ""},
		"a resource by a detour":           {"GET", "/cdh/resource/x/../default/key/a", "", 500, "", "resource is not granted by the manifest", ""},
		"a resource, escaped":              {"GET", "/cdh/resource/default%2Fkey%2Fa", "", 500, "", "resource is not granted by the manifest", ""},
		"a resource and a slash":           {"GET", "/cdh/resource/default/key/a/", "", 500, "", "resource is not granted by the manifest", ""},
		"no resource":                      {"GET", "/cdh/resource/", "", 500, "", "resource is not granted by the manifest", ""},
		"a resource, posted":               {"POST", "/cdh/resource/default/key/a", "", 404, "", "URL NOT FOUND", ""},
		"unseal":                           {"GET", "/cdh/unseal", "", 404, "", "URL NOT FOUND", ""},
		"a token":                          {"GET", "/aa/token?token_type=kbs", "", 200, octets, `{"tee_keypair":"-----BEGIN\n","token":"a.b.c"}`, "token"},
		"a bare token":                     {"GET", "/aa/token?token_type=coco_as", "", 200, octets, "a.b.c", "token"},
		"a token of no kind":               {"GET", "/aa/token?token_type=x", "", 500, "", "token_type is neither kbs nor coco_as", ""},
		"a token without a kind":           {"GET", "/aa/token", "", 400, "", "BAD REQUEST", ""},
		"a token, posted":                  {"POST", "/aa/token?token_type=kbs", "", 404, "", "URL NOT FOUND", ""},
		"evidence":                         {"GET", "/aa/evidence?runtime_data=xxxx", "", 200, octets, `{"svn":"1"}`, reportData("xxxx")},
		"evidence for nothing":             {"GET", "/aa/evidence?runtime_data=", "", 200, octets, `{"svn":"1"}`, reportData("")},
		"evidence, percent-encoded":        {"GET", "/aa/evidence?runtime_data=a%2Bb%26c+d", "", 200, octets, `{"svn":"1"}`, reportData("a+b&c d")},
		"evidence for a semicolon":         {"GET", "/aa/evidence?runtime_data=a;b", "", 200, octets, `{"svn":"1"}`, reportData("a;b")},
		"evidence in base64url":            {"GET", "/aa/evidence?runtime_data=_-8&encoding=base64", "", 200, octets, `{"svn":"1"}`, reportData("\xff\xef")},
		"evidence for more than 64 bytes":  {"GET", "/aa/evidence?runtime_data=" + long, "", 200, octets, `{"svn":"1"}`, reportData(long)},
		"evidence in standard base64":      {"GET", "/aa/evidence?runtime_data=%2F%2B8&encoding=base64", "", 400, "", "BAD REQUEST", ""},
		"evidence in padded base64":        {"GET", "/aa/evidence?runtime_data=_-8%3D&encoding=base64", "", 400, "", "BAD REQUEST", ""},
		"evidence in hex":                  {"GET", "/aa/evidence?runtime_data=00&encoding=hex", "", 400, "", "BAD REQUEST", ""},
		"evidence in no encoding":          {"GET", "/aa/evidence?runtime_data=00&encoding=", "", 400, "", "BAD REQUEST", ""},
		"evidence without data":            {"GET", "/aa/evidence", "", 400, "", "BAD REQUEST", ""},
		"evidence, half an escape":         {"GET", "/aa/evidence?runtime_data=%2", "", 400, "", "BAD REQUEST", ""},
		"evidence, posted":                 {"POST", "/aa/evidence?runtime_data=x", "", 404, "", "URL NOT FOUND", ""},
		"additional evidence":              {"GET", "/aa/additional-evidence?runtime_data=x", "", 200, octets, "", ""},
		"additional evidence without data": {"GET", "/aa/additional-evidence", "", 400, "", "BAD REQUEST", ""},
		"an event": {"POST", "/aa/aael", `{"domain":"d","operation":"o","content":"c"}`, 200, document,
			`{"success":"false","message":"The platform does not support runtime measurement"}`, ""},
		"half an event":        {"POST", "/aa/aael", `{"domain":"d"}`, 500, "", "event is not domain, operation and content in JSON", ""},
		"a huge event":         {"POST", "/aa/aael", `{"domain":"` + strings.Repeat("x", maxBody) + `"}`, 500, "", "event is not domain, operation and content in JSON", ""},
		"an event that is got": {"GET", "/aa/aael", "", 404, "", "URL NOT FOUND", ""},
		"eaa":                  {"GET", "/aa/eaa", "", 404, "", "URL NOT FOUND", ""},
		"info":                 {"GET", "/info", "", 200, document, `{"version":"0.1.0","tee":"snp","feature":"all"}`, ""},
		"info, posted":         {"POST", "/info", "", 405, "", "Method Not Allowed", ""},
		"the root":             {"GET", "/", "", 404, "", "URL NOT FOUND", ""},
		"half a path":          {"GET", "/aa", "", 404, "", "URL NOT FOUND", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			w := get(everything(&asked), c.method, c.target, c.body)
			if w.Code != c.status || w.Body.String() != c.want || w.Header().Get("Content-Type") != c.kind {
				t.Errorf("%d %q %q, want %d %q %q", w.Code, w.Header().Get("Content-Type"), w.Body, c.status, c.kind, c.want)
			}
			if got := strings.Join(asked, " "); got != c.asked {
				t.Errorf("asked for %q, want %q", got, c.asked)
			}
		})
	}
}

func TestWhatIsNotGranted(t *testing.T) {
	var asked []string
	all := everything(&asked)
	resources := &API{Resources: all.Resources, Resource: all.Resource, TEE: "snp"}
	token := &API{Token: all.Token, TEE: "snp"}
	evidence := &API{Evidence: all.Evidence, TEE: "snp"}
	const none, noResource = "Attestation Feature Not Enabled", "Resource Feature Not Enabled"
	for _, c := range []struct {
		api    *API
		target string
		status int
		want   string
	}{
		{resources, "/aa/token?token_type=kbs", 404, none},
		{resources, "/aa/evidence?runtime_data=x", 404, none},
		{resources, "/aa/x", 404, none},
		{resources, "/info", 200, `{"version":"0.1.0","feature":"resource"}`},
		{token, "/aa/evidence?runtime_data=x", 404, none},
		{token, "/aa/additional-evidence?runtime_data=x", 404, none},
		{token, "/cdh/resource/default/key/a", 404, noResource},
		{token, "/info", 200, `{"version":"0.1.0","tee":"snp","feature":"attestation"}`},
		{evidence, "/aa/token?token_type=kbs", 404, none},
		{&API{}, "/cdh/resource/default/key/a", 404, noResource},
		{&API{Resource: all.Resource}, "/cdh/resource/default/key/a", 404, noResource},
	} {
		if w := get(c.api, "GET", c.target, ""); w.Code != c.status || w.Body.String() != c.want {
			t.Errorf("%s: %d %q, want %d %q", c.target, w.Code, w.Body, c.status, c.want)
		}
	}
	if asked != nil {
		t.Errorf("asked for %q, want nothing", asked)
	}
}

func TestOnlyLoopbackPeers(t *testing.T) {
	var asked []string
	for peer, want := range map[string]int{
		"127.0.0.1:1": 200, "127.9.9.9:1": 200, "[::1]:1": 200, "[::ffff:127.0.0.1]:1": 200,
		"10.0.2.15:1": 403, "[fe80::1%lo]:1": 403, "": 403, "@": 403, "localhost:1": 403,
	} {
		r := httptest.NewRequest("GET", "/info", nil)
		r.RemoteAddr = peer
		w := httptest.NewRecorder()
		everything(&asked).ServeHTTP(w, r)
		if w.Code != want || want == 403 && w.Body.String() != "Forbidden" {
			t.Errorf("%q: %d %q, want %d", peer, w.Code, w.Body, want)
		}
	}
}

// The label and the length keep a workload's evidence apart from everything else that this machine signs.
func TestReportDataVector(t *testing.T) {
	got := ReportData([]byte("abc"))
	const want = "cb43484eeccd85758af6939dcfca2cff6775500f1170d55dbaa480cf113de95879a53156d17479afa30d3c4a1856c1774d58470c0877367b7c7eb4a4abe08b71"
	if hex.EncodeToString(got[:]) != want {
		t.Errorf("%x, want %s", got, want)
	}
}

func TestServe(t *testing.T) {
	var asked []string
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- everything(&asked).Serve(ctx, l) }()
	base := "http://" + l.Addr().String()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(base + "/cdh/resource/default/key/a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || string(b) != "\x00secret\xff" {
		t.Errorf("%d %q, %v", resp.StatusCode, b, err)
	}

	// Whoever takes all connections gets no more, and gives way when it closes one.
	var held []net.Conn
	for range maxConns {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	answered := make(chan string, 1)
	go func() {
		resp, err := client.Get(base + "/info")
		if err == nil {
			err = resp.Body.Close()
		}
		answered <- fmt.Sprint(err)
	}()
	select {
	case s := <-answered:
		t.Errorf("connection %d was answered: %s", maxConns+1, s)
	case <-time.After(100 * time.Millisecond):
	}
	held[0].Close()
	if s := <-answered; s != "<nil>" {
		t.Error(s)
	}

	fmt.Fprintf(held[1], "GET /info HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 1<<20))
	if line, err := bufio.NewReader(held[1]).ReadString('\n'); err == nil && !strings.Contains(line, "431") {
		t.Errorf("a header of 1 MiB: %q", line)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("the listener is open after the end")
	}
}

func TestServeEndsWithItsListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := new(API).Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want that the listener is closed", err)
	}
}

func FuzzQuery(f *testing.F) {
	f.Add("runtime_data=a%20b&encoding=base64")
	f.Add("token_type=kbs&&=;%00")
	f.Fuzz(func(t *testing.T, raw string) {
		query, err := parseQuery(raw)
		if err != nil {
			return
		}
		if data, err := runtimeData(query); err == nil && len(data) > len(raw) {
			t.Fatalf("%q: %d bytes out of %d", raw, len(data), len(raw))
		}
	})
}
