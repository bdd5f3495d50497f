package manifest

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSinks(t *testing.T) {
	m, err := Parse([]byte(own(`,"kbs":[{"url":"https://k.example"}],"results":{"sinks":["vsock","https://b.example/k?a=1&b=<2>","docker://r.example/results",
		{"to":"docker://r.example/results:v1","deadline":"90s"},{"upload":"a/b/c"},{"upload":{"kbs":"https://k.example","path":"a/b/d"}},{"upload":{"url": "https://x.example/", "method": "gcs"}}]}`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []Sink{
		{Type: VsockSink, Deadline: sinkDeadline},
		{Type: UploadSink, Upload: []byte(`{"url":"https://b.example/k?a=1&b=<2>"}`), Deadline: sinkDeadline},
		{Type: OCISink, URI: "docker://r.example/results", Deadline: sinkDeadline},
		{Type: OCISink, URI: "docker://r.example/results:v1", Deadline: 90 * time.Second},
		{Type: UploadSink, At: &BrokerResource{"https://k.example", "a/b/c"}, Deadline: sinkDeadline},
		{Type: UploadSink, At: &BrokerResource{"https://k.example", "a/b/d"}, Deadline: sinkDeadline},
		{Type: UploadSink, Upload: []byte(`{"url": "https://x.example/", "method": "gcs"}`), Deadline: sinkDeadline},
	}
	if d := cmp.Diff(want, m.Results.Sinks); d != "" {
		t.Error(d)
	}
	for _, s := range m.Results.Sinks {
		if strings.Contains(s.String(), "example/k") {
			t.Errorf("%s shows a URL that may be signed", s)
		}
	}
}

// TestRecipientsInPEM: a key of several lines, and the same as Cocos names consumers.
func TestRecipientsInPEM(t *testing.T) {
	pem := recipientOf([]byte{0x30, 0x2a, 0x30, 0x05})
	m, err := Parse([]byte(own(`,"results":{"recipients":["`+strings.ReplaceAll(pem, "\n", `\n`)+`"]}`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{pem}, m.Results.Recipients); d != "" {
		t.Error(d)
	}
}
