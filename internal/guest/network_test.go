package guest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

// inNetwork runs f in a network namespace of its own that holds lo and a veth pair eth0, peer. Both ends are down.
func inNetwork(t *testing.T, f func(t *testing.T, w network, peer netlink.Link)) {
	t.Helper()
	result := make(chan string, 1)
	go func() {
		// The thread is not unlocked, so that it ends with this goroutine and takes the namespace along.
		runtime.LockOSThread()
		defer close(result)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- "no network namespace: " + err.Error()
			return
		}
		peerMAC := net.HardwareAddr{2, 0, 0, 0, 0, 2}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, PeerName: "peer", PeerHardwareAddr: peerMAC}
		if err := netlink.LinkAdd(veth); err != nil {
			result <- "no veth: " + err.Error()
			return
		}
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			t.Error(err)
			return
		}
		etc := t.TempDir()
		f(t, network{etc: etc, sysctl: "/proc/sys"}, peer)
	}()
	if reason, skip := <-result; skip {
		t.Skip(reason)
	}
}

// elsewhere moves the peer into another namespace, so that eth0 is the one Ethernet device that Network can see. It runs
// serve there, if there is one, and returns when the peer is up.
func elsewhere(t *testing.T, peer netlink.Link, serve func()) {
	t.Helper()
	moved, up := make(chan struct{}), make(chan error, 1)
	tid := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			up <- err
			return
		}
		tid <- unix.Gettid()
		<-moved
		l, err := netlink.LinkByName("peer")
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err == nil {
			err = netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 1), Mask: net.CIDRMask(24, 32)}})
		}
		up <- err
		if err == nil && serve != nil {
			serve()
		}
		<-t.Context().Done() // the namespace, and the peer with it, lives as long as this thread
	}()
	select {
	case err := <-up:
		t.Fatal(err)
	case id := <-tid:
		if err := netlink.LinkSetNsPid(peer, id); err != nil {
			t.Error(err)
		}
		close(moved)
	}
	if err := <-up; err != nil {
		t.Error(err)
	}
}

func TestNetworkNoneBringsUpNothingButLoopback(t *testing.T) {
	inNetwork(t, func(t *testing.T, w network, peer netlink.Link) {
		if err := w.up(t.Context(), cmdline.Net{Mode: "none"}); err != nil {
			t.Error(err)
		}
		for name, want := range map[string]bool{"lo": true, "eth0": false} {
			l, err := netlink.LinkByName(name)
			if err != nil || l.Attrs().Flags&net.FlagUp != 0 != want {
				t.Errorf("%s up is %v, want %v (%v)", name, !want, want, err)
			}
		}
		if _, err := os.Stat(filepath.Join(w.etc, "resolv.conf")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("resolv.conf: %v, want none", err)
		}
	})
}

func TestNetworkStatic(t *testing.T) {
	inNetwork(t, func(t *testing.T, w network, peer netlink.Link) {
		elsewhere(t, peer, nil)
		err := w.up(t.Context(), cmdline.Net{
			Mode:    "static",
			Addr:    netip.MustParsePrefix("10.9.0.7/32"),
			Gateway: netip.MustParseAddr("10.9.0.1"), // not in the /32
			DNS:     netip.MustParseAddr("10.9.0.2"),
		})
		if err != nil {
			t.Error(err)
		}
		checkLink(t, "10.9.0.7/32", "10.9.0.1", 1500)
		checkFile(t, w, "resolv.conf", "nameserver 10.9.0.2\n")
		checkFile(t, w, "hosts", "127.0.0.1 localhost\n")
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6"); err == nil && string(b) != "1\n" {
			t.Errorf("disable_ipv6 is %q", b)
		}
	})
}

func TestNetworkStaticIPv6(t *testing.T) {
	inNetwork(t, func(t *testing.T, w network, peer netlink.Link) {
		if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
			t.Log("this kernel has no IPv6")
			return
		}
		elsewhere(t, peer, nil)
		err := w.up(t.Context(), cmdline.Net{Mode: "static", Addr: netip.MustParsePrefix("fd00::7/64"), Gateway: netip.MustParseAddr("fd00::1")})
		if err != nil {
			t.Error(err)
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		routes, err := netlink.RouteList(eth0, netlink.FAMILY_V6)
		if err != nil {
			t.Error(err)
		}
		found := false
		for _, r := range routes {
			found = found || r.Gw.String() == "fd00::1"
		}
		if !found {
			t.Errorf("routes %v, want one by fd00::1", routes)
		}
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra"); err != nil || string(b) != "0\n" {
			t.Errorf("accept_ra is %q (%v)", b, err)
		}
	})
}

