package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is an outside that answers as a test says and counts what it was asked.
type world struct {
	names  map[string][]string // with the dot
	own    []string
	ownErr error
	down   []string // addresses that do not answer
	looked []string
	dialed []string
}

func (w *world) outside() Outside {
	return Outside{
		Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			w.looked = append(w.looked, name)
			found, ok := w.names[name]
			if !ok {
				return nil, errors.New("no such host")
			}
			return addrs(found), nil
		},
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			w.dialed = append(w.dialed, to.String())
			if _, bounded := ctx.Deadline(); !bounded {
				return nil, errors.New("there is no deadline")
			}
			if slices.Contains(w.down, to.Addr().String()) {
				return nil, errors.New("connection refused")
			}
			c, _ := net.Pipe()
			return c, nil
		},
		Own: func() ([]netip.Addr, error) { return addrs(w.own), w.ownErr },
	}
}

func addrs(all []string) (a []netip.Addr) {
	for _, s := range all {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

// rule reads what a test writes: name, address or prefix, and a port.
func rule(s string) Rule {
	i := strings.LastIndexByte(s, ':')
	var r Rule
	fmt.Sscan(s[i+1:], &r.Port)
	host := strings.Trim(s[:i], "[]")
	if p, err := netip.ParsePrefix(host); err == nil {
		r.Prefix = p
	} else if a, err := netip.ParseAddr(host); err == nil {
		r.Prefix = netip.PrefixFrom(a, a.BitLen())
	} else {
		r.Name = host
	}
	return r
}

func rules(all ...string) (r []Rule) {
	for _, s := range all {
		r = append(r, rule(s))
	}
	return r
}

func TestWhereConnectionsGo(t *testing.T) {
	names := map[string][]string{
		"api.example.": {"192.0.2.1", "2001:db8::1"}, "mapped.example.": {"::ffff:192.0.2.1"},
		"loop.example.": {"127.0.0.1"}, "loop6.example.": {"::1"}, "mappedloop.example.": {"::ffff:127.0.0.1"}, "zero.example.": {"0.0.0.0"}, "none.example.": {"::"},
		"many.example.": {"224.0.0.1"}, "many6.example.": {"ff02::1"}, "all.example.": {"255.255.255.255"},
		"meta.example.": {"169.254.169.254"}, "mappedmeta.example.": {"::ffff:169.254.169.254"}, "azure.example.": {"168.63.129.16"}, "alibaba.example.": {"100.100.100.200"},
		"aws6.example.": {"fd00:ec2::254"}, "link.example.": {"fe80::1"}, "nat64.example.": {"64:ff9b::a9fe:a9fe"}, "6to4.example.": {"2002:a9fe:a9fe::1"},
		"own.example.": {"10.0.0.5"}, "mixed.example.": {"127.0.0.1", "169.254.169.254", "10.0.0.5", "192.0.2.1"}, "private.example.": {"10.0.0.9"}, "nowhere.example.": {},
		"second.example.": {"192.0.2.99", "192.0.2.1"},
		"flood.example.":  slices.Repeat([]string{"192.0.2.99"}, 100),
	}
	all := rules("192.0.2.7:443", "192.0.2.64/26:80", "[2001:db8::/32]:443", "0.0.0.0/0:8443", "[::/0]:8443", "10.0.0.0/8:22", "169.254.169.254:80", "169.254.0.0/17:81", "168.0.0.0/5:82")
	for name := range names {
		all = append(all, Rule{Name: strings.TrimSuffix(name, "."), Port: 443})
	}
	all = append(all, rules("meta.example:80")...)
	for target, want := range map[string]string{ // "": refused
		// Names.
		"api.example:443":     "192.0.2.1:443",
		"API.Example.:443":    "192.0.2.1:443",
		"api.example:80":      "",
		"api.example..:443":   "",
		"example:443":         "",
		"www.api.example:443": "",
		"private.example:443": "10.0.0.9:443",
		"mapped.example:443":  "192.0.2.1:443",
		"mixed.example:443":   "192.0.2.1:443",
		"second.example:443":  "192.0.2.1:443",
		"localhost:443":       "",
		// Names that lead where they must not.
		"loop.example:443": "", "loop6.example:443": "", "mappedloop.example:443": "", "zero.example:443": "", "none.example:443": "", "many.example:443": "", "many6.example:443": "",
		"all.example:443": "", "meta.example:443": "", "mappedmeta.example:443": "", "azure.example:443": "", "alibaba.example:443": "", "aws6.example:443": "", "link.example:443": "",
		"nat64.example:443": "", "6to4.example:443": "", "own.example:443": "", "nowhere.example:443": "",
		// Addresses.
		"192.0.2.7:443":          "192.0.2.7:443",
		"192.0.2.7:80":           "",
		"192.0.2.8:443":          "",
		"192.0.2.63:80":          "",
		"192.0.2.64:80":          "192.0.2.64:80",
		"192.0.2.127:80":         "192.0.2.127:80",
		"192.0.2.128:80":         "",
		"2001:db8:1::1:443":      "[2001:db8:1::1]:443",
		"2001:db9::1:443":        "",
		"::ffff:192.0.2.7:443":   "192.0.2.7:443",
		"198.51.100.1:8443":      "198.51.100.1:8443",
		"10.0.0.6:22":            "10.0.0.6:22",
		"10.0.0.5:22":            "", // the machine's own
		"::ffff:10.0.0.5:22":     "",
		"fe80::1%eth0:8443":      "",
		"2001:db8::1%x:443":      "",
		"127.0.0.1:8443":         "",
		"::1:8443":               "",
		"0.0.0.0:8443":           "",
		"224.0.0.1:8443":         "",
		"169.254.169.254:8443":   "", // 0.0.0.0/0 is not about it
		"169.254.1.1:8443":       "",
		"fe80::1:8443":           "",
		"64:ff9b::7f00:1:8443":   "",
		"2002:7f00:1::1:8443":    "",
		"100.100.100.200:8443":   "",
		"168.63.129.16:82":       "",
		"168.63.129.17:82":       "168.63.129.17:82",
		"::ffff:169.254.1.1:82":  "",
		"169.254.169.254:80":     "169.254.169.254:80",
		"169.254.1.1:80":         "",
		"169.254.1.1:81":         "169.254.1.1:81",
		"169.254.200.1:81":       "",
		"meta.example:80":        "169.254.169.254:80", // the address is listed as well
		"0x7f000001:8443":        "",
		"2130706433:8443":        "",
		"127.1:8443":             "",
		"api.example\x00.x:443":  "",
		"api.example@x:443":      "",
		"nowhere.example:65535":  "",
		"192.0.2.7/32:443":       "",
		"[192.0.2.7]:443":        "",
		"flood.example\n:443":    "",
		"":                       "",
		" api.example:443":       "",
		"api.example :443":       "",
		"ａｐｉ.example:443":        "",
		"api.example\u3002:443":  "",
		"api\u00adexample:443":   "",
		"api.example.evil.x:443": "",
	} {
		w := &world{names: names, own: []string{"127.0.0.1", "10.0.0.5"}, down: []string{"192.0.2.99"}}
		var port uint16
		i := strings.LastIndexByte(target, ':')
		fmt.Sscan(target[i+1:], &port)
		c, at, err := New(all, w.outside()).dial(t.Context(), target[:max(i, 0)], port)
		got := ""
		if err == nil {
			c.Close()
			got = w.dialed[len(w.dialed)-1]
		} else if !errors.Is(err, errRefused) {
			t.Errorf("%q: %v", target, err)
		}
		if got != want {
			t.Errorf("%q goes to %q (%v), want %q", target, got, err, want)
		}
		if want == "" && len(w.dialed) > 0 {
			t.Errorf("%q: dialed %q", target, w.dialed)
		}
		if at < 0 && len(w.looked) > 0 {
			t.Errorf("%q: looked up %q, and no rule lists it", target, w.looked)
		}
	}
}

// A name is looked up once for each connection, and what was checked is what is dialled: the answer changes with each question.
func TestNoRebinding(t *testing.T) {
	w := &world{names: map[string][]string{"a.example.": {"192.0.2.1"}}}
	o := w.outside()
	inner := o.Lookup
	o.Lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
		found, err := inner(ctx, name)
		w.names[name] = []string{"127.0.0.1"}
		return found, err
	}
	g := New(rules("a.example:443"), o)
	if _, _, err := g.dial(t.Context(), "a.example", 443); err != nil || !slices.Equal(w.dialed, []string{"192.0.2.1:443"}) || len(w.looked) != 1 {
		t.Errorf("%v: dialed %q, looked up %q", err, w.dialed, w.looked)
	}
	if _, _, err := g.dial(t.Context(), "a.example", 443); !errors.Is(err, errRefused) || len(w.dialed) != 1 {
		t.Errorf("%v: dialed %q", err, w.dialed)
	}
}

// The first of a name's addresses is silent.
func TestASilentAddressLeavesTimeForTheNext(t *testing.T) {
	w := &world{names: map[string][]string{"a.example.": {"192.0.2.1", "192.0.2.2"}}}
	o := w.outside()
	inner := o.Dial
	o.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		if to.Addr() == netip.MustParseAddr("192.0.2.1") {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return inner(ctx, to)
	}
	l := defaults
	l.dial = 200 * time.Millisecond
	if c, _, err := newGate(rules("a.example:443"), o, l).dial(t.Context(), "a.example", 443); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

func TestFailuresOutside(t *testing.T) {
	w := &world{names: map[string][]string{"down.example.": {"192.0.2.99"}, "flood.example.": slices.Repeat([]string{"192.0.2.99"}, 100)}, down: []string{"192.0.2.99"}}
	g := New(rules("down.example:443", "gone.example:443", "flood.example:443"), w.outside())
	for name, want := range map[string]string{"down.example": "connection refused", "gone.example": "no such host", "flood.example": "connection refused"} {
		w.dialed = nil
		if _, i, err := g.dial(t.Context(), name, 443); err == nil || errors.Is(err, errRefused) || i < 0 || !strings.Contains(err.Error(), want) || len(w.dialed) > maxAddresses {
			t.Errorf("%s: rule %d, %v, %d tries; want %q", name, i, err, len(w.dialed), want)
		}
	}
	w.ownErr = errors.New("no list of addresses")
	if _, _, err := g.dial(t.Context(), "down.example", 443); !errors.Is(err, w.ownErr) {
		t.Errorf("%v: without the machine's own addresses nothing is dialled", err)
	}
}

func TestOwnAddresses(t *testing.T) {
	own, err := Internet.Own()
	if err != nil || !slices.Contains(own, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("%v, %v", own, err)
	}
}
