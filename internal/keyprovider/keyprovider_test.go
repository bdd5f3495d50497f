package keyprovider

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

func wrapRequest(param string) []byte {
	return fmt.Appendf(nil, `{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":[%q]}},"optsdata":"e30="}}`,
		base64.StdEncoding.EncodeToString([]byte(param)))
}

// TestPostedKeys: a broker gets each key that wraps once, before anything is wrapped with it, and what it refuses fails.
func TestPostedKeys(t *testing.T) {
	var refusal error
	posted := map[string][]string{}
	post := func(_ context.Context, path string, key []byte) error {
		posted[path] = append(posted[path], string(key))
		return refusal
	}
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "given")
	given := strings.Repeat("g", 32)
	if err := os.WriteFile(file, []byte(given), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Provider{Dir: dir, Post: post}
	refusal = errors.New("the broker is shut")
	if _, err := p.Wrap(t.Context(), wrapRequest("keyid=kbs:///a/b/c")); !errors.Is(err, refusal) {
		t.Errorf("%v, want that %v", err, refusal)
	}
	refusal = nil
	for range 3 {
		if _, err := p.Wrap(t.Context(), wrapRequest("keyid=kbs:///a/b/c")); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(filepath.Join(dir, "a/b/c"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string][]string{"a/b/c": {string(kept), string(kept)}}, posted); diff != "" { // the refusal and the first success
		t.Errorf("posted (-want +got):\n%s", diff)
	}

	// Without a folder.
	clear(posted)
	p = &Provider{Post: post}
	for range 2 {
		if _, err := p.Wrap(t.Context(), wrapRequest("keyid=kbs:///a/b/c::keypath="+file)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string][]string{"a/b/c": {given}}, posted); diff != "" {
		t.Errorf("posted (-want +got):\n%s", diff)
	}
	if _, err := p.Wrap(t.Context(), wrapRequest("keyid=kbs:///a/b/c")); err == nil || !strings.Contains(err.Error(), "no keypath") {
		t.Errorf("a key would take another's place: %v", err)
	}
	if _, err := p.Wrap(t.Context(), wrapRequest("")); err != nil || len(posted) != 2 {
		t.Errorf("a made key: %v, posted %d", err, len(posted))
	}
	if _, err := p.Unwrap([]byte(`{"op":"keyunwrap","keyunwrapparams":{"annotation":"e30="}}`)); err == nil || !strings.Contains(err.Error(), "gives its keys to machines that attest") {
		t.Errorf("unwrap without a folder: %v", err)
	}
}

// TestAnswer: the operation decides, and what is neither is refused.
func TestAnswer(t *testing.T) {
	p := &Provider{Dir: t.TempDir()}
	out, err := p.Answer(t.Context(), wrapRequest("keyid=kbs:///a/b/c"))
	if err != nil {
		t.Fatal(err)
	}
	var a struct {
		Results struct {
			Packet []byte `json:"annotation"`
		} `json:"keywrapresults"`
	}
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatal(err)
	}
	out, err = p.Answer(t.Context(), fmt.Appendf(nil, `{"op":"keyunwrap","keyunwrapparams":{"annotation":%q}}`, base64.StdEncoding.EncodeToString(a.Results.Packet)))
	if err != nil || string(out) != `{"keyunwrapresults":{"optsdata":"e30="}}` {
		t.Errorf("%s, %v", out, err)
	}
	for _, body := range []string{`{"op":"keysteal"}`, `{}`, ``, strings.Repeat(" ", maxRequest+1)} {
		if out, err := p.Answer(t.Context(), []byte(body)); err == nil {
			t.Errorf("%.20s: %s", body, out)
		}
	}
}
