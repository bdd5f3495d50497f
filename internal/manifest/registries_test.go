package manifest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRegistriesThatAreRead(t *testing.T) {
	m, err := Parse([]byte(own(`,"registries":[
		{"host":"r.example","mirrors":["mirror.example:5000","[::1]:5000/proxy/r.example"],"proxy":"http://proxy.example:3128"},
		{"host":"mirror.example:5000","proxy":"https://10.0.0.1"}]`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []Registry{
		{Host: "r.example", Mirrors: []string{"mirror.example:5000", "[::1]:5000/proxy/r.example"}, Proxy: "http://proxy.example:3128"},
		{Host: "mirror.example:5000", Proxy: "https://10.0.0.1"},
	}
	if d := cmp.Diff(want, m.Registries); d != "" {
		t.Error(d)
	}
}

func TestMirrorsAndProxiesThatAreRefused(t *testing.T) {
	of := func(member string) string { return own(`,"registries":[{"host":"r.example",` + member + `}]`) }
	for name, c := range map[string]struct{ raw, want string }{
		"no mirrors":                         {of(`"mirrors":[]`), "registries[0].mirrors: 0 of them; want 1 to 8"},
		"nine mirrors":                       {of(`"mirrors":["a.example"` + strings.Repeat(`,"b.example"`, 8) + `]`), "registries[0].mirrors: 9 of them"},
		"one mirror, no list":                {of(`"mirrors":"m.example"`), "registries[0].mirrors: is a string, want a list"},
		"a mirror of a number":               {of(`"mirrors":[1]`), "registries[0].mirrors[0]: is a number, want a string"},
		"a mirror with a scheme":             {of(`"mirrors":["https://m.example"]`), `registries[0].mirrors[0]: "https://m.example": want host[:port][/prefix]`},
		"a mirror with a user":               {of(`"mirrors":["u@m.example"]`), "registries[0].mirrors[0]"},
		"a mirror with a prefix that climbs": {of(`"mirrors":["m.example/../x"]`), `".." in the prefix`},
		"a mirror with an empty prefix":      {of(`"mirrors":["m.example/"]`), `"" in the prefix`},
		"a mirror with a query":              {of(`"mirrors":["m.example/x?y"]`), `"x?y" in the prefix`},
		"a mirror twice":                     {of(`"mirrors":["m.example","m.example"]`), "registries[0].mirrors[1]: m.example: is the registry itself, or there twice"},
		"a mirror that is the registry":      {of(`"mirrors":["r.example"]`), "registries[0].mirrors[0]: r.example: is the registry itself"},
		"a proxy without a scheme":           {of(`"proxy":"proxy.example:3128"`), `registries[0].proxy: "proxy.example:3128": want http://host[:port]`},
		"a proxy of another scheme":          {of(`"proxy":"socks5://proxy.example"`), "registries[0].proxy"},
		"a proxy with a path":                {of(`"proxy":"http://proxy.example/x"`), "registries[0].proxy"},
		"a proxy without a host":             {of(`"proxy":"http://"`), "registries[0].proxy"},
		"a proxy of no port":                 {of(`"proxy":"http://proxy.example:0"`), "registries[0].proxy"},
		"an empty proxy":                     {of(`"proxy":""`), "registries[0].proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse([]byte(c.raw), nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %q", err, c.want)
			}
		})
	}
	_, err := Parse([]byte(of(`"proxy":"http://user:s3cret@proxy.example"`)), nil)
	if err == nil || !strings.Contains(err.Error(), "registries[0].proxy: has a user or password") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("a proxy with a password: %v", err)
	}
}
