package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// ofKind is a manifest in Ampoule's spelling whose algorithm has these members.
func ofKind(kind, algorithm, more string) string {
	return `{"version":1,"workload":"` + kind + `","algorithm":{` + algorithm + `}` + more + `}`
}

const (
	imageMember = `"uri":"` + pinnedURI + `"`
	fileMember  = `"uri":"https://h.example/a/fit?sig=secret","sha256":` + sum
)

func TestParseReadsKinds(t *testing.T) {
	image := Resource{Type: "oci-image", URI: pinnedURI}
	file := Resource{Type: "https", URI: "https://h.example/a/fit?sig=secret", Filename: "algo", SHA256: unhex(strings.Trim(sum, `"`))}
	archive := file
	archive.Filename, archive.Decompress = "", true
	hashed := image
	hashed.SHA3_256 = unhex(strings.Trim(sum, `"`))
	unnamed := Resource{Type: "s3", URI: "s3://bucket/algo.enc", Encrypted: true, KeyPath: "a/b/c", Broker: "https://k.example", Filename: "algo"}
	sealed := image
	sealed.Encrypted, sealed.KeyPath, sealed.Broker = true, "a/b/c", "https://k.example"
	for name, c := range map[string]struct {
		raw       string
		kind      string
		path      string
		algorithm Resource
		runtime   *Resource
	}{
		"nothing said":                     {own(""), "oci", "", image, nil},
		"an executable in an image":        {ofKind("bin", imageMember, ""), "bin", "", image, nil},
		"an executable by its path":        {ofKind("bin", imageMember+`,"path":"/opt/fit"`, ""), "bin", "opt/fit", image, nil},
		"an executable by its hash":        {ofKind("bin", imageMember+`,"sha3_256":`+sum, ""), "bin", "", hashed, nil},
		"an executable from a server":      {ofKind("bin", fileMember, ""), "bin", "", file, nil},
		"an archive":                       {ofKind("bin", fileMember+`,"decompress":true,"path":"bin/fit"`, ""), "bin", "bin/fit", archive, nil},
		"a script and its interpreter":     {ofKind("python", imageMember, `,"runtime":{`+imageMember+`}`), "python", "", image, &image},
		"a script that is a file":          {ofKind("python", fileMember, `,"runtime":{`+imageMember+`}`), "python", "", file, &image},
		"an encrypted interpreter":         {ofKind("python", imageMember, `,"runtime":{`+imageMember+`,"encrypted":true,"kbs_resource_path":"a/b/c"},"kbs_url":"https://k.example"`), "python", "", image, &sealed},
		"a module":                         {ofKind("wasm", imageMember, ""), "wasm", "", image, nil},
		"Cocos' remote resources":          {algorithm(imageMember), "", "", image, nil},
		"Cocos' remote resources, a file":  {algorithm(`"uri":"s3://bucket/algo.enc","encrypted":true,"kbs_resource_path":"a/b/c","kbs":{"url":"https://k.example"}`), "", "", unnamed, nil},
		"Cocos' computation":               {computation("", ""), "", "", image, nil},
		"Cocos' computation, docker":       {computation(`,"algo_type":"docker"`, ""), "oci", "", image, nil},
		"Cocos' computation, with a hash":  {computation(`,"algo_type":"python","hash":[`+strings.Repeat("17,", 31)+`17]`, ""), "python", "", hashed, nil},
		"Cocos' computation, with a hash?": {computation(`,"hash":[`+strings.Repeat("17,", 31)+`17]`, ""), "", "", hashed, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Parse([]byte(c.raw), nil)
			if err != nil {
				t.Fatal(err)
			}
			if m.Workload.Kind != c.kind || m.Workload.Path != c.path {
				t.Errorf("kind %q, path %q", m.Workload.Kind, m.Workload.Path)
			}
			if d := cmp.Diff(c.algorithm, m.Algorithm, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(c.runtime, m.Runtime, cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
			if len(m.Datasets) > 0 {
				t.Errorf("datasets %+v", m.Datasets)
			}
		})
	}
}

func TestParseRefusesKinds(t *testing.T) {
	for name, c := range map[string]struct{ raw, want string }{
		"a file with an entrypoint":           {ofKind("oci", fileMember, ""), `algorithm.uri: "https://h.example/a/fit": is a file, which has no entrypoint to run`},
		"a path beside an entrypoint":         {ofKind("oci", imageMember+`,"path":"a"`, ""), "algorithm.path: is of one file"},
		"a path that goes up":                 {ofKind("bin", imageMember+`,"path":"a/../b"`, ""), "algorithm.path: \"a/../b\": want a file's path"},
		"a path that is the root":             {ofKind("bin", imageMember+`,"path":"/"`, ""), "algorithm.path: \"/\": want a file's path"},
		"a path of a file":                    {ofKind("bin", fileMember+`,"path":"a"`, ""), "algorithm.path: is of an image or an archive"},
		"an image to decompress":              {ofKind("bin", imageMember+`,"decompress":true`, ""), "algorithm.decompress: is of a file"},
		"a file that nothing pins":            {ofKind("bin", `"uri":"https://h.example/fit?secret"`, ""), `algorithm.uri: "https://h.example/fit": is not encrypted and has no digest`},
		"a file over plain http":              {ofKind("bin", `"uri":"http://h.example/fit?secret","sha256":`+sum, ""), "this image allows no plain http"},
		"a script without an interpreter":     {ofKind("python", fileMember, ""), "runtime: is missing: the algorithm is one file"},
		"Cocos' script without interpreter":   {`{"id":"1","algorithm":{"algo_type":"python","source":{"url":"s3://bucket/x","encrypted":true,"kbs_resource_path":"a/b/c"},"kbs":{"url":"https://k.example","enabled":true}}}`, "runtime: is missing"},
		"an interpreter for an executable":    {ofKind("bin", imageMember, `,"runtime":{`+imageMember+`}`), "runtime: is of the kind python, and the kind is bin"},
		"an interpreter that is a file":       {ofKind("python", imageMember, `,"runtime":{`+fileMember+`}`), `runtime.uri: "https://h.example/a/fit": is a file`},
		"an interpreter without a digest":     {ofKind("python", imageMember, `,"runtime":{"uri":"docker://r.example/python:3"}`), "runtime.uri: \"docker://r.example/python:3\" names no digest"},
		"an encrypted interpreter, no key":    {ofKind("python", imageMember, `,"runtime":{`+imageMember+`,"encrypted":true},"kbs_url":"https://k.example"`), "runtime.kbs_resource_path: is missing"},
		"an encrypted interpreter, no broker": {ofKind("python", imageMember, `,"runtime":{`+imageMember+`,"encrypted":true,"kbs_resource_path":"a/b/c"}`), "runtime.kbs: is missing"},
		"what an interpreter has not":         {ofKind("python", imageMember, `,"runtime":{`+imageMember+`,"filename":"x"}`), "runtime.filename: is an unknown key"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.raw), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v\nwant it to say %q", err, c.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%v: has what is secret", err)
			}
		})
	}
}

// A runtime is pinned as other images are.
func TestPinPinsTheRuntime(t *testing.T) {
	raw := ofKind("python", imageMember, `,"runtime":{"uri":"docker://r.example/python:3"}`)
	got, err := Pin([]byte(raw), func(string) (string, error) { return "sha256:" + strings.Trim(sum, `"`), nil })
	if err != nil || !strings.Contains(string(got), `"docker://r.example/python:3@sha256:`+strings.Trim(sum, `"`)) {
		t.Errorf("%s, %v", got, err)
	}
}
