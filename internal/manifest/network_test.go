package manifest

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestEgressIsRead(t *testing.T) {
	written := []string{"api.example:443", "api.example:8443", "_dns.db-1.internal:5432", "db:1", "192.0.2.7:443", "192.0.2.0/24:80", "[2001:db8::7]:443", "[2001:db8::/32]:65535",
		"169.254.169.254:80", "0.0.0.0/0:443", "[::/0]:443"}
	m, err := Parse([]byte(own(`,"network":{"egress":["`+strings.Join(written, `","`)+`"]}`)), nil)
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix
	want := []Egress{
		{Name: "api.example", Port: 443}, {Name: "api.example", Port: 8443}, {Name: "_dns.db-1.internal", Port: 5432}, {Name: "db", Port: 1},
		{Prefix: prefix("192.0.2.7/32"), Port: 443}, {Prefix: prefix("192.0.2.0/24"), Port: 80},
		{Prefix: prefix("2001:db8::7/128"), Port: 443}, {Prefix: prefix("2001:db8::/32"), Port: 65535},
		{Prefix: prefix("169.254.169.254/32"), Port: 80}, {Prefix: prefix("0.0.0.0/0"), Port: 443}, {Prefix: prefix("::/0"), Port: 443},
	}
	if !slices.Equal(m.Egress, want) {
		t.Errorf("%+v, want %+v", m.Egress, want)
	}
	for i, e := range m.Egress {
		if e.String() != written[i] {
			t.Errorf("%s is written %s", written[i], e)
		}
	}
	for _, network := range []string{``, `,"network":"none"`} {
		if m, err := Parse([]byte(own(network)), nil); err != nil || m.Egress != nil {
			t.Errorf("%s: %v, %v", network, m.Egress, err)
		}
	}
}

func TestEgressThatIsRefused(t *testing.T) {
	for rule, want := range map[string]string{
		"":                                       "has no port",
		"api.example":                            "has no port",
		"api.example:":                           `port ""`,
		"api.example:0":                          `port "0"`,
		"api.example:65536":                      `port "65536"`,
		"api.example:0443":                       `port "0443"`,
		"api.example:+443":                       `port "+443"`,
		"api.example:*":                          `port "*"`,
		"api.example:80-90":                      `port "80-90"`,
		"api.example:https":                      `port "https"`,
		":443":                                   "want a name, an address",
		"*.example:443":                          "names have no wildcards",
		"*:443":                                  "names have no wildcards",
		"Api.example:443":                        `in lower case, "api.example"`,
		"api.example.:443":                       "want a name, an address",
		"api..example:443":                       "want a name, an address",
		"-a.example:443":                         "want a name, an address",
		"a-.example:443":                         "want a name, an address",
		"bücher.example:443":                     "want a name, an address",
		"https://a.example:443":                  "neither an address nor a prefix",
		"a.example/x:443":                        "neither an address nor a prefix",
		"u@a.example:443":                        "want a name, an address",
		" a.example:443":                         "want a name, an address",
		"a.example:443\n":                        "port",
		"127.1:443":                              "the last part of one begins with a letter",
		"2130706433:443":                         "the last part of one begins with a letter",
		"0x7f.0.0.1:443":                         "the last part of one begins with a letter",
		"1.2.3.4.5:443":                          "the last part of one begins with a letter",
		"010.0.0.1:443":                          "the last part of one begins with a letter",
		"localhost:443":                          "is the sandbox itself",
		"db.localhost:443":                       "is the sandbox itself",
		"[api.example]:443":                      "neither an address nor a prefix",
		"[192.0.2.7]:443":                        "IPv6 stands in brackets, and nothing else",
		"2001:db8::7:443":                        "IPv6 stands in brackets",
		"[2001:db8::7:443":                       "not closed",
		"[2001:db8::7]":                          "has no port",
		"[2001:DB8::7]:443":                      "want it written as [2001:db8::7]:443",
		"[2001:db8:0:0::7]:443":                  "want it written as [2001:db8::7]:443",
		"[fe80::1%eth0]:443":                     "has a zone",
		"192.0.2.7/24:443":                       "want 192.0.2.0/24:443",
		"192.0.2.7/32:443":                       "want it written as 192.0.2.7:443",
		"192.0.2.0/33:443":                       "neither an address nor a prefix",
		"127.0.0.1:8006":                         "are never reached",
		"127.0.0.0/8:80":                         "are never reached",
		"0.0.0.0:80":                             "are never reached",
		"255.255.255.255:80":                     "are never reached",
		"224.0.0.251:80":                         "are never reached",
		"[::1]:80":                               "are never reached",
		"[::]:80":                                "are never reached",
		"[ff02::1]:80":                           "are never reached",
		"[::ffff:127.0.0.1]:80":                  "are never reached",
		"[::ffff:192.0.2.7]:443":                 "are never reached",
		strings.Repeat("a", 64) + ".example:443": "want a name, an address",
		strings.Repeat("a.", 130) + "example:443":         "a name of 267 characters",
		"a.example:443\",\"a.example:443":                 "a.example:443: is there twice",
		"a1.example:443" + strings.Repeat(`","b.c:1`, 64): "has 65, at most 64",
	} {
		raw := own(`,"network":{"egress":["` + strings.ReplaceAll(rule, "\n", `\n`) + `"]}`)
		if m, err := Parse([]byte(raw), nil); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "network.") {
			t.Errorf("%q: %v, %v; want %q", rule, m, err, want)
		}
	}
	for network, want := range map[string]string{
		`{}`:                         "network.egress: names nothing to reach",
		`{"egress":[]}`:              "network.egress: names nothing to reach",
		`{"egress":"a.example:443"}`: "network.egress: is a string, want a list",
		`{"egress":[443]}`:           "network.egress[0]: is a number, want a string",
		`{"egress":null}`:            "network.egress: is null",
		`{"egress":["a.example:443"],"ingress":[]}`: "network.ingress: is an unknown key",
		`true`: "network: is true or false",
		`""`:   `network: "": want none`,
	} {
		if _, err := Parse([]byte(own(`,"network":`+network)), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", network, err, want)
		}
	}
}

// The example of the documentation is as strict as can be.
func TestExampleOfEgressParses(t *testing.T) {
	b, err := os.ReadFile("../../docs/WORKLOADS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n## Network\n")
	_, example, _ := strings.Cut(section, "```json\n")
	example, _, _ = strings.Cut(example, "```")
	if m, err := Parse([]byte(example), nil); err != nil || len(m.Egress) != 4 {
		t.Errorf("%+v, %v", m, err)
	}
}
