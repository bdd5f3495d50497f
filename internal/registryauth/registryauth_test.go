package registryauth

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func auth(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// file is a containers-auth.json of name, user:password, name, user:password and so on.
func file(pairs ...string) []byte {
	auths := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		auths[pairs[i]] = map[string]string{"auth": auth(pairs[i+1])}
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		panic(err)
	}
	return b
}

func TestLongestPathWins(t *testing.T) {
	c, err := Parse(file("r.example", "host:1", "r.example/team", "team:2", "r.example/team/app", "app:3",
		"r.example:5000", "port:4", "https://index.docker.io/v1/", "hub:5", "http://old.example/v2/x", "old:6", "only.example/path", "part:7\r\n", "Upper.Example/x", "case:8",
		"https://url.example:5000", "url:9", "https://url.example:5001/", "url:10"))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"docker://r.example/team/app:v1@sha256:" + strings.Repeat("1", 64): "app:3",
		"docker://r.example/team/app/deep":                                 "app:3",
		"docker://r.example/team/apple":                                    "team:2",
		"docker://r.example/team":                                          "team:2",
		"docker://r.example/teams":                                         "host:1",
		"r.example/x:tag":                                                  "host:1",
		"R.Example/x":                                                      "host:1",
		"r.example":                                                        "host:1",
		"docker://r.example:5000/team/app":                                 "port:4",
		"docker://r.example:5001/team/app":                                 "",
		"docker://docker.io/library/python:3":                              "hub:5",
		"docker://index.docker.io/python":                                  "hub:5",
		"docker://registry-1.docker.io/python":                             "hub:5",
		"old.example/anything":                                             "old:6",
		"only.example/path/a":                                              "part:7",
		"url.example:5000/x":                                               "url:9",
		"url.example:5001/x":                                               "url:10",
		"upper.example/x/y":                                                "case:8",
		"only.example/other":                                               "",
		"docker://other.example/x":                                         "",
		"":                                                                 "",
	} {
		user, password, ok := c.For(ref)
		got := ""
		if ok {
			got = user + ":" + password
		}
		if got != want {
			t.Errorf("%s: %q, want %q", ref, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ raw, want string }{
		"nothing":            {"", "is not a JSON object"},
		"a bare secret":      {`"hunter2"`, "is not a JSON object"},
		"no auths":           {`{}`, `member "auths": missing`},
		"helpers":            {`{"auths":{},"credHelpers":{}}`, `member "credHelpers": unknown`},
		"a store":            {`{"auths":{},"credsStore":"x"}`, `member "credsStore": unknown`},
		"auths twice":        {`{"auths":{},"auths":{}}`, "twice"},
		"a registry twice":   {`{"auths":{"a":{"auth":"YTpi"},"a":{"auth":"YTpi"}}}`, "twice"},
		"bytes behind":       {`{"auths":{}}x`, "bytes after its end"},
		"a list":             {`{"auths":[]}`, "auths: is not an object"},
		"no auth":            {`{"auths":{"a":{}}}`, "auth is missing"},
		"a token":            {`{"auths":{"a":{"auth":"YTpi","identitytoken":"hunter2"}}}`, `"identitytoken" is not supported`},
		"a password":         {`{"auths":{"a":{"username":"a","password":"hunter2"}}}`, "is not supported"},
		"a number":           {`{"auths":{"a":{"auth":7}}}`, "auth is missing or no string"},
		"not base64":         {`{"auths":{"a":{"auth":"hunter2!"}}}`, "not standard base64"},
		"no padding":         {`{"auths":{"a":{"auth":"YTpiYw"}}}`, "not standard base64"},
		"no colon":           {`{"auths":{"a":{"auth":"` + auth("hunter2") + `"}}}`, "not user:password"},
		"no user":            {`{"auths":{"a":{"auth":"` + auth(":hunter2") + `"}}}`, "not user:password"},
		"two of one meaning": {string(file("docker.io", "a:b", "https://index.docker.io/v1/", "a:hunter2")), "another entry has different credentials for index.docker.io"},
		"two in two cases":   {string(file("r.example/x", "a:b", "R.example/x", "a:hunter2")), "another entry has different credentials for r.example/x"},
		"over the bound":     {`{"auths":{}}` + strings.Repeat(" ", MaxSize), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.raw))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v: quotes a secret", err)
			}
		})
	}
	if _, err := Parse(file("docker.io", "a:b", "https://index.docker.io/v1/", "a:b")); err != nil {
		t.Errorf("the same credentials under two names: %v", err)
	}
}

func TestCredentialsAreSecret(t *testing.T) {
	c, err := Parse(file("r.example", "user:hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "c", c)
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%#v %+v %s", c, c, c), string(j), log.String()} {
		if !strings.Contains(s, "[secret]") || strings.Contains(s, "104") {
			t.Errorf("%s", s)
		}
	}
	one := c.exact["r.example"]
	c.Zero()
	if _, _, ok := c.For("r.example/x"); ok || strings.Trim(string(one.password), "\x00") != "" {
		t.Error("Zero left something")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(file("r.example/team", "user:pass\n", "https://index.docker.io/v1/", "a:b:c"))
	f.Add([]byte(`{"auths":{"a":{"auth":"YTpi"},"":{"auth":"YTo="}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		for key, one := range c.exact {
			if len(one.user) == 0 {
				t.Fatalf("%q: no user", key)
			}
			if user, _, ok := c.For(key); ok && user == "" {
				t.Fatalf("%q: no user", key)
			}
		}
	})
}
