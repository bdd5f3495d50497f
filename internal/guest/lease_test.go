package guest

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// ack is an acknowledgement that parseLease takes, changed by mods.
func ack(t testing.TB, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	a, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithReply(&dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest}),
		dhcpv4.WithYourIP(net.IPv4(10, 0, 2, 15)),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithRouter(net.IPv4(10, 0, 2, 2)),
		dhcpv4.WithDNS(net.IPv4(10, 0, 2, 3)),
	}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	// What is judged is what comes off the wire.
	if a, err = dhcpv4.FromBytes(a.ToBytes()); err != nil {
		t.Fatal(err)
	}
	return a
}

func without(o dhcpv4.OptionCode) dhcpv4.Modifier {
	return func(d *dhcpv4.DHCPv4) { d.Options.Del(o) }
}

func mtu(b ...byte) dhcpv4.Modifier { return dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, b) }

func TestLease(t *testing.T) {
	usual := lease{
		addr:   netip.MustParsePrefix("10.0.2.15/24"),
		router: netip.MustParseAddr("10.0.2.2"),
		dns:    []netip.Addr{netip.MustParseAddr("10.0.2.3")},
	}
	with := func(f func(*lease)) lease {
		l := usual
		f(&l)
		return l
	}
	a := netip.MustParseAddr
	for _, tc := range []struct {
		name string
		mod  dhcpv4.Modifier
		want lease
		err  string
	}{
		{"as QEMU gives it", nil, usual, ""},
		{"as Google gives it: /32 and a router beside it", dhcpv4.WithNetmask(net.CIDRMask(32, 32)),
			with(func(l *lease) { l.addr = netip.MustParsePrefix("10.0.2.15/32") }), ""},
		{"no router", without(dhcpv4.OptionRouter), with(func(l *lease) { l.router = netip.Addr{} }), ""},
		{"no DNS", without(dhcpv4.OptionDomainNameServer), with(func(l *lease) { l.dns = nil }), ""},
		{"the fourth DNS server is not looked at", dhcpv4.WithDNS(net.IPv4(1, 1, 1, 1), net.IPv4(2, 2, 2, 2), net.IPv4(3, 3, 3, 3), net.IPv4(127, 0, 0, 1)),
			with(func(l *lease) { l.dns = []netip.Addr{a("1.1.1.1"), a("2.2.2.2"), a("3.3.3.3")} }), ""},
		{"MTU of a jumbo network", mtu(0x23, 0x29), with(func(l *lease) { l.mtu = 9001 }), ""},
		{"smallest MTU", mtu(0x02, 0x40), with(func(l *lease) { l.mtu = 576 }), ""},
		{"MTU too small is ignored", mtu(0x02, 0x3f), usual, ""},
		{"MTU of three bytes is ignored", mtu(0x05, 0xdc, 0), usual, ""},
		{"static routes are ignored", dhcpv4.WithGeneric(dhcpv4.OptionClasslessStaticRoute, []byte{0, 10, 0, 2, 9}), usual, ""},

		{"no address", dhcpv4.WithYourIP(net.IPv4zero), lease{}, "address 0.0.0.0"},
		{"loopback address", dhcpv4.WithYourIP(net.IPv4(127, 0, 0, 9)), lease{}, "address 127.0.0.9"},
		{"multicast address", dhcpv4.WithYourIP(net.IPv4(224, 0, 0, 1)), lease{}, "address 224.0.0.1"},
		{"network address", dhcpv4.WithYourIP(net.IPv4(10, 0, 2, 0)), lease{}, "network or broadcast"},
		{"broadcast address", dhcpv4.WithYourIP(net.IPv4(10, 0, 2, 255)), lease{}, "network or broadcast"},
		{"no mask", without(dhcpv4.OptionSubnetMask), lease{}, "subnet mask"},
		{"mask with a hole", dhcpv4.WithNetmask(net.IPMask{255, 0, 255, 0}), lease{}, "subnet mask"},
		{"mask that makes the world local", dhcpv4.WithNetmask(net.CIDRMask(0, 32)), lease{}, "subnet mask"},
		{"router is loopback", dhcpv4.WithRouter(net.IPv4(127, 0, 0, 1)), lease{}, "router 127.0.0.1"},
		{"router is this machine", dhcpv4.WithRouter(net.IPv4(10, 0, 2, 15)), lease{}, "router 10.0.2.15"},
		{"DNS server is loopback", dhcpv4.WithDNS(net.IPv4(127, 0, 0, 1)), lease{}, "DNS server 127.0.0.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mods := []dhcpv4.Modifier{}
			if tc.mod != nil {
				mods = append(mods, tc.mod)
			}
			got, err := parseLease(ack(t, mods...))
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(lease{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
				t.Errorf("lease (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzLease feeds packets through the library's parser into ours.
func FuzzLease(f *testing.F) {
	f.Add(ack(f).ToBytes())
	f.Add(ack(f, mtu(5, 220), without(dhcpv4.OptionRouter)).ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		l, err := parseLease(d)
		if err != nil {
			return
		}
		if !l.addr.IsValid() || !l.addr.Addr().Is4() || l.addr.Bits() < 8 {
			t.Errorf("address %v", l.addr)
		}
		if l.mtu != 0 && (l.mtu < minMTU || l.mtu > maxMTU) {
			t.Errorf("MTU %d", l.mtu)
		}
		if len(l.dns) > maxDNS {
			t.Errorf("%d DNS servers", len(l.dns))
		}
		for _, a := range append(l.dns, l.addr.Addr(), l.router) {
			if a.IsValid() && (a.IsLoopback() || a.IsMulticast() || a.IsUnspecified()) {
				t.Errorf("address %v was taken", a)
			}
		}
	})
}