func TestNetworkWaitsForALinkAndNoLongerThanItsContext(t *testing.T) {
	inNetwork(t, func(t *testing.T, w network, peer netlink.Link) {
		// The peer stays down, so there is never a carrier.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := w.up(ctx, cmdline.Net{Mode: "dhcp"})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline", err)
		}
	})
}

func TestNetworkTakesADeviceThatAppearsLate(t *testing.T) {
	inNetwork(t, func(t *testing.T, w network, peer netlink.Link) {
		if err := netlink.LinkDel(peer); err != nil {
			t.Error(err)
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE) // of this namespace, whichever thread uses it
		if err != nil {
			t.Error(err)
			return
		}
		defer h.Close()
		added := make(chan error, 1)
		go func() {
			// Whether this comes before or after Network subscribes must not matter.
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late0", MTU: 1500}, PeerName: "late1"}
			if err := h.LinkAdd(veth); err != nil {
				added <- err
				return
			}
			for _, name := range []string{"late0", "late1"} {
				l, err := h.LinkByName(name)
				if err == nil {
					err = h.LinkSetUp(l)
				}
				if err != nil {
					added <- err
					return
				}
			}
			added <- nil
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := w.link(ctx, false); err != nil {
			t.Error(err)
		}
		if err := <-added; err != nil {
			t.Error(err)
		}
	})
}

func TestNetworkDHCP(t *testing.T) {
	inNetwork(t, func(t *testing.T, w network, peer netlink.Link) {
		elsewhere(t, peer, func() { serveDHCP(t) })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := w.up(ctx, cmdline.Net{Mode: "dhcp"}); err != nil {
			t.Error(err)
			return
		}
		checkLink(t, "10.9.0.9/24", "10.9.0.1", 1400)
		checkFile(t, w, "resolv.conf", "nameserver 10.9.0.3\nnameserver 10.9.0.4\nnameserver 10.9.0.5\n")
	})
}

func TestNetworkDHCPWithoutServerEndsWithItsContext(t *testing.T) {
	inNetwork(t, func(t *testing.T, w network, peer netlink.Link) {
		elsewhere(t, peer, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := w.up(ctx, cmdline.Net{Mode: "dhcp"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline", err)
		}
	})
}

// serveDHCP answers on the peer, from the namespace of the calling thread.
func serveDHCP(t *testing.T) {
	s, err := server4.NewServer("peer", nil, func(conn net.PacketConn, _ net.Addr, req *dhcpv4.DHCPv4) {
		kind := dhcpv4.MessageTypeOffer
		if req.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		a, err := dhcpv4.NewReplyFromRequest(req,
			dhcpv4.WithMessageType(kind),
			dhcpv4.WithYourIP(net.IPv4(10, 9, 0, 9)),
			dhcpv4.WithServerIP(net.IPv4(10, 9, 0, 1)),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 9, 0, 1))),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
			dhcpv4.WithRouter(net.IPv4(10, 9, 0, 1)),
			dhcpv4.WithDNS(net.IPv4(10, 9, 0, 3), net.IPv4(10, 9, 0, 4), net.IPv4(10, 9, 0, 5), net.IPv4(10, 9, 0, 6)),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, []byte{1400 >> 8, 1400 & 255}),
		)
		if err == nil {
			_, err = conn.WriteTo(a.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { s.Close() })
	go s.Serve()
}

func checkLink(t *testing.T, addr, gateway string, mtu int) {
	t.Helper()
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Error(err)
		return
	}
	if l.Attrs().MTU != mtu {
		t.Errorf("MTU %d, want %d", l.Attrs().MTU, mtu)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != addr {
		t.Errorf("addresses %v, want %s alone (%v)", addrs, addr, err)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Error(err)
	}
	var gateways []string
	for _, r := range routes {
		if r.Gw != nil {
			gateways = append(gateways, r.Gw.String())
		}
	}
	if diff := cmp.Diff([]string{gateway}, gateways); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
}

func checkFile(t *testing.T, w network, name, want string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.etc, name))
	if err != nil || string(b) != want {
		t.Errorf("%s is %q, want %q (%v)", name, b, want, err)
	}
}
