package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// errRefused is why dial opens nothing where no rule allows it.
var errRefused = errors.New("not in the manifest's network.egress")

// Addresses that no rule reaches: the machine itself, nobody, or many.
var never = prefixes("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/127", "ff00::/8")

// Addresses that only a rule reaches which is about them and no others: a name does not lead there, nor does 0.0.0.0/0. They are
// link-local ones and the metadata services of clouds, which give away the machine's credentials, and IPv6 addresses that stand for
// IPv4 ones.
var guarded = prefixes("169.254.0.0/16", "fe80::/10", "fec0::/10", "192.0.0.0/24", "168.63.129.16/32", "100.100.100.200/32",
	"fd00:ec2::254/128", "fd20:ce::254/128", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")

func prefixes(all ...string) (p []netip.Prefix) {
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func within(all []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return all[i], true
}

// listed finds the rule that lists an address itself, -1 if there is none.
func (g *Gate) listed(a netip.Addr, port uint16) int {
	special, isSpecial := within(guarded, a)
	return slices.IndexFunc(g.rules, func(r Rule) bool {
		return r.Name == "" && r.Port == port && r.Prefix.Contains(a) &&
			(!isSpecial || special.Contains(r.Prefix.Addr()) && special.Bits() <= r.Prefix.Bits())
	})
}

// ordinary tells whether a name may lead to an address.
func ordinary(a netip.Addr) bool {
	_, special := within(guarded, a)
	return !special
}

// maxAddresses of a name are tried.
const maxAddresses = 8

// dial connects to host, an address or a name, as the rules allow. What was checked is what is dialled: a name is looked up once, by
// this machine, and its addresses are what counts. The rule's index is -1 with errRefused.
func (g *Gate) dial(ctx context.Context, host string, port uint16) (net.Conn, int, error) {
	ctx, cancel := context.WithTimeout(ctx, g.limits.dial)
	defer cancel()
	if a, err := netip.ParseAddr(host); err == nil {
		a = a.Unmap()
		rule := g.listed(a, port)
		if rule < 0 || a.Zone() != "" {
			return nil, -1, errRefused
		}
		c, err := g.dialAny(ctx, []netip.Addr{a}, port)
		return c, rule, err
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	rule := slices.IndexFunc(g.rules, func(r Rule) bool { return r.Name != "" && r.Name == name && r.Port == port })
	if rule < 0 {
		return nil, -1, errRefused
	}
	found, err := g.outside.Lookup(ctx, name+".")
	if err != nil {
		return nil, rule, err
	}
	var may []netip.Addr
	for _, a := range found {
		a = a.Unmap().WithZone("")
		if len(may) < maxAddresses && (ordinary(a) || g.listed(a, port) >= 0) {
			may = append(may, a)
		}
	}
	if len(may) == 0 {
		return nil, rule, fmt.Errorf("%s leads to %v, which are addresses that a name must not lead to: %w", name, found[:min(len(found), maxAddresses)], errRefused)
	}
	c, err := g.dialAny(ctx, may, port)
	return c, rule, err
}

// dialAny tries addresses in turn. None may be one that is never reached, however it was come by.
func (g *Gate) dialAny(ctx context.Context, all []netip.Addr, port uint16) (net.Conn, error) {
	own, err := g.outside.Own()
	if err != nil {
		return nil, err
	}
	var errs []error
	for i, a := range all {
		if _, bad := within(never, a); bad || slices.Contains(own, a) {
			errs = append(errs, fmt.Errorf("%s is this machine, nobody or many: %w", a, errRefused))
			continue
		}
		end, _ := ctx.Deadline()
		one, cancel := context.WithTimeout(ctx, time.Until(end)/time.Duration(len(all)-i)) // one that is silent leaves time for the others
		c, err := g.outside.Dial(one, netip.AddrPortFrom(a, port))
		cancel()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
