package sink

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestParseUpload(t *testing.T) {
	parts := `"parts":["https://b/k?partNumber=1","https://b/k?partNumber=2"],"complete_url":"https://b/k?uploadId=u"`
	for name, c := range map[string]struct{ doc, want string }{
		"a URL alone, with a newline":   {"https://b.example/k?sig=s\n", ""},
		"an object":                     {`{"url":"https://b.example/k?sig=s","headers":{"x-amz-acl":"private"}}`, ""},
		"Azure by its host":             {`{"url":"https://a.blob.core.windows.net/c/k?sig=s"}`, ""},
		"S3 by its parts":               {`{` + parts + `,"part_bytes":5242880}`, ""},
		"Google":                        {`{"url":"https://storage.googleapis.com/b/k?sig=s","method":"gcs"}`, ""},
		"nothing":                       {``, "upload: "},
		"no URL":                        {`{}`, "method put wants url"},
		"an unknown member":             {`{"url":"https://b/k","tries":3}`, "tries"},
		"a member twice":                {`{"url":"https://b/k","url":"https://b/l"}`, "twice"},
		"a member in another case":      {`{"URL":"https://b/k"}`, "URL"},
		"a member of another type":      {`{"url":"https://b/k","part_bytes":"x"}`, "part_bytes is of type string"},
		"http":                          {`http://b/k?sig=secret`, "http://b: this image allows no plain http"},
		"no host":                       {`https:///k?sig=secret`, "is no https URL"},
		"what is no URL":                {`{"url":"https://b/%zz?sig=secret"}`, "is no https URL"},
		"a user":                        {`https://user:secret@b/k`, "has a user"},
		"a fragment":                    {`https://b/k#secret`, "fragment"},
		"a long URL":                    {`https://b/` + strings.Repeat("x", maxURL), "at most 8192"},
		"another method":                {`{"url":"https://b/k","method":"ftp"}`, `method "ftp"; want put, gcs, azure or s3`},
		"an empty method":               {`{"url":"https://b/k","method":""}`, "method is empty"},
		"parts beside a URL":            {`{"url":"https://b/k",` + parts + `,"part_bytes":5242880}`, "neither url nor headers"},
		"parts without their size":      {`{` + parts + `}`, "part_bytes is 0"},
		"parts for another method":      {`{"url":"https://b/k","method":"put",` + parts + `}`, "no parts"},
		"parts in another order":        {`{"parts":["https://b/k?partNumber=2"],"part_bytes":5242880,"complete_url":"https://b/k"}`, `parts[0] is signed for partNumber "2", want 1`},
		"a part that is empty":          {`{"parts":[""],"part_bytes":5242880,"complete_url":"https://b/k"}`, "parts[0] is empty"},
		"a header that frames":          {`{"url":"https://b/k","headers":{"content-LENGTH":"1"}}`, "Content-Length is not yours to say"},
		"a header that is two":          {`{"url":"https://b/k","headers":{"x-a":"1\r\nx-b: secret"}}`, "the value of X-A"},
		"a header's name with a colon":  {`{"url":"https://b/k","headers":{"x:":"1"}}`, "no name"},
		"a header in two spellings":     {`{"url":"https://b/k","headers":{"x-a":"1","X-A":"2"}}`, "X-A is there twice"},
		"something behind the document": {`{"url":"https://b/k"} {}`, "after its end"},
	} {
		u, err := ParseUpload([]byte(c.doc), false)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want == "":
			b, _ := json.Marshal(u)
			for _, s := range []string{fmt.Sprint(u), fmt.Sprintf("%+v %#v", u, u), string(b), slog.AnyValue(u).Resolve().String()} {
				if strings.Contains(s, "sig=s") || !strings.Contains(s, secret) {
					t.Errorf("%s: shown as %s", name, s)
				}
			}
		case err == nil || !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		case strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: the error quotes what is secret: %v", name, err)
		}
	}
}

func FuzzParseUpload(f *testing.F) {
	f.Add([]byte("https://b.example/k?sig=s"))
	f.Add([]byte(`{"url":"https://a.blob.core.windows.net/c/k?sig=s","receipt_url":"https://b/r","headers":{"x-a":"b"}}`))
	f.Add([]byte(`{"parts":["https://b/k?partNumber=1"],"part_bytes":5242880,"complete_url":"https://b/k?uploadId=u"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := ParseUpload(b, false)
		if err != nil {
			return
		}
		if u.url == nil && len(u.parts) == 0 || u.url != nil && u.url.Scheme != "https" {
			t.Errorf("%q goes nowhere, or over http", b)
		}
	})
}

func FuzzReceived(f *testing.F) {
	f.Add("bytes=0-41", int64(100))
	f.Fuzz(func(t *testing.T, s string, size int64) {
		if n, err := received(s, size); err == nil && (n < 0 || n > max(size, 0)) {
			t.Errorf("%q: %d of %d", s, n, size)
		}
	})
}
