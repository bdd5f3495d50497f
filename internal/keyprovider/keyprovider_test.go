package keyprovider

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRecordedRequests: what real tools have sent is answered, by the key that they mean.
func TestRecordedRequests(t *testing.T) {
	files, err := filepath.Glob("../../../shared/wire/vectors/kp/*")
	if err != nil || len(files) == 0 {
		t.Skip("no vectors here: ../shared is absent")
	}
	p := &Provider{Dir: t.TempDir()}
	wraps := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), `"op":"keywrap"`) {
			continue
		}
		wraps++
		if out, err := p.Wrap(t.Context(), b); err != nil || !strings.Contains(string(out), `"keywrapresults":{"annotation":"`) {
			t.Errorf("%s: %s, %v", f, out, err)
		}
	}
	t.Logf("%d of %d recorded files are requests to wrap", wraps, len(files))
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["a2V5aWQ9a2JzOi8vL2EvYi9j"]}},"optsdata":"e30="}}`))
	f.Add([]byte(`{"op":"keyunwrap","keyunwrapparams":{"annotation":"eyJraWQiOiJrYnM6Ly8vYS9iL2MifQ=="}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := &Provider{Dir: t.TempDir()}
		p.Unwrap(b)
		if strings.Contains(string(b), "key") && len(b) < 4096 {
			p.Wrap(t.Context(), b)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(p.Dir), "..", "key*")); len(left) > 0 {
			t.Errorf("wrote %q", left)
		}
	})
}
