package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
)

// Network brings up the loopback device and then what n asks for, nothing more: with "none" every other device stays
// down. "static" and "dhcp" configure the Ethernet device with the lowest index, waiting for it to appear and to have a
// link. The wait, and DHCP, end with ctx. Afterwards /etc/resolv.conf and /etc/hosts are what Go's resolver reads.
func Network(ctx context.Context, n cmdline.Net) error {
	return network{etc: "/etc", sysctl: "/proc/sys"}.up(ctx, n)
}

// network is where Network writes files.
type network struct{ etc, sysctl string }

func (w network) up(ctx context.Context, n cmdline.Net) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := replaceFile(filepath.Join(w.etc, "hosts"), "127.0.0.1 localhost\n"); err != nil {
		return err
	}
	switch n.Mode {
	case "none":
		return nil
	case "static":
		l := lease{addr: n.Addr, router: n.Gateway}
		if n.DNS.IsValid() {
			l.dns = []netip.Addr{n.DNS}
		}
		link, err := w.link(ctx, n.Addr.Addr().Is6())
		if err != nil {
			return err
		}
		return w.configure(link, l)
	case "dhcp":
		link, err := w.link(ctx, false)
		if err != nil {
			return err
		}
		l, err := askDHCP(ctx, link.Attrs().Name)
		if err != nil {
			return err
		}
		return w.configure(link, l)
	}
	return fmt.Errorf("network mode %q: want none, static or dhcp", n.Mode)
}

// link waits for the Ethernet device with the lowest index, brings it up, and waits until it has a link. It asks for
// the list of devices on the socket that carries their changes, so that none can be missed in between.
func (w network) link(ctx context.Context, v6 bool) (netlink.Link, error) {
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	broken := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		ListExisting: true,
		ErrorCallback: func(err error) {
			select {
			case broken <- err:
			default:
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to network devices: %w", err)
	}
	defer func() {
		close(done)
		for range updates { // lets the sender go; it closes the channel when its socket is closed
		}
	}()

	var raised string
	for {
		select {
		case u := <-updates:
			if u.Link == nil || u.Header.Type != unix.RTM_NEWLINK || !ethernet(u.Link) {
				continue
			}
			a := u.Link.Attrs()
			switch {
			case raised == "":
				if err := w.raise(u.Link, v6); err != nil {
					return nil, err
				}
				raised = a.Name
			case raised != a.Name:
				continue
			}
			if a.RawFlags&unix.IFF_LOWER_UP != 0 && a.RawFlags&unix.IFF_UP != 0 {
				return u.Link, nil
			}
		case err := <-broken:
			return nil, fmt.Errorf("changes of network devices: %w", err)
		case <-ctx.Done():
			if raised == "" {
				return nil, fmt.Errorf("wait for a network device: %w", context.Cause(ctx))
			}
			return nil, fmt.Errorf("wait for a link on %s: %w", raised, context.Cause(ctx))
		}
	}
}

func ethernet(l netlink.Link) bool {
	a := l.Attrs()
	return a.EncapType == "ether" && a.Flags&net.FlagLoopback == 0 && len(a.HardwareAddr) == 6
}

// raise brings a device up. Unless IPv6 is asked for it is turned off before, and never takes what routers advertise.
func (w network) raise(l netlink.Link, v6 bool) error {
	name := l.Attrs().Name
	off := "1"
	if v6 {
		off = "0"
	}
	errs := apply(w.sysctl, []setting{
		{"net/ipv6/conf/" + name + "/disable_ipv6", off, !v6},
		{"net/ipv6/conf/" + name + "/accept_ra", "0", !v6},
		{"net/ipv6/conf/" + name + "/accept_redirects", "0", !v6},
		{"net/ipv4/conf/" + name + "/accept_redirects", "0", false},
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

func (w network) configure(link netlink.Link, l lease) error {
	name := link.Attrs().Name
	if l.mtu != 0 {
		// A device that refuses keeps its own MTU, which works.
		_ = netlink.LinkSetMTU(link, l.mtu)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: l.addr.Addr().AsSlice(), Mask: net.CIDRMask(l.addr.Bits(), l.addr.Addr().BitLen())}}
	if l.addr.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // usable at once; the host can claim any address anyway
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", l.addr, name, err)
	}
	if l.router.IsValid() {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: l.router.AsSlice()}
		if !l.addr.Contains(l.router) {
			// Clouds give a /32 and a router beside it.
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("default route by %s on %s: %w", l.router, name, err)
		}
	}
	if len(l.dns) == 0 {
		return nil
	}
	var b bytes.Buffer
	for _, a := range l.dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return replaceFile(filepath.Join(w.etc, "resolv.conf"), b.String())
}

// replaceFile puts text at path in one step: a reader sees the old file or the new one.
func replaceFile(path, text string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
