package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sum = `"1111111111111111111111111111111111111111111111111111111111111111"`

// dataset is a manifest in Ampoule's spelling with one dataset, and more.
func dataset(members, more string) string {
	return own(`,"datasets":[{` + members + `}]` + more)
}

func TestParseReadsFiles(t *testing.T) {
	digest := unhex(strings.Trim(sum, `"`))
	for name, c := range map[string]struct {
		raw  string
		want Resource
	}{
		"a web server's": {dataset(`"uri":"https://h.example:8443/a/b%20c.csv?X-Amz-Signature=s","sha256":`+sum, ""),
			Resource{Type: "https", URI: "https://h.example:8443/a/b%20c.csv?X-Amz-Signature=s", Filename: "b c.csv", SHA256: digest}},
		"S3's, by its SHA3-256": {dataset(`"uri":"s3://bucket.one/a/b?c.csv","sha3_256":`+sum, ""),
			Resource{Type: "s3", URI: "s3://bucket.one/a/b?c.csv", Filename: "b?c.csv", SHA3_256: digest}},
		"Google's, encrypted, to be decompressed": {dataset(`"uri":"gs://bucket/d.zip","encrypted":true,"kbs_resource_path":"a/b/c","decompress":true`, `,"kbs_url":"https://k.example"`),
			Resource{Type: "gcs", URI: "gs://bucket/d.zip", Encrypted: true, KeyPath: "a/b/c", Broker: "https://k.example", Decompress: true}},
		"by its type and a name": {dataset(`"source":{"type":"s3","url":"s3://bucket/a/"},"filename":"x","sha256":`+sum, ""),
			Resource{Type: "s3", URI: "s3://bucket/a/", Filename: "x", SHA256: digest}},
		"Cocos' remote resources": {`{"computation_id":"1","algorithm":{"uri":"` + pinnedURI + `"},"datasets":[{"filename":"x","source":{"type":"gcs","url":"gs://bucket/x.enc","encrypted":true,"kbs_resource_path":"a/b/c"},"kbs":{"url":"https://k.example","enabled":true}}]}`,
			Resource{Type: "gcs", URI: "gs://bucket/x.enc", Filename: "x", Encrypted: true, KeyPath: "a/b/c", Broker: "https://k.example"}},
		"Cocos' computation": {`{"id":"1","algorithm":{"source":{"url":"` + pinnedURI + `"}},"datasets":[{"hash":[` + strings.Repeat("17,", 31) + `17],"filename":"x","source":{"url":"https://h.example/x.zip"},"decompress":true}]}`,
			Resource{Type: "https", URI: "https://h.example/x.zip", Filename: "x", SHA3_256: digest, Decompress: true}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Parse([]byte(c.raw), nil)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]Resource{c.want}, m.Datasets); d != "" {
				t.Error(d)
			}
			if !m.Datasets[0].IsFile() || !m.Datasets[0].Pinned() || m.Algorithm.IsFile() {
				t.Errorf("%+v: want a file that is pinned, and an algorithm that is none", m.Datasets[0])
			}
		})
	}
}

