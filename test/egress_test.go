package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/demo"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// fetcher is an ordinary program: each argument is a URL, asked for as Python does by itself or, after "direct=", around any proxy.
const fetcher = `
import json, sys, urllib.error, urllib.request

said = {}
for arg in sys.argv[1:]:
    url = arg.removeprefix("direct=")
    handlers = [] if url == arg else [urllib.request.ProxyHandler({})]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=60) as answer:
            said[arg] = "%d %s" % (answer.status, answer.read().decode())
    except urllib.error.HTTPError as e:
        said[arg] = str(e.code)
    except OSError as e:
        # A reset is told once, to the write or to the read that comes first; the other gets one of the rest.
        cut = isinstance(getattr(e, "reason", e), (ConnectionResetError, BrokenPipeError))
        said[arg] = "cut off" if cut else str(e)
json.dump(said, open("results/said.json", "w"))
`

// A nameServer answers for a few names and remembers what it was asked.
type nameServer struct {
	names map[string]net.IP
	mu    sync.Mutex
	asked []string
}

// serve listens where a guest's 10.0.2.2:53 leads.
func (n *nameServer) serve(t *testing.T) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Skipf("a name server for the VM needs port 53 of this machine's loopback: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			size, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if reply := n.answer(b[:size]); reply != nil {
				c.WriteTo(reply, from)
			}
		}
	}()
}

// answer is the reply to a query of one question (RFC 1035 §4.1).
func (n *nameServer) answer(q []byte) []byte {
	name, i := "", 12
	for i < len(q) && q[i] != 0 && i+1+int(q[i]) < len(q) {
		name += string(q[i+1:i+1+int(q[i])]) + "."
		i += 1 + int(q[i])
	}
	if i+5 > len(q) {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if name = strings.ToLower(name); !slices.Contains(n.asked, name) {
		n.asked = append(n.asked, name)
	}
	reply := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:i+5]...)
	ip, known := n.names[name]
	switch {
	case !known:
		reply[3] |= 3 // there is no such name
	case q[i+2] == 1: // A
		reply[7] = 1
		reply = append(append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4), ip.To4()...)
	}
	return reply
}

// TestEgress: Python in a VM reaches a server that the manifest lists, by name and by address, and no other.
func TestEgress(t *testing.T) {
	r := newTrial(t, nil)
	names := &nameServer{names: map[string]net.IP{
		"service.test.": net.IPv4(10, 0, 2, 2), "loop.test.": net.IPv4(127, 0, 0, 1), "meta.test.": net.IPv4(169, 254, 169, 254), "self.test.": net.IPv4(10, 0, 2, 15), "other.test.": net.IPv4(10, 0, 2, 2),
	}}
	names.serve(t)
	var mu sync.Mutex
	var heard []string
	server := func() string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			heard = append(heard, r.Host)
			mu.Unlock()
			fmt.Fprint(w, "I am ", r.Host)
		}))
		t.Cleanup(s.Close)
		_, port, err := net.SplitHostPort(s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	named, numbered, unlisted := server(), server(), server()
	want := map[string]string{
		"http://service.test:" + named:           "200 I am service.test:" + named,
		"direct=http://service.test:" + named:    "200 I am service.test:" + named,
		"http://10.0.2.2:" + numbered:            "200 I am 10.0.2.2:" + numbered,
		"direct=http://10.0.2.2:" + numbered:     "200 I am 10.0.2.2:" + numbered,
		"direct=http://10.0.2.2:" + unlisted:     "Connection refused",
		"direct=http://10.0.2.3:" + numbered:     "Network is unreachable",
		"http://service.test:" + unlisted:        "403",
		"direct=http://service.test:" + unlisted: "Connection refused",
		"http://10.0.2.2:" + unlisted:            "403",
		"http://10.0.2.2:" + named:               "403",
		"http://other.test:" + named:             "403",
		"direct=http://other.test:" + named:      "Temporary failure in name resolution",
		"http://loop.test:" + named:              "403",
		"direct=http://loop.test:" + named:       "cut off",
		"direct=http://meta.test:80":             "cut off",
		"direct=http://self.test:" + named:       "cut off",
		"http://169.254.169.254":                 "403",
		"direct=http://169.254.169.254":          "Network is unreachable",
		"http://127.0.0.1:" + named:              "Connection refused",
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	algo, err := demo.PythonImage(t.Context(), filepath.Join(cache, "ampoule"), []byte(fetcher), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	for arg := range want {
		r.job.Args = append(r.job.Args, arg)
	}
	r.job.Algorithm = r.publish("fetcher", demo.AlgorithmKey, algo, true)
	var m map[string]any
	if err := json.Unmarshal(r.world.Manifest(r.job), &m); err != nil {
		t.Fatal(err)
	}
	m["network"] = map[string]any{"egress": []string{
		"service.test:" + named, "loop.test:" + named, "self.test:" + named, "meta.test:80", "10.0.2.2:" + numbered, "[2001:db8::7]:80",
	}}
	if r.manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	o, err := cmdline.Parse(r.cfg.Cmdline)
	if err != nil {
		t.Fatal(err)
	}
	if o.Net, err = cmdline.ParseNet("static:10.0.2.15/24,10.0.2.2,10.0.2.2"); err != nil {
		t.Fatal(err)
	}
	r.cfg.Cmdline = mkimage.Cmdline(o.Profile, o, "")
	r.accepted = r.cfg.Cmdline
	r.cfg.Shape.MemoryMiB = 1024
	r.run()
	r.ends("", result.OK, 0)

	dir := r.open()
	var said map[string]string
	if err := json.Unmarshal([]byte(r.read(filepath.Join(dir, "results/said.json"))), &said); err != nil {
		t.Fatal(err)
	}
	for arg, want := range want {
		if !strings.Contains(said[arg], want) {
			t.Errorf("%s: %q, want %q", arg, said[arg], want)
		}
	}
	mu.Lock()
	slices.Sort(heard)
	if want := []string{"10.0.2.2:" + numbered, "10.0.2.2:" + numbered, "service.test:" + named, "service.test:" + named}; !slices.Equal(heard, want) {
		t.Errorf("the servers heard %q, want %q", heard, want)
	}
	mu.Unlock()
	names.mu.Lock()
	slices.Sort(names.asked)
	if want := []string{"loop.test.", "meta.test.", "self.test.", "service.test."}; !slices.Equal(names.asked, want) {
		t.Errorf("the name server was asked for %q, want %q", names.asked, want)
	}
	names.mu.Unlock()
	log := r.read(filepath.Join(dir, result.BootLogName))
	for _, want := range []string{"to=service.test:" + named + " connections=2 failed=0", "to=10.0.2.2:" + numbered + " connections=2 failed=0", "egress refused", "other.test:" + named} {
		if !strings.Contains(log, want) {
			t.Errorf("the owner's log does not say %q:\n%s", want, log)
		}
	}
	if notes := strings.Join(r.verified().Statement.Predicate.Notes, "\n"); !strings.Contains(notes, "the workload could connect to service.test:"+named) {
		t.Errorf("notes:\n%s", notes)
	}
}
