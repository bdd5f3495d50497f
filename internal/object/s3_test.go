package object

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestSignature holds the signer against what AWS has published: its test suite (service "service"), and the example "GET Object" of
// "Signature Calculations for the Authorization Header".
func TestSignature(t *testing.T) {
	suite := Credentials{id: []byte("AKIDEXAMPLE"), secret: []byte("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
	s3 := Credentials{id: []byte("AKIAIOSFODNN7EXAMPLE"), secret: []byte("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")}
	for name, c := range map[string]struct {
		login                                    Credentials
		service, method, host, path, date, extra string
		want                                     string
	}{
		"get-vanilla":    {suite, "service", "GET", "example.amazonaws.com", "/", "20150830T123600Z", "", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		"post-vanilla":   {suite, "service", "POST", "example.amazonaws.com", "/", "20150830T123600Z", "", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		"get-unreserved": {suite, "service", "GET", "example.amazonaws.com", "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", "20150830T123600Z", "", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
		"get-utf8":       {suite, "service", "GET", "example.amazonaws.com", "/ሴ", "20150830T123600Z", "", "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
		"GET Object":     {s3, "s3", "GET", "examplebucket.s3.amazonaws.com", "/test.txt", "20130524T000000Z", "bytes=0-9", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
	} {
		t.Run(name, func(t *testing.T) {
			req := &http.Request{Method: c.method, Host: c.host, URL: &url.URL{Scheme: "https", Host: c.host, Path: c.path, RawPath: escape(c.path)}, Header: http.Header{
				"X-Amz-Date": {c.date}, "User-Agent": {"anything"}, "Accept-Encoding": {"identity"}, "If-Range": {`"x"`}}}
			if c.extra != "" {
				req.Header.Set("Range", c.extra)
				req.Header.Set("X-Amz-Content-Sha256", emptySum)
			}
			s := signer{&c.login, "us-east-1", c.service, time.Now}
			if got := s.authorization(req); !strings.HasSuffix(got, "Signature="+c.want) {
				t.Errorf("%s, want signature %s", got, c.want)
			}
		})
	}
}

func TestWhereObjectsAre(t *testing.T) {
	for name, c := range map[string]struct {
		src  Source
		want string // "": refused
	}{
		"AWS":                            {Source{URI: "s3://bucket/a/b c+%.csv"}, "https://bucket.s3.us-east-1.amazonaws.com/a/b%20c%2B%25.csv"},
		"AWS elsewhere":                  {Source{URI: "s3://bucket/x", Store: Store{Region: "eu-central-1"}}, "https://bucket.s3.eu-central-1.amazonaws.com/x"},
		"a bucket with a dot":            {Source{URI: "s3://buc.ket/x"}, "https://s3.us-east-1.amazonaws.com/buc.ket/x"},
		"another store, by path":         {Source{URI: "s3://bucket/x?y", Store: Store{Endpoint: "https://m.example:9000", PathStyle: true}}, "https://m.example:9000/bucket/x%3Fy"},
		"another store, by host":         {Source{URI: "s3://bucket/x", Store: Store{Endpoint: "https://m.example:9000"}}, "https://bucket.m.example:9000/x"},
		"a store below a path":           {Source{URI: "s3://bucket/x", Store: Store{Endpoint: "https://m.example/storage/v1", PathStyle: true}}, "https://m.example/storage/v1/bucket/x"},
		"a key that begins with a slash": {Source{URI: "s3://bucket//x"}, "https://bucket.s3.us-east-1.amazonaws.com//x"},
		"Google":                         {Source{URI: "gs://bucket/dir/ü"}, "https://storage.googleapis.com/bucket/dir/%C3%BC"},
		"a web server":                   {Source{URI: "https://h.example/a%2Fb?q=1"}, "https://h.example/a%2Fb?q=1"},
		"no key":                         {Source{URI: "s3://bucket/"}, ""},
		"no bucket":                      {Source{URI: "gs:///x"}, ""},
		"a key that goes up":             {Source{URI: "s3://bucket/a/../x"}, ""},
		"a password in the URL":          {Source{URI: "https://u:p@h.example/x"}, ""},
		"no host":                        {Source{URI: "https:///x"}, ""},
		"another scheme":                 {Source{URI: "ftp://h.example/x"}, ""},
		"a token for S3":                 {Source{URI: "s3://bucket/x", Login: &Credentials{token: []byte("t")}}, ""},
		"an access key for a web server": {Source{URI: "https://h.example/x", Login: &Credentials{id: []byte("i"), secret: []byte("s")}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if client, err := open(c.src, Options{Transport: http.DefaultTransport}); err == nil {
				got = client.url.String()
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestWhoAsks: what each store is told, and what it may say.
func TestWhoAsks(t *testing.T) {
	key, token := &Credentials{id: []byte("ID"), secret: []byte("s3cret"), session: []byte("t0ken")}, &Credentials{token: []byte("t0ken")}
	for name, c := range map[string]struct {
		uri   string
		login *Credentials
		want  string // begin of the Authorization header
	}{
		"S3, nobody":        {"s3://bucket/x", nil, ""},
		"S3, a key":         {"s3://bucket/x", key, "AWS4-HMAC-SHA256 Credential=ID/20260102/us-east-1/s3/aws4_request, SignedHeaders=host;range;x-amz-content-sha256;x-amz-date;x-amz-security-token, Signature="},
		"Google, nobody":    {"gs://bucket/x", nil, ""},
		"Google, a token":   {"gs://bucket/x", token, "Bearer t0ken"},
		"Google, a key":     {"gs://bucket/x", key, "AWS4-HMAC-SHA256 Credential=ID/20260102/auto/s3/aws4_request, "},
		"a server, a token": {"https://HOST/x", token, "Bearer t0ken"},
	} {
		t.Run(name, func(t *testing.T) {
			uri, o, asked, _ := answers{serve([]byte("x"))}.options(t)
			o.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
			endpoint := strings.TrimSuffix(uri, "/x?s3cret")
			src := Source{URI: strings.Replace(c.uri, "https://HOST", endpoint, 1), Store: Store{Endpoint: endpoint, PathStyle: true}, Login: c.login}
			if _, err := Resolve(t.Context(), src, o); err != nil {
				t.Fatal(err)
			}
			if got := (*asked)[0].Get("Authorization"); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
				t.Errorf("%q, want %q", got, c.want)
			}
			src.URI, src.Store.Endpoint = strings.Replace(src.URI, "https://", "http://", 1), strings.Replace(endpoint, "https://", "http://", 1)
			o.PlainHTTP = true
			if _, err := Resolve(t.Context(), src, o); c.login != nil && !errors.Is(err, ErrPlainHTTP) {
				t.Errorf("credentials over plain http: %v", err)
			}
		})
	}
}

// TestAnotherRegion: S3 sends to where the bucket is, and a signature is of one place: the owner is told which.
func TestAnotherRegion(t *testing.T) {
	uri, o, asked, _ := answers{status(301, "X-Amz-Bucket-Region", "eu-west-3", "Location", "https://127.0.0.1:1/")}.options(t)
	_, err := Resolve(t.Context(), Source{URI: "s3://bucket/x", Store: Store{Endpoint: strings.TrimSuffix(uri, "/x?s3cret"), PathStyle: true}}, o)
	if err == nil || !strings.Contains(err.Error(), "301 Moved Permanently, AccessDenied; the bucket is in region eu-west-3") || len(*asked) != 1 {
		t.Errorf("%v after %d requests", err, len(*asked))
	}
}
