package manifest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxEgress is how many places a workload may be let out to.
const maxEgress = 64

// Egress is a place that the workload may open TCP connections to: one name or some addresses, and one port.
type Egress struct {
	Name   string       // a DNS name in lower case, without a dot at the end; empty: Prefix
	Prefix netip.Prefix // one address is a prefix of all its bits
	Port   uint16
}

// String is the rule as a manifest writes it.
func (e Egress) String() string {
	host := e.Name
	switch {
	case host != "":
	case e.Prefix.IsSingleIP() && e.Prefix.Addr().Is6():
		host = "[" + e.Prefix.Addr().String() + "]"
	case e.Prefix.IsSingleIP():
		host = e.Prefix.Addr().String()
	case e.Prefix.Addr().Is6():
		host = "[" + e.Prefix.String() + "]"
	default:
		host = e.Prefix.String()
	}
	return host + ":" + strconv.Itoa(int(e.Port))
}

// network reads "none" or {"egress": […]}.
func (r *reader) network(o *object, m *Manifest) {
	n := o.member("network")
	switch {
	case n == nil:
		return
	case n.kind == '"':
		if n.text != defaultNetwork {
			r.problem(n.path, `%.80q: want none, or {"egress": ["host:port"]}`, n.text)
		}
		return
	case n.kind != '{':
		r.problem(n.path, `is %v; want "none", or {"egress": ["host:port"]}`, n)
		return
	}
	e := r.object(n)
	list := e.list("egress")
	switch {
	case e.has("egress") && e.members["egress"].kind != '[':
	case len(list) == 0:
		r.problem(e.path("egress"), `names nothing to reach; want "host:port", or "network": "none"`)
	case len(list) > maxEgress:
		r.problem(e.path("egress"), "has %d, at most %d", len(list), maxEgress)
		list = nil
	}
	for _, n := range list {
		if n.kind != '"' {
			r.problem(n.path, "is %v, want a string", n)
			continue
		}
		rule, err := parseEgress(n.text)
		switch {
		case err != nil:
			r.problem(n.path, "%.300q: %v", n.text, err)
		case slices.Contains(m.Egress, rule):
			r.problem(n.path, "%s: is there twice", rule)
		default:
			m.Egress = append(m.Egress, rule)
		}
	}
	e.done()
}

// noPlace are addresses that are this machine, nobody or many.
var noPlace = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("::ffff:0:0/96"),
}

// parseEgress reads NAME:PORT, ADDRESS:PORT or PREFIX:PORT, IPv6 in brackets: each rule has one spelling.
func parseEgress(s string) (e Egress, err error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return e, errors.New("has no port; want host:port")
	}
	host, port := s[:i], s[i+1:]
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return e, fmt.Errorf("port %.20q: want one from 1 to 65535", port)
	}
	e.Port = uint16(n)
	v6, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		if host, bracketed = strings.CutSuffix(v6, "]"); !bracketed {
			return e, errors.New("has a bracket that is not closed")
		}
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() != "" {
		return e, errors.New("has a zone, which means something on one machine only")
	} else if err == nil {
		e.Prefix = netip.PrefixFrom(a, a.BitLen())
	} else if bracketed || strings.Contains(host, "/") {
		if e.Prefix, err = netip.ParsePrefix(host); err != nil {
			return e, errors.New("is neither an address nor a prefix of addresses, as in 192.0.2.0/24:443 and [2001:db8::/32]:443")
		}
	} else {
		e.Name = host
		return e, checkName(host)
	}
	switch {
	case e.Prefix.Addr().Is6() != bracketed:
		return e, errors.New("IPv6 stands in brackets, and nothing else does")
	case e.Prefix.Masked() != e.Prefix:
		return e, fmt.Errorf("has bits beyond its length; want %s", Egress{Prefix: e.Prefix.Masked(), Port: e.Port})
	case e.String() != s:
		return e, fmt.Errorf("want it written as %s", e)
	}
	for _, p := range noPlace {
		if p.Contains(e.Prefix.Addr()) && p.Bits() <= e.Prefix.Bits() {
			return e, fmt.Errorf("%s are addresses of the machine itself, of nobody or of many, and are never reached", p)
		}
	}
	return e, nil
}

// checkName judges a DNS name (RFC 1123 §2.1, and _ as service names have it). A last part that begins with a letter cannot be
// taken for an address, whatever a program takes for one.
func checkName(s string) error {
	if strings.ToLower(s) != s {
		return fmt.Errorf("want it in lower case, %.253q", strings.ToLower(s))
	}
	if len(s) > 253 {
		return fmt.Errorf("a name of %d characters, at most 253", len(s))
	}
	if strings.Contains(s, "*") {
		return errors.New("names have no wildcards: say each")
	}
	last := ""
	for last = range strings.SplitSeq(s, ".") {
		if len(last) > 63 || !word(last, lower+digits+"_", "-") {
			return errors.New("want a name, an address, or a prefix of addresses, and a port")
		}
	}
	if !strings.Contains(lower, last[:1]) {
		return errors.New("is no address, and no name: the last part of one begins with a letter")
	}
	if last == "localhost" {
		return errors.New("is the sandbox itself, which needs no rule")
	}
	return nil
}
