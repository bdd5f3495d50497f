package imagepolicy

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const publicKey = "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n"

// scoped is a policy that rejects by default and names each scope in the key path of its requirement.
func scoped(t *testing.T, scopes ...string) *Policy {
	t.Helper()
	docker := map[string]any{}
	for _, s := range scopes {
		docker[s] = []any{map[string]string{"type": "sigstoreSigned", "keyPath": "scope:" + s}}
	}
	b, err := json.Marshal(map[string]any{"default": []any{map[string]string{"type": "reject"}}, "transports": map[string]any{"docker": docker}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTheNarrowestScopeCounts(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("1", 64)
	all := []string{"r.example/team/app:v1", "r.example/team/app" + digest, "r.example/team/app", "r.example/team", "r.example", "*.example", "", "a.b.example:5000", "*.b.example",
		"docker.io/library/python", "docker.io"}
	p := scoped(t, all...)
	for ref, want := range map[string]string{
		"docker://r.example/team/app:v1":          "r.example/team/app:v1",
		"docker://R.Example/team/app:v1":          "r.example/team/app:v1",
		"r.example/team/app:v1" + digest:          "r.example/team/app" + digest,
		"r.example/team/app" + digest:             "r.example/team/app" + digest,
		"r.example/team/app:v2":                   "r.example/team/app",
		"r.example/team/app":                      "r.example/team/app",
		"r.example/team/other:v1":                 "r.example/team",
		"r.example/teams/other:v1":                "r.example",
		"r.example:5000/team/app:v1":              "*.example",
		"a.b.example:5000/x":                      "a.b.example:5000",
		"a.b.example:5001/x":                      "*.b.example",
		"b.example/x":                             "*.example",
		"other.org/x":                             "",
		"[::1]:5000/x":                            "",
		"localhost:5000/x":                        "",
		"docker.io/python:3":                      "docker.io/library/python",
		"index.docker.io/python":                  "docker.io/library/python",
		"registry-1.docker.io/library/python:tag": "docker.io/library/python",
		"index.docker.io/team/x":                  "docker.io",
	} {
		if got := p.Decide(ref); len(got) != 1 || got[0].KeyPath != "scope:"+want {
			t.Errorf("%s: %+v, want scope %q", ref, got, want)
		}
	}
	if got := scoped(t, "r.example").Decide("other.example/x"); len(got) != 1 || got[0].Type != Reject {
		t.Errorf("no scope: %+v, want the default", got)
	}
	for _, ref := range []string{"", "x", "docker://", "/x", "r.example/", "r.example/x:", "r.example/x@", "r.example//x", "r.example/x y", "r.example/*", "r.example/x:a/b"} {
		if got := p.Decide(ref); len(got) != 1 || got[0].Type != Reject {
			t.Errorf("%q: %+v, want reject", ref, got)
		}
		if err := p.Check(ref); !errors.Is(err, ErrRejected) {
			t.Errorf("%q: %v, want rejected", ref, err)
		}
	}
}

func TestCheckFailsClosed(t *testing.T) {
	p, err := Parse([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{
		"open.example":[{"type":"insecureAcceptAnything"}],
		"both.example":[{"type":"insecureAcceptAnything"},{"type":"reject"}],
		"cosign.example":[{"type":"insecureAcceptAnything"},{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign/key"}],
		"path.example":[{"type":"sigstoreSigned","keyPath":"kbs:///a/../c"}],
		"gpg.example":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]error{
		"open.example/x": nil, "both.example/x": ErrRejected, "elsewhere.example/x": ErrRejected,
		"cosign.example/x": nil, "gpg.example/x": ErrUnsupported, "path.example/x": ErrUnsupported,
	} {
		if err := p.Check(ref); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ref, err, want)
		}
	}
	if err := p.Check("gpg.example/x"); !strings.Contains(err.Error(), "signedBy") || !strings.Contains(err.Error(), `transports.docker["gpg.example"]`) {
		t.Errorf("%v: want what is asked, and where", err)
	}
	if err := new(Policy).Check("r.example/x"); !errors.Is(err, ErrRejected) {
		t.Errorf("a policy that says nothing: %v", err)
	}
}

func TestRequirementsAreReadInFull(t *testing.T) {
	key64 := base64.StdEncoding.EncodeToString([]byte(publicKey))
	raw, err := json.Marshal(map[string]any{"default": []any{
		map[string]any{"type": "signedBy", "keyType": "GPGKeys", "keyData": "AAEC", "signedIdentity": map[string]string{"type": "remapIdentity", "prefix": "a", "signedPrefix": "b"}},
		map[string]any{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "signedIdentity": map[string]string{"type": "exactReference", "dockerReference": "r.example/x:1"}},
		map[string]any{"type": "sigstoreSigned", "keyData": publicKey, "signedIdentity": map[string]string{"type": "exactRepository", "dockerRepository": "r.example/x"}},
		map[string]any{"type": "sigstoreSigned", "keyData": key64, "signedIdentity": map[string]string{"type": "matchRepository"}},
		map[string]any{"type": "sigstoreSigned", "keyPath": "kbs:///a/b/c"},
	}, "transports": map[string]any{"docker-daemon": map[string]any{"": []any{map[string]string{"type": "insecureAcceptAnything"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := []Requirement{
		{Type: SignedBy, KeyType: "GPGKeys", KeyData: []byte{0, 1, 2}, Identity: &Identity{Type: "remapIdentity", Prefix: "a", SignedPrefix: "b"}},
		{Type: SignedBy, KeyType: "GPGKeys", KeyPath: "/k", Identity: &Identity{Type: "exactReference", Reference: "r.example/x:1"}},
		{Type: SigstoreSigned, KeyData: []byte(publicKey), Identity: &Identity{Type: "exactRepository", Repository: "r.example/x"}},
		{Type: SigstoreSigned, KeyData: []byte(publicKey), Identity: &Identity{Type: "matchRepository"}},
		{Type: SigstoreSigned, KeyPath: "kbs:///a/b/c"},
	}
	if d := cmp.Diff(want, p.Decide("r.example/x")); d != "" {
		t.Error(d)
	}
}

func TestParseRefuses(t *testing.T) {
	one := func(requirement string) string { return `{"default":[` + requirement + `]}` }
	scope := func(s string) string {
		return `{"default":[{"type":"reject"}],"transports":{"docker":{"` + s + `":[{"type":"reject"}]}}}`
	}
	for name, c := range map[string]struct{ raw, want string }{
		"nothing":                   {"", "image policy: JSON object"},
		"no default":                {`{}`, `member "default": missing`},
		"an empty default":          {`{"default":[]}`, "default: 0 requirements"},
		"default null":              {`{"default":null}`, "missing"},
		"a default twice":           {`{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}`, "twice"},
		"an unknown member":         {`{"default":[{"type":"reject"}],"x":1}`, `member "x": unknown`},
		"an empty scope list":       {`{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}`, `transports.docker["a"]: 0 requirements`},
		"a scope twice":             {`{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"reject"}]}}}`, "twice"},
		"no type":                   {one(`{}`), "default[0]: type is missing"},
		"a type in another case":    {one(`{"Type":"insecureAcceptAnything"}`), "type is missing"},
		"an unknown type":           {one(`{"type":"trustMe"}`), `type "trustMe" is unknown`},
		"a type that is null":       {one(`{"type":null}`), "is not a string"},
		"a member too many":         {one(`{"type":"insecureAcceptAnything","keyPath":"x"}`), `"keyPath" is not supported`},
		"an identity too many":      {one(`{"type":"reject","signedIdentity":{"type":"matchExact"}}`), `"signedIdentity" is not supported`},
		"no key":                    {one(`{"type":"sigstoreSigned"}`), "want one of keyPath and keyData"},
		"two keys":                  {one(`{"type":"sigstoreSigned","keyPath":"x","keyData":"eA=="}`), "want one of keyPath and keyData"},
		"several keys":              {one(`{"type":"sigstoreSigned","keyPaths":["x"]}`), `"keyPaths": is not a string`},
		"Fulcio":                    {one(`{"type":"sigstoreSigned","keyPath":"x","fulcio":"y"}`), `"fulcio" is not supported`},
		"no key type":               {one(`{"type":"signedBy","keyPath":"x"}`), `keyType is "", want GPGKeys`},
		"a key that is no base64":   {one(`{"type":"signedBy","keyType":"GPGKeys","keyData":"!"}`), "not standard base64"},
		"a key that is no PEM":      {one(`{"type":"sigstoreSigned","keyData":"eA=="}`), "not the PEM of a PUBLIC KEY"},
		"a secret key":              {one(`{"type":"sigstoreSigned","keyData":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}`), "not the PEM of a PUBLIC KEY"},
		"an identity of no kind":    {one(`{"type":"sigstoreSigned","keyPath":"x","signedIdentity":{"type":"any"}}`), `signedIdentity: type "any" is unknown`},
		"an identity of cosign":     {one(`{"type":"sigstoreSigned","keyPath":"x","signedIdentity":{"type":"matchExact"}}`), "matchRepository and exactRepository alone"},
		"an identity half said":     {one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"x","signedIdentity":{"type":"remapIdentity","prefix":"a"}}`), "signedPrefix is missing"},
		"an identity of too much":   {one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"x","signedIdentity":{"type":"matchExact","prefix":"a"}}`), `"prefix" is not supported`},
		"a scope with a scheme":     {scope("https://r.example"), "has an empty part"},
		"a scope with a star":       {scope("r.example/*"), "a wildcard stands in front of a domain"},
		"a wildcard with a port":    {scope("*.example:5000"), "want *.domain"},
		"a scope in capitals":       {scope("R.example/x"), "in lower case"},
		"a requirement too many":    {one(strings.Repeat(`{"type":"reject"},`, 16) + `{"type":"reject"}`), "17 requirements"},
		"more than it may be":       {one(`{"type":"reject"}`) + strings.Repeat(" ", MaxSize), "at most"},
		"a list that is an object":  {`{"default":{}}`, "is not a list"},
		"transports that are lists": {`{"default":[{"type":"reject"}],"transports":[]}`, "transports: JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse([]byte(c.raw))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, %v: want %q", p, err, c.want)
			}
		})
	}
}

// FuzzParse holds that no policy lets an image in without saying so.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"*.example":[{"type":"insecureAcceptAnything"}],"r.example/x:1":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}]}}}`), "docker://r.example/x:1")
	f.Add([]byte(`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyData":"AAEC","signedIdentity":{"type":"matchExact"}}]}`), "docker.io/python")
	f.Fuzz(func(t *testing.T, b []byte, ref string) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		p.KeyPaths(ref)
		open := true
		for _, q := range p.Decide(ref) {
			open = open && q.Type == InsecureAcceptAnything
		}
		if open && p.Check(ref) != nil {
			t.Fatalf("%q: %+v, and Check says %v", ref, p.Decide(ref), p.Check(ref))
		}
		if err := p.Verify(Claim{Reference: ref}, func(string) []byte { return nil }, time.Time{}); open != (err == nil) {
			t.Fatalf("%q: %+v, and without a signature Verify says %v", ref, p.Decide(ref), err)
		}
	})
}
