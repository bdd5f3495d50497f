package manifest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzParse holds every manifest that is taken against what it must be: JSON that encoding/json reads alike, one that
// pins and still parses, and that its initdata document gives back.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"remote.json", "remote-source.json", "computation.json", "own.json", "awkward.json"} {
		f.Add(load(f, name))
	}
	f.Add([]byte(own(`,"args":["\ud83d\ude00\n"],"env":{"A":"\u0041"},"network":"none"`)))
	f.Add([]byte(own(`,"network":{"egress":["api.example:443","[2001:db8::/32]:8443"]}`)))
	f.Add([]byte(own(`,"kbs_url":"https://k.example","images":{"policy":{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}]},"lookaside":{"r.example/x":"https://s.example"}}`)))
	f.Add([]byte(encrypted("kbs://k.example/a/b/c", `,"kbs_url":"https://k.example","guest_api":{"resources":["kbs:///a/b/c",{"kbs":"https://l.example","path":"a/b/d"}],"token":true},"files":[{"path":"/x","value":"sealed.a.b.c"}],"images":{"policy":"a/b/c"}`)))
	f.Add([]byte(`{"version":1,"a":1,"A":2,"algorithm":{}}`))
	f.Add([]byte(own(`,"datasets":[{"uri":"s3://bucket/a/b.csv","sha256":"` + strings.Repeat("11", 32) + `"},{"uri":"https://h.example/x.zip?sig=1","decompress":true}],"stores":[{"url":"s3://bucket","endpoint":"https://s3.example","region":"r-1"}]`)))
	f.Add([]byte(ofKind("python", imageMember+`,"path":"a.py","sha3_256":`+sum, `,"runtime":{`+imageMember+`,"encrypted":true,"kbs_resource_path":"a/b/c"},"kbs_url":"https://k.example"`)))
	f.Add([]byte(ofKind("bin", fileMember+`,"decompress":true`, "")))
	f.Add([]byte(computation(`,"algo_type":"wasm","hash":[`+strings.Repeat("17,", 31)+`17]`, "")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := Parse(raw, nil); err != nil && strings.TrimSpace(err.Error()) == "" {
			t.Fatal("an error that says nothing")
		}
		m, err := Parse(raw, everything)
		if err != nil {
			return
		}
		var other struct {
			Algorithm struct {
				URI    string
				Source struct{ URL string }
			}
			Args   []string
			Images struct{ Policy json.RawMessage }
		}
		if err := json.Unmarshal(raw, &other); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		if uri := other.Algorithm.URI + other.Algorithm.Source.URL; uri != m.Algorithm.URI {
			t.Fatalf("algorithm %q, and encoding/json reads %q", m.Algorithm.URI, uri)
		}
		if p := m.InlinePolicy; p != nil && !bytes.Equal(p.JSON, other.Images.Policy) {
			t.Fatalf("policy %q, and encoding/json reads %q", p.JSON, other.Images.Policy)
		}
		if m.Spelling == Own {
			if d := cmp.Diff(strings.Join(other.Args, "\x00"), strings.Join(m.Workload.Args, "\x00")); d != "" {
				t.Fatal(d)
			}
		}
		if got := unwrap(t, Wrap(m.Raw())); got != string(raw) {
			t.Fatalf("%q came back from its document as %q", raw, got)
		}
		pinned, err := Pin(raw, func(string) (string, error) { return resolved, nil })
		if err != nil {
			t.Fatal(err)
		}
		allowed := only("http")
		if slices.ContainsFunc(m.Datasets, func(d Resource) bool { return d.IsFile() && !d.Pinned() }) {
			allowed = everything // Pin knows no digests of files
		}
		if _, err := Parse(pinned, allowed); err != nil {
			t.Fatalf("%q is refused after Pin: %v", pinned, err)
		}
		if again, err := Pin(pinned, nil); err != nil || !bytes.Equal(pinned, again) {
			t.Fatalf("%q is pinned twice: %v", pinned, err)
		}
	})
}
