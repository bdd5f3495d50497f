package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// encrypted is an algorithm whose key is at place, as it is written; more stands in the manifest besides.
func encrypted(place, more string) string {
	return `{"version":1,"algorithm":{"uri":"` + pinnedURI + `","encrypted":true,"kbs_resource_path":"` + place + `"}` + more + `}`
}

func TestGrantsAreRead(t *testing.T) {
	m, err := Parse([]byte(own(`,
		"kbs": [{"url": "https://one.example", "key_type": "RSA-OAEP-256"}],
		"guest_api": {"resources": ["default/app/token", "kbs:///default/app/cert", {"kbs": "https://Two.example:443/", "path": "kbs://two.example/default/app/other"}], "token": true, "evidence": true},
		"images": {"policy": "default/security-policy/main"},
		"registries": [{"host": "r.example", "credentials": {"kbs": "https://two.example", "path": "default/credential/r"}}],
		"env": {"PASSWORD": "sealed.a.b.c"},
		"files": [{"path": "/run/secrets/x", "value": "two\nlines\u0000"}, {"path": "/etc/app.conf", "value": ""}, {"path": "/run/secrets/y", "value": "sealed.d.e.f"}]`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Manifest{
		Spelling: Own, Logs: "sealed",
		Algorithm: Resource{Type: "oci-image", URI: pinnedURI},
		Workload: Workload{Kind: "oci", Env: map[string]string{"PASSWORD": "sealed.a.b.c"}, SealedBroker: "https://one.example",
			Files: []File{{"/run/secrets/x", "two\nlines\x00"}, {"/etc/app.conf", ""}, {"/run/secrets/y", "sealed.d.e.f"}}},
		Results: Results{Path: ResultsPath, LimitBytes: DefaultLimit, Sinks: []Sink{{Type: VsockSink, Deadline: sinkDeadline}}},
		GuestAPI: GuestAPI{
			Resources: []BrokerResource{{"https://one.example", "default/app/token"}, {"https://one.example", "default/app/cert"}, {"https://two.example", "default/app/other"}},
			Token:     true, TokenBroker: "https://one.example", Evidence: true,
		},
		ImagePolicy: &BrokerResource{"https://one.example", "default/security-policy/main"},
		Brokers:     []Broker{{URL: "https://one.example", KeyType: "RSA-OAEP-256"}, {URL: "https://two.example"}},
		Registries:  []Registry{{Host: "r.example", Credentials: &BrokerResource{"https://two.example", "default/credential/r"}}},
	}
	if d := cmp.Diff(want, m, cmpopts.IgnoreUnexported(Manifest{})); d != "" {
		t.Error(d)
	}
	if !m.GuestAPI.Granted() || (GuestAPI{}).Granted() {
		t.Error("Granted is wrong")
	}
}

func TestInlinePolicies(t *testing.T) {
	const policy = `{"default" : [{"type": "reject"}],
		"transports": {"docker": {"r.example": [{"type": "sigstoreSigned", "keyPath": "kbs:///a/b/c"}], "s.example": [{"type": "x{}\"}"}]}}}`
	m, err := Parse([]byte(own(`,"kbs_url":"https://one.example","images": {"policy" :  `+policy+` ,"lookaside":{"r.example:5000/team":"https://S.example:443/sigs/","r.example":"https://t.example"}}`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := m.InlinePolicy; m.ImagePolicy != nil || p == nil || string(p.JSON) != policy || p.Broker != "https://one.example" || len(m.Brokers) != 1 {
		t.Errorf("%+v, %+v, brokers %+v", m.ImagePolicy, p, m.Brokers)
	}
	if d := cmp.Diff([]Lookaside{{"r.example", "https://t.example"}, {"r.example:5000/team", "https://s.example/sigs"}}, m.Lookaside); d != "" {
		t.Error(d)
	}
	m, err = Parse([]byte(own(`,"images": {"policy":{"default":[{"type":"reject"}]}}`)), nil)
	if err != nil || string(m.InlinePolicy.JSON) != `{"default":[{"type":"reject"}]}` || m.InlinePolicy.Broker != "" || m.Brokers != nil {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestKeyPathsAsURIs(t *testing.T) {
	for _, c := range []struct{ place, more, want string }{ // want is a problem, or empty
		{"a/b/c", `,"kbs_url":"https://k.example"`, ""},
		{"kbs:///a/b/c", `,"kbs_url":"https://k.example"`, ""},
		{"kbs://k.example/a/b/c", `,"kbs_url":"https://k.example"`, ""},
		{"kbs://K.Example:443/a/b/c", `,"kbs_url":"https://k.example"`, ""},
		{"kbs://k.example:443/a/b/c", `,"kbs_url":"https://k.example/prefix"`, ""},
		{"kbs://k.example/a/b/c", `,"kbs_url":"https://k.example:8443"`, ""},
		{"kbs://k.example:8443/a/b/c", `,"kbs_url":"https://k.example:8443"`, ""},
		{"kbs://[::1]:8443/a/b/c", `,"kbs_url":"https://[::1]:8443"`, ""},
		{"kbs://k.example:8443/a/b/c", `,"kbs_url":"https://k.example"`, "algorithm.kbs_resource_path: names the key broker k.example:8443, and the manifest says https://k.example for"},
		{"kbs://k.example:80/a/b/c", `,"kbs_url":"https://k.example"`, "names the key broker k.example:80"},
		{"kbs://evil.example/a/b/c", `,"kbs_url":"https://k.example"`, "names the key broker evil.example, and the manifest says https://k.example for"},
		{"kbs://evil.example/a/b/c", `,"kbs":[{"url":"https://k.example"},{"url":"https://evil.example"}]`, "algorithm.kbs: is missing: the manifest lists 2 key brokers"},
		{"kbs://a/b/c", `,"kbs_url":"https://a"`, "want kbs:///repository/type/tag or kbs://host[:port]/repository/type/tag"},
		{"kbs://u@k.example/a/b/c", `,"kbs_url":"https://k.example"`, "want kbs:///repository/type/tag or"},
		{"kbs:///a/../c", `,"kbs_url":"https://k.example"`, "want kbs:///repository/type/tag or"},
		{"kbs:///a/b/c?x=y", `,"kbs_url":"https://k.example"`, "want kbs:///repository/type/tag or"},
		{"kbs+pkcs11:///a/b/c", `,"kbs_url":"https://k.example"`, "want repository/type/tag"},
		{"https://k.example/a/b/c", `,"kbs_url":"https://k.example"`, "want repository/type/tag"},
	} {
		m, err := Parse([]byte(encrypted(c.place, c.more)), nil)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.place, err)
		case c.want == "" && m.Algorithm.KeyPath != "a/b/c":
			t.Errorf("%s: key path %q", c.place, m.Algorithm.KeyPath)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.place, err, c.want)
		}
	}
	// A resource's own broker goes before the one of all.
	raw := strings.Replace(encrypted("kbs://own.example/a/b/c", `,"kbs_url":"https://all.example"`), `"encrypted"`, `"kbs":{"url":"https://own.example"},"encrypted"`, 1)
	if m, err := Parse([]byte(raw), nil); err != nil || m.Algorithm.Broker != "https://own.example" {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestGrantsThatAreRefused(t *testing.T) {
	const two = `,"kbs":[{"url":"https://a.example"},{"url":"https://b.example"}]`
	const one = `,"kbs_url":"https://a.example"`
	for name, c := range map[string]struct{ more, want string }{
		"a resource of no broker":                {`,"guest_api":{"resources":["a/b/c"]}`, "guest_api.resources[0]: names no key broker, and the manifest has 0 for all"},
		"a resource of one of two brokers":       {two + `,"guest_api":{"resources":["a/b/c"]}`, "guest_api.resources[0]: names no key broker, and the manifest has 2 for all"},
		"a resource at another broker":           {one + `,"guest_api":{"resources":["kbs://b.example/a/b/c"]}`, "guest_api.resources[0]: names the key broker b.example, and the manifest says https://a.example"},
		"a resource at neither":                  {one + `,"guest_api":{"resources":[{"kbs":"https://b.example","path":"kbs://a.example/a/b/c"}]}`, "guest_api.resources[0].path: names the key broker a.example"},
		"a resource twice":                       {one + `,"guest_api":{"resources":["a/b/c",{"kbs":"https://b.example","path":"a/b/c"}]}`, "guest_api.resources[1]: a/b/c: is there twice"},
		"a resource that is a number":            {one + `,"guest_api":{"resources":[1]}`, "guest_api.resources[0]: is a number, want"},
		"a resource without a path":              {one + `,"guest_api":{"resources":[{"kbs":"https://a.example"}]}`, "guest_api.resources[0].path: is missing"},
		"a resource of a path and more":          {one + `,"guest_api":{"resources":[{"path":"a/b/c","x":1}]}`, "guest_api.resources[0].x: is an unknown key"},
		"a resource over plain http":             {`,"guest_api":{"resources":[{"kbs":"http://a.example","path":"a/b/c"}]}`, "allows no key broker over plain http"},
		"a wildcard":                             {one + `,"guest_api":{"resources":["a/b/*"]}`, "guest_api.resources[0]: \"a/b/*\": want repository/type/tag"},
		"a grant of another name":                {one + `,"guest_api":{"secrets":true}`, "guest_api.secrets: is an unknown key"},
		"a grant that is a list":                 {`,"guest_api":[]`, "guest_api: is a list, want an object"},
		"a token in words":                       {one + `,"guest_api":{"token":"yes"}`, "guest_api.token: is a string, want true or false"},
		"a token of no broker":                   {`,"guest_api":{"token":true}`, "guest_api.token: a token is of one key broker, and the manifest has 0 for all"},
		"a token of two brokers":                 {two + `,"guest_api":{"token":true}`, "guest_api.token: a token is of one key broker, and the manifest has 2 for all"},
		"a sealed variable of no broker":         {`,"env":{"X":"sealed.a.b.c"}`, "env.X: is a sealed secret, which a key broker opens, and the manifest has 0"},
		"a sealed file of two brokers":           {two + `,"files":[{"path":"/x","value":"sealed.a.b.c"}]`, "files[0].value: is a sealed secret, which a key broker opens, and the manifest has 2"},
		"a policy of no broker":                  {`,"images":{"policy":"a/b/c"}`, "images.policy: names no key broker"},
		"images of which nothing is said":        {one + `,"images":{}`, "images.policy: is missing"},
		"an inline policy, and its keys nowhere": {`,"images":{"policy":{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}]}}`, "images.policy: names keys, which are kept at a key broker, and the manifest has 0"},
		"an inline policy, and its keys in two":  {two + `,"images":{"policy":{"default":[],"transports":{"docker":{"a":[{"keyPath":""}]}}}}`, "images.policy: names keys, which are kept at a key broker, and the manifest has 2"},
		"an inline policy twice":                 {`,"images":{"policy":{"default":[],"default":[]}}`, "images.policy.default: is there twice"},
		"a lookaside and no policy":              {`,"images":{"lookaside":{"r.example":"https://s.example"}}`, "images.policy: is missing"},
		"a lookaside over plain http":            {one + `,"images":{"policy":"a/b/c","lookaside":{"r.example":"http://s.example"}}`, `images.lookaside["r.example"]: http://s.example: this image allows nothing over plain http`},
		"a lookaside of nothing":                 {one + `,"images":{"policy":"a/b/c","lookaside":{"":"https://s.example"}}`, `images.lookaside[""]: is no host`},
		"a lookaside of a tag":                   {one + `,"images":{"policy":"a/b/c","lookaside":{"r.example/x:1":"https://s.example"}}`, `images.lookaside["r.example/x:1"]: is no host`},
		"a lookaside of a slash":                 {one + `,"images":{"policy":"a/b/c","lookaside":{"r.example/":"https://s.example"}}`, `images.lookaside["r.example/"]: is no host`},
		"a lookaside nowhere":                    {one + `,"images":{"policy":"a/b/c","lookaside":{"r.example":""}}`, `images.lookaside["r.example"]: is empty`},
		"a lookaside with a query":               {one + `,"images":{"policy":"a/b/c","lookaside":{"r.example":"https://s.example?x"}}`, `images.lookaside["r.example"]`},
		"images and keys":                        {one + `,"images":{"policy":"a/b/c","keys":[]}`, "images.keys: is an unknown key"},
		"a registry of which nothing is said":    {`,"registries":[{"host":"r.example"}]`, "registries[0].ca: is missing, and so are credentials"},
		"credentials in the manifest":            {one + `,"registries":[{"host":"r.example","credentials":{"user":"a","password":"b"}}]`, "registries[0].credentials.password: is an unknown key"},
		"a kind of key":                          {`,"kbs":[{"url":"https://a.example","key_type":"P-256"}]`, `kbs[0].key_type: "P-256": want one of ECDH-ES+A256KW-P256`},
		"a file without a path":                  {`,"files":[{"value":""}]`, "files[0].path: is missing"},
		"a file without a value":                 {`,"files":[{"path":"/x"}]`, "files[0].value: is missing"},
		"a file of a number":                     {`,"files":[{"path":"/x","value":1}]`, "files[0].value: is a number, want a string"},
		"a file at a relative path":              {`,"files":[{"path":"x","value":""}]`, "files[0].path: \"x\": want an absolute path"},
		"a file that goes up":                    {`,"files":[{"path":"/x/../y","value":""}]`, "want an absolute path"},
		"a file that is the root":                {`,"files":[{"path":"/","value":""}]`, "want an absolute path"},
		"a file that is a folder":                {`,"files":[{"path":"/x/","value":""}]`, "want an absolute path"},
		"a file in the datasets":                 {`,"files":[{"path":"/cocos/datasets/x","value":""}]`, "/cocos/datasets is the sandbox's own"},
		"a file in place of the datasets":        {`,"files":[{"path":"/cocos","value":""}]`, "is the sandbox's own"},
		"a file in the results":                  {`,"files":[{"path":"/cocos/results/x","value":""}]`, "/cocos/results is the sandbox's own"},
		"a file in place of the processes":       {`,"files":[{"path":"/proc","value":""}]`, "/proc is the sandbox's own"},
		"a file twice":                           {`,"files":[{"path":"/x","value":""},{"path":"/x","value":""}]`, "files[1].path: \"/x\": is files[0] as well"},
		"a file that would be another's folder":  {`,"files":[{"path":"/x/y","value":""},{"path":"/x","value":""}]`, "files[1].path: \"/x\": is files[0] as well, or one would be a folder"},
		"a file with a mode":                     {`,"files":[{"path":"/x","value":"","mode":420}]`, "files[0].mode: is an unknown key"},
		"too many files":                         {`,"files":[` + strings.Repeat(`{"path":"/x","value":""},`, maxFiles) + `{"path":"/x","value":""}]`, "files: has 65, at most 64"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Parse([]byte(own(c.more)), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%+v, %v\nwant %q", m, err, c.want)
			}
		})
	}
	if _, err := Parse([]byte(`{"computation_id":"c","algorithm":{"uri":"`+pinnedURI+`"},"guest_api":{}}`), nil); err == nil || !strings.Contains(err.Error(), "guest_api: is an unknown key") {
		t.Errorf("Cocos' spelling: %v", err)
	}
}

// One report has all that is wrong with the grants, each once.
func TestGrantsReportAllProblems(t *testing.T) {
	_, err := Parse([]byte(own(`,"guest_api":{"resources":["a/b","a/b/c"],"token":true},"images":{"policy":7},"files":[{"path":"x"}],"registries":[{"host":"r.example","credentials":"a"}]`)), nil)
	var got []string
	p, _ := err.(Problems)
	for _, one := range p {
		got = append(got, one.Path)
	}
	want := []string{"files[0].value", "files[0].path", "registries[0].credentials", "images.policy", "guest_api.resources[0]", "guest_api.resources[1]", "guest_api.token"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s\n%v", d, err)
	}
}
