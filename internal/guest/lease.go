package guest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// A lease is all that is taken from a DHCP answer. Whoever answers is the host or its network.
type lease struct {
	addr   netip.Prefix
	router netip.Addr   // zero when there is none: then only the subnet is reached
	dns    []netip.Addr // at most maxDNS
	mtu    int          // 0 when absent or out of bounds
}

const (
	maxDNS = 3               // what resolvers use
	minMTU = 576             // RFC 791: every IPv4 link carries this
	maxMTU = 65535           // an IPv4 packet is no longer
	tryFor = 1 * time.Second // for the first answer; doubled with each try, until the context ends
)

// askDHCP runs discover, offer, request, acknowledge on the link. It ends with ctx at the latest. There is no renewal:
// a computation that outlives its lease depends on a server that does not give the address away.
func askDHCP(ctx context.Context, ifname string) (lease, error) {
	c, err := nclient4.New(ifname, nclient4.WithTimeout(tryFor), nclient4.WithRetry(-1))
	if err != nil {
		return lease{}, fmt.Errorf("DHCP client on %s: %w", ifname, err)
	}
	defer c.Close()
	l, err := c.Request(ctx, dhcpv4.WithRequestedOptions(dhcpv4.OptionInterfaceMTU))
	if err != nil {
		return lease{}, fmt.Errorf("DHCP on %s: %w", ifname, err)
	}
	return parseLease(l.ACK)
}

// parseLease takes address, mask, router, DNS servers and MTU from an acknowledgement, and nothing else: no static
// routes, no names, no boot files. A value that cannot be right is an error; a strange MTU is only ignored, since
// the device has a working one.
func parseLease(ack *dhcpv4.DHCPv4) (lease, error) {
	var l lease
	addr, err := hostAddr("address", ack.YourIPAddr)
	if err != nil {
		return lease{}, err
	}
	mask := ack.SubnetMask()
	ones, bits := mask.Size()
	if bits != 32 || ones < 8 {
		return lease{}, fmt.Errorf("DHCP subnet mask %q: want a contiguous one from /8 to /32", mask.String())
	}
	l.addr = netip.PrefixFrom(addr, ones)
	if ones < 31 && (addr == l.addr.Masked().Addr() || addr == broadcast(l.addr)) {
		return lease{}, fmt.Errorf("DHCP address %s is the network or broadcast address of its subnet", l.addr)
	}
	if routers := ack.Router(); len(routers) > 0 {
		if l.router, err = hostAddr("router", routers[0]); err != nil {
			return lease{}, err
		}
		if l.router == addr {
			return lease{}, fmt.Errorf("DHCP router %s is the address of this machine", l.router)
		}
	}
	servers := ack.DNS()
	for _, ip := range servers[:min(len(servers), maxDNS)] {
		a, err := hostAddr("DNS server", ip)
		if err != nil {
			return lease{}, err
		}
		l.dns = append(l.dns, a)
	}
	if b := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if n := int(b[0])<<8 | int(b[1]); n >= minMTU && n <= maxMTU {
			l.mtu = n
		}
	}
	return l, nil
}

// hostAddr accepts an IPv4 address that one machine can have on a network.
func hostAddr(what string, ip net.IP) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	if !ok || !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.As4()[0] == 0 || a.As4()[0] >= 224 {
		return netip.Addr{}, fmt.Errorf("DHCP %s %v: want a unicast IPv4 address", what, ip)
	}
	return a, nil
}

// broadcast is the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := range 4 {
		host := max(0, min(8, 8*(i+1)-p.Bits()))
		b[i] |= byte(1<<host - 1)
	}
	return netip.AddrFrom4(b)
}
