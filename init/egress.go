package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/egress"
	"github.com/ampoule-vm/ampoule/internal/workload"
)

// checkEgress refuses a manifest that lets the workload out where the image has no network, before anything is fetched.
func (r *run) checkEgress() error {
	if len(r.doc.Egress) > 0 && r.opts.Net.Mode == "none" {
		return errors.New("network.egress: names places to reach, and this image has no network (ampoule.net is none): " +
			"build it with one (ampoule build --net dhcp), or drop the list")
	}
	return nil
}

// offerProxy tells the workload of the proxy, where the manifest lets it out and says nothing of one itself: a name that it sets in either
// case is its own business. The image's variables give way, for its builder's proxy is not here.
func (r *run) offerProxy(env map[string]string) {
	if len(r.doc.Egress) == 0 {
		return
	}
	said := slices.Collect(maps.Keys(env))
	for name, value := range egress.Environment() {
		if !slices.ContainsFunc(said, func(s string) bool { return strings.EqualFold(s, name) }) {
			env[name] = value
		}
	}
}

// openGate lets the workload out to where the manifest says. report, after the workload has ended, tells the owner what went through.
func (r *run) openGate(ctx context.Context, s *workload.Spec) (report func(), err error) {
	if len(r.doc.Egress) == 0 {
		return func() {}, nil
	}
	var rules []egress.Rule
	for _, e := range r.doc.Egress {
		rules = append(rules, egress.Rule(e))
	}
	g := egress.New(rules, r.outside)
	for _, addr := range g.Addresses() {
		s.Services = append(s.Services, workload.Service{Addr: addr, Serve: func(l net.Listener) { g.Serve(ctx, l) }})
	}
	if err := layNames(s, g.Hosts()); err != nil {
		return nil, err
	}
	return func() {
		used, refused, first := g.Report()
		for _, u := range used {
			r.private.Info("egress", "to", u.Rule, "connections", u.Conns, "failed", u.Failed, "sent", u.Sent, "received", u.Received, "why", u.Why)
		}
		if refused > 0 {
			r.private.Warn("egress refused", "times", refused, "first", first)
		}
	}, nil
}

const (
	hostsFile    = "/etc/hosts"
	switchFile   = "/etc/nsswitch.conf"
	filesThenDNS = "hosts: files dns\n" // glibc before 2.35 asks DNS first where there is no such file, and there is no DNS
)

// layNames lays /etc/hosts over the image's, as container engines do. The manifest's own comes after it, so that what it says of other
// names holds.
func layNames(s *workload.Spec, hosts string) error {
	at := func(path string) int {
		return slices.IndexFunc(s.Files, func(f workload.File) bool { return f.Path == path })
	}
	if i := at(hostsFile); i >= 0 {
		s.Files[i].Data = append([]byte(hosts), s.Files[i].Data...)
	} else {
		s.Files = append(s.Files, workload.File{Path: hostsFile, Data: []byte(hosts)})
	}
	if at(switchFile) >= 0 {
		return nil
	}
	root, err := os.OpenRoot(s.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Lstat(strings.TrimPrefix(switchFile, "/")); errors.Is(err, fs.ErrNotExist) {
		s.Files = append(s.Files, workload.File{Path: switchFile, Data: []byte(filesThenDNS)})
	}
	return nil // an image that has one has its reasons
}

// egressNote is the receipt's line of where the workload could connect to; "" for nowhere.
func (r *run) egressNote() string {
	var to []string
	for _, e := range r.doc.Egress {
		to = append(to, e.String())
	}
	if to == nil {
		return ""
	}
	return fmt.Sprintf("the workload could connect to %s", strings.Join(to, ", "))
}