func TestParseReadsStores(t *testing.T) {
	m, err := Parse([]byte(dataset(`"uri":"s3://bucket/x","sha256":`+sum, `,"kbs_url":"https://k.example","stores":[
		{"url":"s3://bucket","endpoint":"https://S3.example:9000/","region":"eu-central-1","credentials":"a/b/c"},
		{"url":"s3://other/","endpoint":"https://s3.example","path_style":false},{"url":"gs://bucket"},
		{"url":"https://H.example:443","credentials":"kbs:///a/b/d"}]`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []Store{
		{URL: "s3://bucket", Endpoint: "https://s3.example:9000", Region: "eu-central-1", PathStyle: true, Credentials: &BrokerResource{"https://k.example", "a/b/c"}},
		{URL: "s3://other", Endpoint: "https://s3.example"},
		{URL: "gs://bucket"},
		{URL: "https://h.example", Credentials: &BrokerResource{"https://k.example", "a/b/d"}},
	}
	if d := cmp.Diff(want, m.Stores); d != "" {
		t.Error(d)
	}
	for uri, i := range map[string]int{"s3://bucket/a/b": 0, "s3://other/x": 1, "gs://bucket/a": 2, "https://h.example/a?b": 3, "https://h.example:443/": 3,
		"s3://bucket2/a": -1, "https://h.example:444/a": -1, "http://h.example/a": -1, "https://h.example.evil/a": -1} {
		got := m.StoreOf(Resource{URI: uri})
		if i < 0 && got != nil || i >= 0 && got != &m.Stores[i] {
			t.Errorf("%s is of %+v, want number %d", uri, got, i)
		}
	}
}

func TestParseRefusesFiles(t *testing.T) {
	broker := `,"kbs_url":"https://k.example"`
	for name, c := range map[string]struct{ raw, want string }{
		"nothing says what it is":          {dataset(`"uri":"https://h.example/x?secret"`, ""), `datasets[0].uri: "https://h.example/x": is not encrypted and has no digest`},
		"encrypted, with no key":           {dataset(`"uri":"s3://bucket/x","encrypted":true`, broker), "datasets[0].kbs_resource_path: is missing, and the file is encrypted"},
		"encrypted, with no key, Cocos":    {`{"id":"1","algorithm":{"source":{"url":"` + pinnedURI + `"}},"datasets":[{"source":{"url":"s3://bucket/x","encrypted":true},"kbs":{"url":"https://k.example","enabled":true}}]}`, "datasets[0].source.kbs_resource_path: is missing"},
		"plain http":                       {dataset(`"uri":"http://h.example/x?secret","sha256":`+sum, ""), `datasets[0].uri: "http://h.example/x": this image allows no plain http`},
		"an algorithm, Cocos":              {`{"id":"1","algorithm":{"source":{"url":"https://h.example/x.py?secret"},"algo_type":"docker"}}`, `algorithm.source.url: "https://h.example/x.py": is a file, which has no entrypoint to run`},
		"a type of another scheme":         {dataset(`"type":"gcs","uri":"https://h.example/x","sha256":`+sum, ""), "datasets[0].uri: \"https://h.example/x\": want gs://…"},
		"a password":                       {dataset(`"uri":"https://u:secret@h.example/x","sha256":`+sum, ""), "has a user or a fragment"},
		"a fragment":                       {dataset(`"uri":"https://h.example/x#a","sha256":`+sum, ""), "has a user or a fragment"},
		"no URL":                           {dataset(`"uri":"https://h.example/%zz?secret","sha256":`+sum, ""), "is no URL"},
		"no host":                          {dataset(`"uri":"https:///x","sha256":`+sum, ""), "want a name or an address"},
		"a bucket of two letters":          {dataset(`"uri":"s3://ab/x","sha256":`+sum, ""), `bucket "ab": want 3 characters`},
		"a bucket in capitals":             {dataset(`"uri":"s3://Bucket/x","sha256":`+sum, ""), `bucket "Bucket": want 3 characters`},
		"a bucket with a user":             {dataset(`"uri":"s3://a@bucket/x","sha256":`+sum, ""), `bucket "a@bucket": want 3 characters`},
		"no key":                           {dataset(`"uri":"s3://bucket","sha256":`+sum, ""), "a key of 0 bytes; want s3://bucket/key"},
		"a key that goes up":               {dataset(`"uri":"s3://bucket/a/../x","sha256":`+sum, ""), ". or .. in the key"},
		"no name":                          {dataset(`"uri":"https://h.example/a/","sha256":`+sum, ""), "datasets[0].filename: is missing, and the URI ends in no name"},
		"a name that goes elsewhere":       {dataset(`"uri":"https://h.example/a%2f..","sha256":`+sum, ""), "datasets[0].filename: is missing, and the URI ends in no name"},
		"the same name twice":              {own(`,"datasets":[{"uri":"https://h.example/a/x","sha256":` + sum + `},{"uri":"https://h.example/b/x","sha256":` + sum + `}]`), `datasets[1].filename: is missing: by its URI the file is "x", as datasets[0].uri is`},
		"a store of another scheme":        {own(`,"stores":[{"url":"ftp://h.example"}]`), "stores[0].url: \"ftp://h.example\": want s3://bucket"},
		"a store with a key":               {own(`,"stores":[{"url":"s3://bucket/a"}]`), "stores[0].url: \"s3://bucket/a\": bucket \"bucket/a\""},
		"a store twice":                    {own(`,"stores":[{"url":"s3://bucket"},{"url":"s3://bucket/"}]`), "stores[1].url: \"s3://bucket\": is listed twice"},
		"a web server's endpoint":          {own(broker + `,"stores":[{"url":"https://h.example","region":"a","credentials":"a/b/c"}]`), "stores[0].region: is of a bucket"},
		"a web server without credentials": {own(`,"stores":[{"url":"https://h.example"}]`), "stores[0].credentials: is missing"},
		"a region that is none":            {own(`,"stores":[{"url":"s3://bucket","region":"a/b"}]`), `stores[0].region: "a/b": want one as eu-central-1`},
		"an endpoint over plain http":      {own(`,"stores":[{"url":"s3://bucket","endpoint":"http://s3.example"}]`), "stores[0].endpoint: http://s3.example: this image allows no plain http"},
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
	for name, raw := range map[string]string{
		"tag":  dataset(`"uri":"https://h.example/x"`, ""),
		"http": dataset(`"uri":"http://h.example/x","sha256":`+sum, ""),
	} {
		if _, err := Parse([]byte(raw), only(name)); err != nil {
			t.Errorf("where %s is allowed: %v", name, err)
		}
	}
	login := own(broker + `,"stores":[{"url":"s3://bucket","endpoint":"http://s3.example","credentials":"a/b/c"}]`)
	if _, err := Parse([]byte(login), everything); err == nil || !strings.Contains(err.Error(), "credentials go over https alone") {
		t.Errorf("credentials over plain http: %v", err)
	}
}
