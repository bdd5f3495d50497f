// Package egress lets a workload out of its sandbox to where the manifest says, and nowhere else.
//
// The sandbox has a network of its own with nothing in it but loopback. There PID 1 listens: at a loopback address for each name
// that a rule lists, which /etc/hosts in the sandbox gives for it; at each IPv4 address that a rule lists, which is the sandbox's own; and
// as a proxy, for the rest and for programs that want one. What is allowed is carried over a connection that PID 1 opens itself. So no packet of the workload's ever leaves
// its network, no kernel code decides which may, and names are looked up outside, only those that are listed.
//
// The workload is not trusted, and neither are the answers of DNS. Connections, heads of requests and times are bounded, and a panic
// ends one connection.
package egress

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy is where the sandbox finds the proxy: HTTP (RFC 9110 §9.3.6, §7.2) and SOCKS 5 (RFC 1928) at the same port.
const Proxy = "127.0.0.1:3128"

// A Rule is a place to which connections may go. manifest.Egress has the same fields.
type Rule struct {
	Name   string       // a DNS name in lower case, without a dot at the end; empty: Prefix
	Prefix netip.Prefix // one address is a prefix of all its bits
	Port   uint16
}

// An Outside is the network that rules lead to, as functions, so that a test can be the outside.
type Outside struct {
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error) // of a name that ends in a dot: no search list applies
	Dial   func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	Own    func() ([]netip.Addr, error) // the machine's own addresses, to which nothing goes
}

// Internet is the network of this machine, with the name servers of /etc/resolv.conf.
var Internet = Outside{
	Lookup: func(ctx context.Context, name string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	},
	Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", to.String())
	},
	Own: func() ([]netip.Addr, error) {
		all, err := net.InterfaceAddrs()
		var own []netip.Addr
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				own = append(own, p.Addr().Unmap())
			}
		}
		return own, err
	},
}

// limits are what one workload can take of PID 1.
type limits struct {
	conns     int           // at once; one more is closed
	handshake time.Duration // from a connection to the proxy until it has said where to
	dial      time.Duration // for the name and all its addresses
	idle      time.Duration // without a byte in either direction
}

var defaults = limits{conns: 128, handshake: 10 * time.Second, dial: 30 * time.Second, idle: 15 * time.Minute}

// A Gate is the way out of one sandbox.
type Gate struct {
	rules   []Rule
	names   []string // of rules, in their order; each has an address
	outside Outside
	limits  limits
	slots   chan struct{}
	used    []usage // as rules

	mu      sync.Mutex
	refused int64
	first   []string // of what was refused, each once
}

type usage struct {
	conns, failed, sent, received atomic.Int64
	why                           atomic.Pointer[string] // the last failed
}

// New makes a gate for rules that package manifest has checked.
func New(rules []Rule, o Outside) *Gate { return newGate(rules, o, defaults) }

func newGate(rules []Rule, o Outside, l limits) *Gate {
	g := &Gate{rules: rules, outside: o, limits: l, slots: make(chan struct{}, l.conns), used: make([]usage, len(rules))}
	for _, r := range rules {
		if r.Name != "" && !slices.Contains(g.names, r.Name) {
			g.names = append(g.names, r.Name)
		}
	}
	return g
}

// address is what stands for a name inside of the sandbox. A program that listens at 127.0.0.1 is not in its way.
func (g *Gate) address(name string) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 69, 0, byte(1 + slices.Index(g.names, name))})
}

// Addresses are what to listen at: for Serve to answer.
func (g *Gate) Addresses() []string {
	all := []string{Proxy}
	for _, r := range g.rules {
		if at, ok := g.door(r); ok {
			all = append(all, at.String())
		}
	}
	return all
}

// door is where a program meets a rule that is one place.
func (g *Gate) door(r Rule) (at netip.AddrPort, ok bool) {
	switch {
	case r.Name != "":
		return netip.AddrPortFrom(g.address(r.Name), r.Port), true
	case r.Prefix.IsSingleIP() && r.Prefix.Addr().Is4():
		return netip.AddrPortFrom(r.Prefix.Addr(), r.Port), true
	}
	return netip.AddrPort{}, false
}

// Hosts is the sandbox's /etc/hosts.
func (g *Gate) Hosts() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, name := range g.names {
		fmt.Fprintf(&b, "%s %s\n", g.address(name), name)
	}
	return b.String()
}

// Environment is how programs are told of a proxy; it goes both ways, since they look for either. ALL_PROXY is no SOCKS URL, for
// many a program cannot start with one.
func Environment() map[string]string {
	env := map[string]string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		env[name] = "http://" + Proxy
	}
	env["NO_PROXY"] = "localhost,127.0.0.1,::1"
	for name, v := range env {
		env[strings.ToLower(name)] = v
	}
	return env
}

// Usage says what went through a rule.
type Usage struct {
	Rule           string // as the manifest writes it
	Conns, Failed  int64  // connections; those that could not be made
	Sent, Received int64  // bytes, as the workload sees it
	Why            string // the last that failed did
}

// Report says what went through each rule, how much was refused, and the first few different places of that, which are the
// workload's own words.
func (g *Gate) Report() (used []Usage, refused int64, first []string) {
	for i, r := range g.rules {
		u := &g.used[i]
		why := ""
		if p := u.why.Load(); p != nil {
			why = *p
		}
		used = append(used, Usage{r.String(), u.conns.Load(), u.failed.Load(), u.sent.Load(), u.received.Load(), why})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return used, g.refused, slices.Clone(g.first)
}

// maxFirst bounds what a workload can write into the report: so many places of at most so many bytes.
const (
	maxFirst = 16
	maxPlace = 300
)

func (g *Gate) refuse(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused++
	what = what[:min(len(what), maxPlace)]
	if len(g.first) < maxFirst && !slices.Contains(g.first, what) {
		g.first = append(g.first, what)
	}
}

func (r Rule) String() string {
	host := r.Name
	if host == "" {
		host = r.Prefix.String()
		if r.Prefix.IsSingleIP() {
			host = r.Prefix.Addr().String()
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(int(r.Port)))
}
